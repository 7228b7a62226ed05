/** All that a model says of one picture: each task that needs nothing else, at once. */

import { bring, el, words } from "./dom.js";
import { SettingsForm } from "./form.js";
import { Gallery } from "./gallery.js";
import { classBars, figure } from "./numbers.js";
import { padFor } from "./picture.js";
import { perform } from "./runner.js";
import { isPicture, routeOf, settingsOf } from "./schema.js";
import { place } from "./task.js";

const DRAWN = ["image/png"];

/** Names of the tasks that are asked: they take a picture and nothing else that cannot be left out. */
export function aboutTasks(model, openapi) {
  const plain = ([name, task]) =>
    isPicture(task.takes) &&
    (task.gives === null || task.accept[0] === DRAWN[0]) &&
    settingsOf(openapi, name).every((each) => !each.required || each.name === "x");
  return Object.entries(model.tasks)
    .filter(plain)
    .map(([name]) => name);
}

function card(name, content, unit) {
  const title = el("h3", {}, words(name), unit ? el("span", { class: "limits" }, unit.replaceAll("_", " ")) : null);
  return el("section", { class: "card", "data-about": name }, title, content);
}

async function content(model, name, body) {
  const task = model.tasks[name];
  const nobody = { signal: null, onWait: () => {}, onStep: () => {}, onPreview: () => {} };
  const { blob, data } = await perform(task, body, nobody);
  if (data) return Array.isArray(data.values[0]) ? classBars(data.values[0]) : figure(data.values[0], "");
  const names = { caption: () => words(name), fileName: () => `${routeOf(model)}-${name}` };
  const gallery = new Gallery(task.gives, 1, names);
  await gallery.show(blob);
  return gallery.element;
}

/** The settings that any of the tasks has, each once. */
function settingsOfAll(openapi, names) {
  const found = names.flatMap((name) => settingsOf(openapi, name));
  const once = new Map(found.map((each) => [each.name, each]));
  return [...once.values()].filter((each) => ["label", "seed"].includes(each.name));
}

/** The panel for one picture, with a card for each of the tasks `names`. */
export function aboutPanel(model, names, openapi) {
  const pad = padFor(model.data);
  const form = new SettingsForm(settingsOfAll(openapi, names));
  const cards = el(
    "div",
    { class: "cards" },
    names.map((name) => card(name, el("p", { class: "empty" }, "–"), model.tasks[name].unit)),
  );
  const one = async (name) => {
    const known = settingsOf(openapi, name).map((each) => each.name);
    const values = Object.entries(form.values()).filter(([key]) => known.includes(key));
    const at = cards.querySelector(`[data-about="${name}"]`);
    at.setAttribute("aria-busy", "true");
    try {
      at.lastElementChild.replaceWith(await content(model, name, { x: pad.base64(), ...Object.fromEntries(values) }));
    } catch (error) {
      at.lastElementChild.replaceWith(el("p", { class: "error", role: "alert" }, error.message));
      if (error.field && error.field !== "x") place(error, form);
    }
    at.removeAttribute("aria-busy");
  };
  const submit = (event) => {
    event.preventDefault();
    form.clear();
    bring(cards);
    names.forEach(one);
  };
  const at = el("div", { class: "given" });
  const controls = el(
    "form",
    { class: "controls", novalidate: true, onsubmit: submit, "aria-label": "a picture" },
    at,
    form.element,
    el("div", { class: "actions" }, el("button", { type: "submit", class: "main" }, "Look at it")),
  );
  const element = el(
    "div",
    { class: "panel", "data-model": routeOf(model), "data-task": "picture" },
    controls,
    el("section", { class: "output", "aria-label": "answer" }, cards),
  );
  return { element, refresh: () => at.prepend(pad.element) };
}
