/** Where the answer of one task appears: its progress, what came, what it took, and the request as code. */

import { button, el, save, words } from "./dom.js";
import { Gallery, Way } from "./gallery.js";
import { keepNumbers } from "./given.js";
import { numbersTable, rowsText } from "./numbers.js";
import { countOf, draws, perform, repeatable } from "./runner.js";
import { routeOf } from "./schema.js";
import { snippets } from "./snippets.js";

const counted = (number, word) => `${number} ${word}${Number(number) === 1 ? "" : "s"}`;
const milliseconds = (text) => `${Number(text) < 10 ? Number(text).toFixed(1) : Math.round(Number(text))} ms`;

function factsLine(facts) {
  return [
    `${facts.family}, version ${facts.version}`,
    `seed ${facts.seed}`,
    counted(facts.calls, "call"),
    counted(facts.evaluations, "evaluation"),
    `${milliseconds(facts.queued_ms)} queued`,
    `${milliseconds(facts.computed_ms)} computed`,
  ].join(" · ");
}

/** What the k-th sample of a request is. */
function captions(task, body, seed) {
  const count = countOf(task, body);
  const label = Array.isArray(body.label) ? body.label : Array(count).fill(body.label);
  const seedOf = (k) => body.seeds?.[k] ?? (seed === undefined ? null : Number(seed) + k);
  if (task.needs.includes("seed_to")) return (k) => `${k + 1} of ${count}, from seed ${seed ?? "?"} to ${body.seed_to}`;
  return (k) =>
    [
      seedOf(k) === null ? `number ${k + 1}` : `seed ${seedOf(k)}`,
      ...(label[k] === undefined ? [] : [`label ${label[k]}`]),
    ].join(", ");
}

/** The place of one answer; `run` fills it. */
export class Output {
  #stop = null;

  constructor(empty, { codeOpen = true } = {}) {
    this.codeOpen = codeOpen;
    this.bar = el("progress", { "aria-label": "progress" });
    this.said = el("span", { role: "status" });
    const cancel = button("Cancel", () => this.cancel());
    this.status = el("div", { class: "status", hidden: true }, this.bar, this.said, cancel);
    this.result = el("div", { class: "result" }, el("p", { class: "empty" }, empty));
    this.element = el("section", { class: "output", "aria-label": "answer" }, this.status, this.result);
  }

  /** End what is on its way. */
  cancel() {
    this.#stop?.abort();
  }

  /** Ask the task and show what comes. Errors of the request are thrown; a cancelled one is not. */
  async run(model, name, body) {
    this.cancel();
    const stop = (this.#stop = new AbortController());
    this.#says("Asking …");
    this.status.hidden = false;
    try {
      await this.#fill(model, name, body, stop.signal);
    } catch (error) {
      if (!stop.signal.aborted) throw error;
      if (this.#stop === stop) this.result.replaceChildren(el("p", { class: "empty" }, "Cancelled."));
    } finally {
      if (this.#stop === stop) this.status.hidden = true;
    }
  }

  #says(text, call, calls) {
    this.said.textContent = text;
    if (call === undefined) this.bar.removeAttribute("value");
    else Object.assign(this.bar, { max: calls, value: call });
  }

  async #fill(model, name, body, signal) {
    const task = model.tasks[name];
    const previews = task.accept[0] === "image/png" ? this.#gallery(model, name, body) : null;
    const answer = await perform(task, body, {
      signal,
      onWait: (left) => this.#says(`The server is busy: asking again in ${left} s.`),
      onStep: (call, calls) => this.#says(`call ${call} of ${calls}`, call, calls),
      onPreview: async (blob) => {
        await previews.show(blob);
        if (!previews.element.isConnected && !signal.aborted) this.result.replaceChildren(previews.element);
      },
    });
    if (!signal.aborted) await this.#done(model, name, body, answer);
  }

  #gallery(model, name, body, seed = body.seed) {
    const task = model.tasks[name];
    const Kind = task.needs.includes("seed_to") ? Way : Gallery;
    const fileName = (k) =>
      [routeOf(model), name, body.seeds?.[k] ?? (seed === undefined ? k : Number(seed) + k)].join("-");
    return new Kind(task.gives, countOf(task, body), { caption: captions(task, body, seed), fileName });
  }

  async #done(model, name, asked, { blob, data, facts }) {
    const task = model.tasks[name];
    const body = repeatable(task, asked, facts);
    const code = snippets({ model, name, task, body }, this.codeOpen);
    const download = blob
      ? button("Download all", () => save(blob, `${routeOf(model)}-${name}.png`), { class: "quiet" })
      : button("Download", () => save(new Blob([JSON.stringify(data)]), `${routeOf(model)}-${name}.json`), {
          class: "quiet",
        });
    const line = el("div", { class: "facts" }, el("span", {}, factsLine(facts)), download);
    this.result.replaceChildren(await this.#content(model, name, body, { blob, data, facts }), line, code);
  }

  async #content(model, name, body, { blob, data, facts }) {
    if (blob) {
      const gallery = this.#gallery(model, name, body, draws(model.tasks[name]) ? facts.seed : undefined);
      await gallery.show(blob);
      return gallery.element;
    }
    if (data.values) return numbersTable(words(name), data.values, data.unit);
    keepNumbers(data.shape.slice(1), data.samples);
    return rowsText(data);
  }
}
