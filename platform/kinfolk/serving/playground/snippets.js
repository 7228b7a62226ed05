/** The same request as a line of `curl` and as a call in Python. */

import { token } from "./api.js";
import { button, el, fresh } from "./dom.js";
import { routeOf } from "./schema.js";

const FILES = { "image/png": "png", "application/json": "json", "application/x-npy": "npy" };
const VARIABLE = "KINFOLK_API_TOKEN"; // the token itself is never written out

/** A text that a shell reads as one word. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function json(value) {
  if (Array.isArray(value)) return `[${value.map(json).join(", ")}]`;
  return JSON.stringify(value);
}

const python = (value) => {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  return { true: "True", false: "False", null: "None" }[String(value)] ?? JSON.stringify(value);
};

/** The line of `curl` that gets what is shown, as a file. */
export function curl({ model, name, task, body }) {
  const accept = task.accept[0];
  const settings = Object.entries(body).map(([key, value]) => `${json(key)}: ${json(value)}`);
  return [
    `curl -sS ${quoted(location.origin + task.address)}`,
    ...(token.get() ? [`-H "Authorization: Bearer $${VARIABLE}"`] : []),
    `-H ${quoted(`Accept: ${accept}`)}`,
    "-H 'Content-Type: application/json'",
    `-d ${quoted(`{${settings.join(", ")}}`)}`,
    `-o ${routeOf(model)}-${name}.${FILES[accept]}`,
  ].join(" \\\n  ");
}

/** The call in Python that gets what is shown. */
export function pythonCall({ model, name, body }) {
  const files = ["x", "mask"].filter((key) => typeof body[key] === "string");
  const argument = ([key, value]) => `${key}=${files.includes(key) ? `b64decode(${python(value)})` : python(value)}`;
  const imports = [
    ...(files.length ? ["from base64 import b64decode"] : []),
    ...(token.get() ? ["import os"] : []),
    ...(files.length || token.get() ? [""] : []),
    "from kinfolk.client import Client",
  ];
  const access = token.get() ? `, token=os.environ["${VARIABLE}"]` : "";
  const call = `${name}(${Object.entries(body).map(argument).join(", ")})`;
  const client = `model = Client("${location.origin}"${access}).model("${routeOf(model)}")`;
  return [...imports, "", client, `answer = model.${call}`].join("\n");
}

const LANGUAGES = { curl, Python: pythonCall };

/** A folded part of the page with the request in each language, and a button that copies it. */
export function snippets(request, open) {
  const code = el("code", {});
  const said = el("span", { class: "limits", role: "status" });
  const copy = async () => {
    await navigator.clipboard.writeText(code.textContent).then(
      () => (said.textContent = "Copied."),
      () => (said.textContent = "Select the text and copy it."),
    );
  };
  const name = fresh("language");
  const choose = (write) => {
    code.textContent = write(request);
    said.textContent = "";
  };
  const tabs = Object.entries(LANGUAGES).map(([language, write], k) =>
    el(
      "label",
      { class: "class" },
      el("input", { type: "radio", name, value: language, checked: k === 0, onchange: () => choose(write) }),
      el("span", {}, language),
    ),
  );
  choose(curl);
  const bar = el(
    "div",
    { class: "tools" },
    el("div", { class: "classes", role: "radiogroup", "aria-label": "language" }, tabs),
    button("Copy", copy),
    said,
  );
  return el("details", { class: "code", open }, el("summary", {}, "As code"), bar, el("pre", { tabindex: 0 }, code));
}
