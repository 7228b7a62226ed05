/** Which part of the picture is given: white in the mask; the rest, black, is asked for. */

import { button, el } from "./dom.js";
import { dab, paintable } from "./paint.js";
import { base64Of } from "./picture.js";

const HALVES = {
  upper: (x, y, width, height) => y < height / 2,
  lower: (x, y, width, height) => y >= height / 2,
  left: (x, y, width) => x < width / 2,
  right: (x, y, width) => x >= width / 2,
};

/** A mask painted over the picture of `pad`. */
export class MaskPad {
  #give = el("input", { type: "checkbox" });

  constructor(pad) {
    const { width, height } = pad.canvas;
    this.pad = pad;
    this.mask = el("canvas", { width, height });
    this.context = this.mask.getContext("2d", { willReadFrequently: true });
    this.canvas = el("canvas", { width, height, "aria-label": "What is given. Arrow keys move, space paints." });
    this.shown = this.canvas.getContext("2d", { willReadFrequently: true });
    const halves = Object.entries(HALVES).map(([name, given]) => button(name, () => this.#half(given)));
    const frame = paintable(this.canvas, (place) => this.#stroke(place));
    this.element = el(
      "div",
      { class: "pad mask" },
      frame,
      el("div", { class: "tools", role: "group", "aria-label": "the half that is given" }, "Given:", halves),
      el(
        "div",
        { class: "tools" },
        button("everything", () => this.#half(() => true)),
        el("label", { class: "switch" }, this.#give, "Paint what is given"),
      ),
      el("p", { class: "hint" }, "What is coloured is asked for. Paint over what the model shall complete."),
    );
    pad.addEventListener("change", () => this.#show());
    this.#half(HALVES.upper);
  }

  /** The mask as a PNG in base64. */
  base64() {
    return base64Of(this.mask);
  }

  #put(x, y, given) {
    this.context.fillStyle = given ? "#ffffff" : "#000000";
    this.context.fillRect(x, y, 1, 1);
  }

  #half(given) {
    const { width, height } = this.mask;
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) this.#put(x, y, given(x, y, width, height));
    }
    this.#show();
  }

  #stroke(place) {
    const radius = Math.max(0.5, this.mask.width / 16);
    dab(this.mask, place, radius, (x, y, cover) => cover >= 0.5 && this.#put(x, y, this.#give.checked));
    this.#show();
  }

  #show() {
    const { width, height } = this.canvas;
    const context = this.shown;
    context.drawImage(this.pad.canvas, 0, 0);
    const [seen, mask] = [context, this.context].map((each) => each.getImageData(0, 0, width, height));
    for (let k = 0; k < seen.data.length; k += 4) {
      if (mask.data[k] === 0)
        seen.data.set([90 + seen.data[k] / 4, 40 + seen.data[k + 1] / 4, 130 + seen.data[k + 2] / 4], k);
    }
    context.putImageData(seen, 0, 0);
  }
}
