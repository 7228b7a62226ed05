/** Two models, or two versions of one, side by side on the same seeds. */

import { el, words } from "./dom.js";
import { SettingsForm } from "./form.js";
import { Output } from "./output.js";
import { isPicture, routeOf, settingsOf } from "./schema.js";
import { startOf } from "./task.js";

const SHARED = ["n", "seed", "seed_to", "label"];

/** Names of the tasks of a model that draw from seeds alone. */
const fromSeeds = (model) =>
  Object.entries(model.tasks ?? {})
    .filter(([, task]) => !task.takes && isPicture(task.gives))
    .map(([name]) => name);

const title = (model) => `${routeOf(model)} · ${model.family} · version ${model.version}`;

/** One of the two: which model, the settings of its family, and its answer. */
class Side {
  constructor(letter, models, at, onModel) {
    const options = models.map((model, k) => el("option", { value: model.address, selected: k === at }, title(model)));
    this.select = el("select", { "aria-label": `model ${letter}`, onchange: onModel }, options);
    this.settings = el("div", {});
    this.output = new Output("Draw both to compare.", { codeOpen: false });
    this.element = el(
      "section",
      { class: "side", "aria-label": `side ${letter}` },
      el("label", { class: "field" }, `model ${letter}`, this.select),
      this.settings,
      this.output.element,
    );
  }

  model(models) {
    return models.find((each) => each.address === this.select.value);
  }

  /** The controls that this side has alone. */
  use(settings) {
    const own = settings.filter((each) => !SHARED.includes(each.name) && each.sort !== "list");
    this.form = new SettingsForm(own, { folded: true });
    this.settings.replaceChildren(this.form.element);
  }
}

/** The whole view; `schemaOf(model)` resolves to the OpenAPI document of a model. */
export class Compare {
  constructor(schemaOf) {
    this.schemaOf = schemaOf;
    this.element = el("div", { class: "compare" });
    this.shown = "";
  }

  /** Offer `models`; what is chosen stays while the list is the same. */
  async update(models) {
    const able = models.filter((model) => fromSeeds(model).length);
    const now = JSON.stringify(able.map((model) => [model.address, model.version]));
    if (now === this.shown) return;
    this.shown = now;
    this.models = able;
    if (!able.length) {
      this.element.replaceChildren(el("p", { class: "empty" }, "No model that is ready draws pictures from seeds."));
      return;
    }
    const renew = () => this.#renew();
    this.sides = [new Side("A", able, 0, renew), new Side("B", able, Math.min(1, able.length - 1), renew)];
    this.task = el("select", { "aria-label": "task", onchange: renew });
    this.shared = el("div", { class: "shared" });
    const form = el(
      "form",
      { class: "controls wide", novalidate: true, onsubmit: (event) => this.#run(event), "aria-label": "compare" },
      el("label", { class: "field" }, "task", this.task),
      this.shared,
      el("div", { class: "actions" }, el("button", { type: "submit", class: "main" }, "Draw both")),
    );
    this.element.replaceChildren(
      form,
      el(
        "div",
        { class: "sides" },
        this.sides.map((side) => side.element),
      ),
    );
    await this.#renew();
  }

  /** Controls anew after another model or task was chosen; values that both have stay. */
  async #renew() {
    const [a, b] = this.sides.map((side) => side.model(this.models));
    const names = fromSeeds(a).filter((name) => fromSeeds(b).includes(name));
    const name = names.includes(this.task.value) ? this.task.value : names[0];
    this.task.replaceChildren(
      ...names.map((each) => el("option", { value: each, selected: each === name }, words(each))),
    );
    const documents = await Promise.all([a, b].map(this.schemaOf));
    const settings = documents.map((document) => (name ? settingsOf(document, name) : []));
    settings.forEach((each, k) => this.sides[k].use(each));
    const shared = settings[0].filter(
      (each) => SHARED.includes(each.name) && settings[1].some((other) => other.name === each.name),
    );
    const before = this.form?.values() ?? {};
    const start = name ? { ...startOf(a.tasks[name], shared), ...before } : {};
    this.form = new SettingsForm(shared, { start });
    this.shared.replaceChildren(
      name ? this.form.element : el("p", { class: "error" }, "These two have no task in common."),
    );
  }

  async #run(event) {
    event.preventDefault();
    const name = this.task.value;
    if (!name) return;
    this.form.clear();
    const common = this.form.values();
    const one = async (side) => {
      side.form.clear();
      try {
        await side.output.run(side.model(this.models), name, { ...common, ...side.form.values() });
      } catch (error) {
        (SHARED.includes(error.field) ? this.form : side.form).fail(error.field, error.message);
      }
    };
    await Promise.all(this.sides.map(one));
  }
}
