/** The picture that tasks are given: dropped, chosen, pasted or drawn, always of the model's size and colours. */

import { button, el, fresh } from "./dom.js";
import { dab, paintable } from "./paint.js";

const pads = new Map();

/** The pad for pictures of `spec`, one for all tasks and models that take the same. */
export function padFor(spec) {
  const key = spec.shape.join("x");
  if (!pads.has(key)) pads.set(key, new PicturePad(spec.shape));
  return pads.get(key);
}

/** The PNG of a canvas in base64. */
export const base64Of = (canvas) => canvas.toDataURL("image/png").split(",")[1];

/** `source` halved until it is less than twice as large as it shall be, so that no pixel of it is passed over. */
function halved(source, width, height) {
  let canvas = source;
  while (canvas.width >= 2 * width && canvas.height >= 2 * height) {
    const half = el("canvas", { width: Math.floor(canvas.width / 2), height: Math.floor(canvas.height / 2) });
    half.getContext("2d").drawImage(canvas, 0, 0, half.width, half.height);
    canvas = half;
  }
  return canvas;
}

class PicturePad extends EventTarget {
  #invert = el("input", { type: "checkbox" });
  #brush = el("input", { type: "range", step: 0.25, "aria-label": "brush size" });
  #erase = el("input", { type: "checkbox" });
  #colour = el("input", { type: "color", value: "#ffffff", "aria-label": "colour of the brush" });
  #error = el("p", { class: "error", role: "alert", hidden: true });

  constructor([channels, height, width]) {
    super();
    this.grey = channels === 1;
    this.canvas = el("canvas", { width, height, "aria-label": "The picture. Arrow keys move, space paints." });
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.element = this.#element();
    this.#brush.max = Math.max(2, width / 8);
    this.#brush.min = 0.25;
    this.#brush.value = Math.max(0.5, width / 16);
    this.#invert.addEventListener("change", () => this.#turn());
    this.clear();
  }

  #element() {
    const id = fresh("file");
    const file = el("input", { type: "file", accept: "image/*", id, class: "unseen" });
    file.addEventListener("change", () => file.files.length && this.load(file.files[0]));
    const frame = paintable(this.canvas, (place) => this.#stroke(place));
    const take = (event, files) => {
      event.preventDefault();
      frame.classList.remove("over");
      if (files?.length) this.load(files[0]);
    };
    frame.addEventListener("dragover", (event) => {
      event.preventDefault();
      frame.classList.add("over");
    });
    frame.addEventListener("dragleave", () => frame.classList.remove("over"));
    frame.addEventListener("drop", (event) => take(event, event.dataTransfer.files));
    frame.addEventListener("paste", (event) => take(event, event.clipboardData.files));
    const tools = el(
      "div",
      { class: "tools" },
      file,
      el("label", { for: id, class: "button" }, "Choose a file"),
      button("Clear", () => this.clear()),
      el("label", { class: "switch" }, this.#invert, "Invert"),
      el("label", { class: "switch" }, this.#erase, "Erase"),
      el("label", { class: "switch" }, "Brush", this.#brush),
      this.grey ? null : this.#colour,
    );
    const hint = el(
      "p",
      { class: "hint" },
      `Draw, drop, paste or choose any picture: it is scaled to ${this.canvas.width}×${this.canvas.height}`,
      this.grey ? ", in grey." : ".",
    );
    return el("div", { class: "pad" }, frame, tools, hint, this.#error);
  }

  /** The picture as a PNG in base64. */
  base64() {
    return base64Of(this.canvas);
  }

  /** Black all over. */
  clear() {
    this.context.fillStyle = this.#invert.checked ? "#ffffff" : "#000000";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.#changed();
  }

  /** Take the picture in a file. */
  async load(file) {
    this.#error.hidden = true;
    try {
      this.use(await createImageBitmap(file), this.#invert.checked);
    } catch {
      this.#error.textContent = `${file.name || "This"} is no picture that this browser can read.`;
      this.#error.hidden = false;
    }
  }

  /** Take a picture of any size, whole and in the middle. */
  use(source, inverted = false) {
    const { width, height } = this.canvas;
    this.#invert.checked = inverted;
    this.context.fillStyle = "#000000";
    this.context.fillRect(0, 0, width, height);
    const scale = Math.min(width / source.width, height / source.height);
    const [across, down] = [source.width * scale, source.height * scale];
    this.context.imageSmoothingEnabled = scale !== 1;
    this.context.imageSmoothingQuality = "high";
    const from = halved(source, across, down);
    this.context.drawImage(from, (width - across) / 2, (height - down) / 2, across, down);
    this.#rewrite((r, g, b) => {
      const level = (value) => (inverted ? 255 - value : value);
      const grey = Math.round(0.299 * r + 0.587 * g + 0.114 * b); // luma of Rec. 601
      return this.grey ? [level(grey), level(grey), level(grey)] : [level(r), level(g), level(b)];
    });
  }

  #turn() {
    this.#rewrite((r, g, b) => [255 - r, 255 - g, 255 - b]);
  }

  #rewrite(change) {
    const pixels = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let k = 0; k < pixels.data.length; k += 4)
      pixels.data.set([...change(...pixels.data.slice(k, k + 3)), 255], k);
    this.context.putImageData(pixels, 0, 0);
    this.#changed();
  }

  #stroke(place) {
    const white = this.grey ? "#ffffff" : this.#colour.value;
    this.context.fillStyle = this.#erase.checked ? "#000000" : white;
    dab(this.canvas, place, Number(this.#brush.value), (x, y, cover) => {
      this.context.globalAlpha = cover;
      this.context.fillRect(x, y, 1, 1);
    });
    this.context.globalAlpha = 1;
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
