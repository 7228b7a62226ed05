/** Painting on a small canvas by mouse, finger, pen or keyboard. */

import { el } from "./dom.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The pixels within `radius` of a place: calls `visit(x, y, cover)` with how much of each is covered, 0 to 1. */
export function dab(canvas, [x, y], radius, visit) {
  for (let row = Math.floor(y - radius - 1); row <= y + radius + 1; row += 1) {
    for (let column = Math.floor(x - radius - 1); column <= x + radius + 1; column += 1) {
      const cover = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(column + 0.5 - x, row + 0.5 - y)));
      if (cover && row >= 0 && column >= 0 && row < canvas.height && column < canvas.width) visit(column, row, cover);
    }
  }
}

function placeOf(canvas, event) {
  const box = canvas.getBoundingClientRect();
  const across = (event.clientX - box.left) / box.width;
  return [across * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
}

/** Places from `from` to `to`, half a pixel apart. */
function* between([x, y], [toX, toY]) {
  const count = Math.max(1, Math.ceil(2 * Math.hypot(toX - x, toY - y)));
  for (let k = 1; k <= count; k += 1) yield [x + ((toX - x) * k) / count, y + ((toY - y) * k) / count];
}

function byPointer(canvas, stroke) {
  let last = null;
  const move = (event) => {
    if (!last) return;
    const place = placeOf(canvas, event);
    for (const each of between(last, place)) stroke(each);
    last = place;
  };
  const end = () => {
    last = null;
  };
  canvas.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    last = placeOf(canvas, event);
    stroke(last);
  });
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
}

function byKeyboard(canvas, cursor, stroke) {
  const place = [Math.floor(canvas.width / 2), Math.floor(canvas.height / 2)];
  const show = () => {
    cursor.style.left = `${(place[0] / canvas.width) * 100}%`;
    cursor.style.top = `${(place[1] / canvas.height) * 100}%`;
    cursor.style.width = `${100 / canvas.width}%`;
    cursor.style.height = `${100 / canvas.height}%`;
  };
  canvas.addEventListener("keydown", (event) => {
    const [right, down] = STEPS[event.key] ?? [0, 0];
    if (event.key === " ") stroke([place[0] + 0.5, place[1] + 0.5]);
    else if (!(event.key in STEPS)) return;
    event.preventDefault();
    place[0] = Math.min(canvas.width - 1, Math.max(0, place[0] + right));
    place[1] = Math.min(canvas.height - 1, Math.max(0, place[1] + down));
    show();
  });
  show();
}

/** A frame around `canvas` in which `stroke([x, y])`, in pixels of the canvas, is called along what is painted. */
export function paintable(canvas, stroke) {
  const cursor = el("div", { class: "cursor", "aria-hidden": "true" });
  canvas.tabIndex = 0;
  byPointer(canvas, stroke);
  byKeyboard(canvas, cursor, stroke);
  return el("div", { class: "paintable" }, canvas, cursor);
}
