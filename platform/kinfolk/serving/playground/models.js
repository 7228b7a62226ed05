/** The list of models: asked for again and again, so that states and versions are those of now. */

import { read } from "./api.js";
import { el, fresh } from "./dom.js";
import { isPicture, routeOf, sizeOf } from "./schema.js";

const EVERY_MS = 5000;
const documents = new Map();

/** The OpenAPI document of the version in service; read once for each. */
export function schemaOf(model) {
  const key = `${model.address}@${model.version}`;
  if (!documents.has(key)) {
    const asked = read(`${model.address}/openapi.json`);
    documents.set(key, asked);
    asked.catch(() => documents.delete(key));
  }
  return documents.get(key);
}

/** Wake a model that sleeps: its first request starts it. */
export const wake = (model) => read(`${model.address}/openapi.json`);

/** Read the list now and every few seconds while the page is seen; `onError` gets null when all is well again. */
export function follow(onModels, onError) {
  const look = async () => {
    if (document.hidden) return;
    try {
      const { models } = await read("/v1/models");
      onError(null);
      onModels(models);
    } catch (error) {
      onError(error);
    }
  };
  setInterval(look, EVERY_MS);
  document.addEventListener("visibilitychange", look);
  look();
  return look;
}

function facts(model) {
  if (!model.data) return "not loaded";
  const size = isPicture(model.data) ? model.data.shape.join("×") : sizeOf(model.data);
  return [model.family, `version ${model.version}`, size].join(" · ");
}

/** The models as a group of radio buttons. */
export class ModelList {
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.group = fresh("model");
    this.element = el("div", { class: "models", role: "radiogroup", "aria-label": "model" });
    this.shown = "";
  }

  /** Show `models`, of which the one at `address` is chosen; nothing is touched where nothing has changed. */
  update(models, address) {
    const said = models.map((model) => [model.address, model.state, facts(model), model.stale]);
    const now = JSON.stringify([said, address]);
    if (now === this.shown) return;
    this.shown = now;
    const focused = this.element.contains(document.activeElement);
    this.element.replaceChildren(...models.map((model) => this.#card(model, model.address === address)));
    const chosen = this.element.querySelector(":checked");
    if (focused) chosen?.focus();
    if (chosen) this.element.scrollLeft = chosen.parentElement.offsetLeft - this.element.offsetLeft - 40;
  }

  #card(model, checked) {
    const input = el("input", {
      type: "radio",
      name: this.group,
      checked,
      onchange: () => this.onChoose(model.address),
    });
    const state = el("span", { class: "state", "data-state": model.state }, model.state);
    return el(
      "label",
      { class: "model" },
      input,
      el("span", { class: "name" }, routeOf(model)),
      state,
      el("span", { class: "about" }, facts(model), model.stale ? " · a newer version could not be loaded" : ""),
    );
  }
}
