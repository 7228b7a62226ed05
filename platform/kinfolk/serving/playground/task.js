/** The tab of one task: its settings, what it is given, and its answer. */

import { bring, el, words } from "./dom.js";
import { SettingsForm } from "./form.js";
import { given } from "./given.js";
import { Output } from "./output.js";
import { draws } from "./runner.js";
import { routeOf, settingsOf } from "./schema.js";

const MANY = 16; // samples to begin with
const [ON_A_WAY, OF_A_PICTURE] = [8, 4];

/** Values to begin with: seed 0, and as many samples as fit well on the page. */
export function startOf(task, settings) {
  const most = settings.find((each) => each.name === "n")?.max ?? MANY;
  const wanted = task.needs.includes("seed_to") ? ON_A_WAY : task.needs.includes("x") ? OF_A_PICTURE : MANY;
  return draws(task) ? { n: Math.min(wanted, most), seed: 0, seed_to: 1 } : {};
}

/** The verb of a task's button. */
const verb = (task) => (draws(task) ? "Draw" : task.gives ? "Run" : "Measure");

/** Show an error of the API at its field: of what is given, or of a setting. */
export function place(error, form, inputs = null) {
  if (inputs && ["x", "mask"].includes(error.field)) inputs.fail(error.message);
  else form.fail(error.field, error.message);
}

/** The panel of the task `name` of `model`, whose OpenAPI document is `openapi`. */
export function taskPanel(model, name, openapi) {
  const task = model.tasks[name];
  const settings = settingsOf(openapi, name);
  const form = new SettingsForm(settings, { start: startOf(task, settings) });
  const inputs = given(task);
  const output = new Output(`${verb(task)} to see what the model makes of these settings.`);
  const run = el("button", { type: "submit", class: "main" }, verb(task));
  const submit = async (event) => {
    event.preventDefault();
    form.clear();
    inputs.fail("");
    bring(output.element);
    try {
      await output.run(model, name, { ...inputs.read(), ...form.values() });
    } catch (error) {
      place(error, form, inputs);
    }
  };
  const controls = el(
    "form",
    { class: "controls", novalidate: true, onsubmit: submit, "aria-label": words(name) },
    inputs.element,
    form.element,
    el("div", { class: "actions" }, run),
  );
  const element = el(
    "div",
    { class: "panel", "data-model": routeOf(model), "data-task": name },
    controls,
    output.element,
  );
  return { element, output, refresh: inputs.refresh };
}
