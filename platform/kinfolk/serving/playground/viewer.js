/** One picture, large: what it is, its neighbours, a download, and a way to hand it to the tasks that take one. */

import { button, el, save } from "./dom.js";
import { padFor } from "./picture.js";
import { isPicture } from "./schema.js";

let shown = { tiles: [], at: 0 };
let taken = () => {};

const canvas = el("canvas", { class: "large" });
const caption = el("p", { class: "caption", "aria-live": "polite" });
const place = el("span", { class: "limits" });
const use = button("Use as picture", takeIt, { class: "use" });
const [before, after] = [
  button("‹", () => move(-1), { "aria-label": "previous" }),
  button("›", () => move(1), { "aria-label": "next" }),
];
const dialog = el(
  "dialog",
  { class: "viewer", "aria-label": "Picture", onkeydown: byKey, onclick: outside },
  el(
    "div",
    { class: "inside" },
    canvas,
    caption,
    el(
      "div",
      { class: "tools" },
      before,
      place,
      after,
      el("span", { class: "space" }),
      use,
      button("Download", download, { class: "main" }),
      button("Close", () => dialog.close()),
    ),
  ),
);

/** Put the viewer on the page; `onTaken(spec)` is called when a picture becomes the one that tasks are given. */
export function prepareViewer(onTaken) {
  taken = onTaken;
  document.body.append(dialog);
}

/** Show the tile `at` of several: {canvas, caption, fileName, spec}. */
export function view(tiles, at) {
  shown = { tiles, at };
  draw();
  dialog.showModal();
}

function draw() {
  const { tiles, at } = shown;
  const tile = tiles[at];
  Object.assign(canvas, { width: tile.canvas.width, height: tile.canvas.height });
  canvas.getContext("2d").drawImage(tile.canvas, 0, 0);
  caption.textContent = tile.caption;
  place.textContent = `${at + 1} of ${tiles.length}`;
  use.hidden = !isPicture(tile.spec);
  before.disabled = at === 0;
  after.disabled = at === tiles.length - 1;
}

function move(by) {
  const at = shown.at + by;
  if (at < 0 || at >= shown.tiles.length) return;
  shown.at = at;
  draw();
}

function byKey(event) {
  if (event.key === "ArrowLeft") move(-1);
  if (event.key === "ArrowRight") move(1);
}

function outside(event) {
  if (event.target === dialog) dialog.close();
}

function download() {
  const name = `${shown.tiles[shown.at].fileName}.png`;
  canvas.toBlob((blob) => save(blob, name), "image/png");
}

function takeIt() {
  const { spec } = shown.tiles[shown.at];
  padFor(spec).use(canvas);
  dialog.close();
  taken(spec);
}
