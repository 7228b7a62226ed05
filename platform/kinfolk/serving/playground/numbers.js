/** Answers in numbers: a value for each sample, a row of scores for each class, or arrays as they are. */

import { el, shown } from "./dom.js";

/** Shares that sum to 1: the softmax of logits. */
function shares(logits) {
  const top = Math.max(...logits);
  const weights = logits.map((each) => Math.exp(each - top));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((each) => each / sum);
}

/** The classes of one sample, the likeliest first, as bars. */
export function classBars(logits) {
  const share = shares(logits);
  const order = share.map((_, k) => k).sort((a, b) => share[b] - share[a]);
  const row = (k) => {
    const bar = el("meter", { min: 0, max: 1, value: share[k], "aria-label": `class ${k}` });
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, `class ${k}`),
      el("td", {}, bar),
      el("td", { class: "number" }, `${(100 * share[k]).toFixed(1)} %`),
    );
  };
  return el("table", { class: "bars" }, el("tbody", {}, order.map(row)));
}

/** One value as large figures with its unit. */
export function figure(value, unit) {
  return el(
    "p",
    { class: "figure" },
    el("strong", {}, shown(value)),
    unit ? el("span", {}, ` ${unit.replaceAll("_", " ")}`) : null,
  );
}

/** Values of one or more samples; rows of several are taken as logits of classes. */
export function numbersTable(title, values, unit) {
  if (values.length === 1) return Array.isArray(values[0]) ? classBars(values[0]) : figure(values[0], unit);
  const row = (value, k) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, String(k + 1)),
      el("td", { class: "number" }, Array.isArray(value) ? value.map(shown).join(", ") : shown(value)),
    );
  const head = el("tr", {}, el("th", { scope: "col" }, "sample"), el("th", { scope: "col" }, title));
  return el("table", { class: "values" }, el("thead", {}, head), el("tbody", {}, values.map(row)));
}

/** Samples that cannot be drawn: how large they are, and their numbers. */
export function rowsText({ samples, shape, dtype }) {
  const text = samples.map((each) => JSON.stringify(each)).join("\n");
  return el(
    "div",
    {},
    el("p", { class: "caption" }, `${shape.join("×")} ${dtype}`),
    el("pre", { class: "rows", tabindex: 0 }, text),
  );
}
