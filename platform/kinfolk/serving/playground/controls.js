/** One control for one setting: an element, what it reads, and where an error stands. */

import { button, el, fresh, words } from "./dom.js";
import { limits } from "./schema.js";

const MOST_SLIDES = 200; // whole numbers on a slider; more are typed
const SEEDS = 2 ** 32;

/** A seed that nobody chose. */
export const dice = () => crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS;

const text = (value) => (value === null || value === undefined ? "" : String(value));

/** The number in an input; what is no number goes as it is, so that the server says what is wrong. */
function numberIn(input) {
  if (input.validity.badInput) return "not a number";
  return input.value === "" ? undefined : Number(input.value);
}

function numberInput(setting, id) {
  const step = setting.sort === "integer" ? 1 : "any";
  return el("input", {
    type: "number",
    id,
    step,
    min: setting.min ?? setting.above,
    max: setting.max ?? setting.below,
    value: text(setting.default),
    placeholder: setting.required ? "" : "left out",
    autocomplete: "off",
  });
}

function stepOf({ sort, min, max }) {
  return sort === "integer" ? 1 : 10 ** Math.floor(Math.log10((max - min) / 50));
}

function slides({ sort, nullable, min, max }) {
  return !nullable && min !== null && max !== null && (sort === "number" || max - min <= MOST_SLIDES);
}

function number(setting, id) {
  const input = numberInput(setting, id);
  if (!slides(setting)) return { element: input, input, read: () => numberIn(input) };
  const slider = el("input", {
    type: "range",
    min: setting.min,
    max: setting.max,
    step: stepOf(setting),
    value: text(setting.default),
    "aria-label": words(setting.name),
    tabindex: -1,
    oninput: () => {
      input.value = slider.value;
    },
  });
  input.addEventListener("input", () => {
    slider.value = input.value;
  });
  const write = (value) => {
    input.value = slider.value = text(value);
  };
  return { element: el("div", { class: "pair" }, slider, input), input, read: () => numberIn(input), write };
}

function seed(setting, id) {
  const input = numberInput(setting, id);
  const roll = () => {
    input.value = dice();
    input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const die = button("⚄", roll, { class: "die", title: "Another seed", "aria-label": `roll ${words(setting.name)}` });
  return { element: el("div", { class: "pair seed" }, input, die), input, read: () => numberIn(input) };
}

function classes(setting, id) {
  const one = (value, shown, first) => {
    const input = el("input", { type: "radio", name: id, value, id: first ? id : null, checked: first });
    return el("label", { class: "class" }, input, el("span", {}, shown));
  };
  const numbers = Array.from({ length: setting.max + 1 }, (_, k) => one(k, String(k), setting.required && k === 0));
  const all = setting.required ? numbers : [one("", "any", true), ...numbers];
  const element = el("div", { class: "classes", role: "radiogroup", "aria-label": words(setting.name) }, all);
  const read = () => {
    const { value } = element.querySelector(":checked");
    return value === "" ? undefined : Number(value);
  };
  const write = (value) => {
    element.querySelector(`[value="${text(value)}"]`).checked = true;
  };
  return { element, input: element.querySelector("input"), read, write };
}

function choice(setting, id) {
  const options = setting.choices.map((each) => el("option", { selected: each === setting.default }, each));
  const input = el("select", { id }, setting.nullable ? el("option", { value: "" }, "left out") : null, options);
  return { element: input, input, read: () => input.value || undefined };
}

function flag(setting, id) {
  const input = el("input", { type: "checkbox", id, checked: setting.default === true });
  const write = (value) => {
    input.checked = value === true;
  };
  return { element: input, input, read: () => input.checked, write };
}

function list(setting, id) {
  const input = el("input", { id, placeholder: "left out; or 3, 1, 4", autocomplete: "off" });
  const entry = (part) => (part !== "" && Number.isFinite(Number(part)) ? Number(part) : part);
  const read = () => (input.value.trim() ? input.value.split(",").map((part) => entry(part.trim())) : undefined);
  return { element: input, input, read };
}

function plain(setting, id) {
  const input = el("input", { id, value: text(setting.default), autocomplete: "off" });
  return { element: input, input, read: () => input.value || undefined };
}

const MAKERS = { integer: number, number, classes, choice, flag, list, text: plain };

/** A labelled control. `read` gives undefined where the setting is left out or at its default. */
export function control(setting) {
  const id = fresh("setting");
  const make = setting.name.startsWith("seed") && setting.sort === "integer" ? seed : MAKERS[setting.sort];
  const { element, input, read, write = (value) => (input.value = text(value)) } = make(setting, id);
  const error = el("p", { class: "error", id: `${id}-error`, hidden: true });
  const hint = el("p", { class: "hint", id: `${id}-hint` }, setting.description);
  input.setAttribute("aria-describedby", `${error.id} ${hint.id}`);
  const range = ["classes", "choice"].includes(setting.sort) ? "" : limits(setting);
  const title = el("label", { for: id }, words(setting.name), el("span", { class: "limits" }, range));
  const facts = { class: "field", "data-sort": setting.sort, "data-setting": setting.name };
  const field = el("div", facts, title, element, error, hint);
  const value = () => {
    const got = read();
    return got === setting.default ? undefined : got;
  };
  field.addEventListener("input", () => field.classList.toggle("changed", value() !== undefined));
  return {
    setting,
    element: field,
    read: value,
    write,
    fail: (message) => {
      error.textContent = message;
      error.hidden = !message;
      input.setAttribute("aria-invalid", String(Boolean(message)));
      if (message) input.focus();
    },
  };
}
