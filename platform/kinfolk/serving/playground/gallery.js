/** Pictures of one answer as tiles, cut from the grid that the server draws; each opens in the viewer. */

import { button, el } from "./dom.js";
import { isPicture } from "./schema.js";
import { view } from "./viewer.js";

const MOST_SQUARE = 144; // more tiles fill whatever width there is
const TILE_SIZES = [
  [1, 256],
  [4, 160],
  [25, 112],
  [64, 80],
  [MOST_SQUARE, 56],
  [Infinity, 40],
]; // up to so many: pixels

/** Where each of `count` pictures of `shape` lies in a grid: a square of tiles with an even gap. */
export function places(grid, count, [, height, width]) {
  const columns = Math.ceil(Math.sqrt(count));
  const gap = columns > 1 ? (grid.width - columns * width) / (columns - 1) : 0;
  const place = (k) => [(k % columns) * (width + gap), Math.floor(k / columns) * (height + gap)];
  return Array.from({ length: count }, (_, k) => place(k));
}

/** A tile's size on the screen: whole pixels of the picture, where it is small. */
function tileSize(count, width) {
  const wanted = TILE_SIZES.find(([most]) => count <= most)[1];
  return Math.max(1, Math.round(wanted / width)) * width;
}

/** Tiles of `count` pictures of `spec`; `caption(k)` says what the k-th is, `fileName(k)` what it is saved as. */
export class Gallery {
  constructor(spec, count, { caption, fileName }) {
    this.spec = spec;
    this.cut = isPicture(spec);
    this.count = this.cut ? count : 1;
    const [height, width] = this.cut ? spec.shape.slice(1) : [1, 1];
    this.tiles = Array.from({ length: this.count }, (_, k) => {
      const canvas = el("canvas", { width, height });
      return { canvas, caption: this.cut ? caption(k) : "All samples", fileName: fileName(k), spec };
    });
    this.element = el(
      "div",
      { class: this.cut ? "gallery" : "gallery whole" },
      this.tiles.map((tile, k) => this.#tile(tile, k)),
    );
    if (this.cut) this.#measure(width);
  }

  #tile(tile, k) {
    const open = () => view(this.tiles, k);
    return button(tile.canvas, open, { class: "tile", title: tile.caption, "aria-label": `Enlarge: ${tile.caption}` });
  }

  #measure(width) {
    const size = tileSize(this.count, width);
    const columns = Math.ceil(Math.sqrt(this.count));
    this.element.style.gridTemplateColumns =
      this.count > MOST_SQUARE
        ? `repeat(auto-fill, minmax(${size}px, 1fr))`
        : `repeat(${columns}, minmax(0, ${size}px))`;
  }

  /** Draw the pictures of a grid's PNG. */
  async show(blob) {
    const grid = await createImageBitmap(blob);
    if (!this.cut) Object.assign(this.tiles[0].canvas, { width: grid.width, height: grid.height });
    const corners = this.cut ? places(grid, this.count, this.spec.shape) : [[0, 0]];
    this.tiles.forEach(({ canvas }, k) => canvas.getContext("2d").drawImage(grid, -corners[k][0], -corners[k][1]));
    grid.close();
  }
}

/** The pictures on the way between two seeds: one at a time under a slider, all of them below. */
export class Way extends Gallery {
  constructor(spec, count, names) {
    super(spec, count, names);
    const { width, height } = this.tiles[0].canvas;
    this.frame = el("canvas", { width, height, class: "frame", "aria-label": "The picture at the slider" });
    this.slider = el("input", {
      type: "range",
      min: 0,
      max: this.count - 1,
      value: 0,
      step: 1,
      "aria-label": "how far along the way",
      oninput: () => this.#at(),
    });
    this.caption = el("p", { class: "caption", "aria-live": "polite" });
    const strip = this.element;
    strip.classList.add("strip");
    strip.style.gridTemplateColumns = "";
    this.element = el("div", { class: "way" }, this.frame, this.slider, this.caption, strip);
  }

  async show(blob) {
    await super.show(blob);
    this.#at();
  }

  #at() {
    const { canvas, caption } = this.tiles[Number(this.slider.value)];
    Object.assign(this.frame, { width: canvas.width, height: canvas.height });
    this.frame.getContext("2d").drawImage(canvas, 0, 0);
    this.caption.textContent = caption;
    this.slider.setAttribute("aria-valuetext", caption);
  }
}
