/** The settings of a task as controls: those that every task has on top, its family's own below. */

import { button, el } from "./dom.js";
import { control } from "./controls.js";

const FIRST = ["n", "seed", "seed_to", "label"];
const FEW = 3; // settings that are shown unfolded

/** Controls for `settings`; `start` has the values to begin with, by name; `folded` folds even a few others. */
export class SettingsForm {
  constructor(settings, { start = {}, folded = false } = {}) {
    const all = settings.filter((each) => each.sort !== "given").map(control);
    const first = all.filter(({ setting }) => FIRST.includes(setting.name) || setting.required);
    const others = all.filter((each) => !first.includes(each));
    first.sort((a, b) => this.#rank(a) - this.#rank(b));
    this.controls = [...first, ...others];
    this.general = el("p", { class: "error", role: "alert", hidden: true });
    this.element = el(
      "div",
      { class: "settings" },
      first.map((each) => each.element),
      this.#fold(others, folded),
      this.general,
    );
    for (const each of this.controls) if (each.setting.name in start) each.write(start[each.setting.name]);
  }

  #rank({ setting }) {
    const place = FIRST.indexOf(setting.name);
    return place < 0 ? FIRST.length : place;
  }

  #fold(controls, folded) {
    if (!controls.length) return null;
    const changed = el("span", { class: "limits" });
    const back = () => {
      for (const each of controls) each.write(each.setting.default);
      for (const each of controls) each.element.dispatchEvent(new Event("input", { bubbles: true }));
    };
    const reset = button("Back to defaults", back, { class: "quiet", hidden: true });
    const told = () => {
      const count = controls.filter((each) => each.read() !== undefined).length;
      changed.textContent = count ? `${count} changed` : "";
      reset.hidden = !count;
    };
    const summary = el("summary", {}, `More settings (${controls.length})`, changed);
    const open = !folded && controls.length <= FEW;
    return el(
      "details",
      { class: "more", open, oninput: told },
      summary,
      reset,
      controls.map((each) => each.element),
    );
  }

  /** The settings that are not left out, by name. */
  values() {
    const read = this.controls.map((each) => [each.setting.name, each.read()]);
    return Object.fromEntries(read.filter(([, value]) => value !== undefined));
  }

  /** Put an error where it belongs, or below all fields. */
  fail(field, message) {
    const at = this.controls.find((each) => each.setting.name === field);
    if (!at) {
      this.general.textContent = message;
      this.general.hidden = false;
      return;
    }
    const fold = at.element.closest("details");
    if (fold) fold.open = true;
    at.fail(message);
  }

  /** No errors any more. */
  clear() {
    this.general.hidden = true;
    for (const each of this.controls) each.fail("");
  }
}
