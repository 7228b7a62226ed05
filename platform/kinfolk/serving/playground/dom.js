/** Elements made in one call, so that no text of the server is ever read as HTML. */

/** An element with attributes, listeners (onclick: a function) and children; null and false children are left out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}

/** A button that sends no form. */
export const button = (text, onclick, attributes = {}) =>
  el("button", { type: "button", onclick, ...attributes }, text);

let made = 0;

/** An id that no other element has. */
export const fresh = (name) => `${name}-${(made += 1)}`;

/** Names of tasks and settings as words. */
export const words = (name) => name.replaceAll("_", " ");

/** A number as a reader wants it: six figures at most. */
export const shown = (number) => (number === null ? "not finite" : String(Number(number.toPrecision(6))));

/** Scroll to `element` where no more than its edge is in the window. */
export function bring(element) {
  const edge = window.innerHeight - 120; // pixels
  if (element.getBoundingClientRect().top > edge) element.scrollIntoView({ block: "start", behavior: "smooth" });
}

/** Hand a file to the user. */
export function save(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
