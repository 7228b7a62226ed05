/** What a task is given beside settings: a picture, a mask over it, or numbers. */

import { el, fresh } from "./dom.js";
import { MaskPad } from "./mask.js";
import { padFor } from "./picture.js";
import { isPicture, sizeOf } from "./schema.js";

const MOST_ZEROS = 4096;
const numbers = new Map(); // what was given or got last, by the shape of the data

function zeros([length, ...rest]) {
  return length === undefined ? 0 : Array.from({ length }, () => zeros(rest));
}

/** Keep numbers of `shape` that a task gave, for one that takes such. */
export function keepNumbers(shape, rows) {
  if (shape.reduce((a, b) => a * b, 1) <= MOST_ZEROS) numbers.set(shape.join("x"), JSON.stringify(rows));
}

function numbersInput(spec) {
  const key = spec.shape.join("x");
  const blank = () => (spec.shape.reduce((a, b) => a * b, 1) <= MOST_ZEROS ? JSON.stringify(zeros(spec.shape)) : "");
  const id = fresh("numbers");
  const input = el("textarea", { id, rows: 6, spellcheck: "false" }, numbers.get(key) ?? blank());
  const element = el(
    "div",
    { class: "field" },
    el("label", { for: id }, "x", el("span", { class: "limits" }, sizeOf(spec))),
    input,
    el("p", { class: "hint" }, "Numbers in JSON: one sample or a list of them."),
  );
  const refresh = () => {
    input.value = numbers.get(key) ?? input.value;
  };
  const read = () => {
    try {
      return { x: JSON.parse(input.value) };
    } catch {
      return { x: input.value };
    }
  };
  return { element, read, refresh };
}

/** The inputs of `task`: their elements and `read`, the part of the body they make. */
export function given(task) {
  const nothing = { element: el("div"), read: () => ({}), refresh: () => {}, fail: () => {} };
  if (!task.needs.includes("x")) return nothing;
  const error = el("p", { class: "error", role: "alert", hidden: true });
  const fail = (message) => {
    error.textContent = message;
    error.hidden = !message;
  };
  if (!isPicture(task.takes)) {
    const input = numbersInput(task.takes);
    return { ...input, element: el("div", { class: "given" }, input.element, error), fail };
  }
  const pad = padFor(task.takes);
  const mask = task.needs.includes("mask") ? new MaskPad(pad) : null;
  const place = el("div", { class: "given" }, mask ? mask.element : null, error);
  return {
    element: place,
    refresh: () => place.prepend(pad.element), // one pad goes from tab to tab
    read: () => ({ x: pad.base64(), ...(mask ? { mask: mask.base64() } : {}) }),
    fail,
  };
}
