/** What each task of a model takes and gives, read off the same documents as the controls. */

import { button, el, save, words } from "./dom.js";
import { limits, routeOf, settingsOf, sizeOf } from "./schema.js";

const usual = (setting) =>
  setting.required ? "required" : setting.default === null ? "left out" : String(setting.default);
const sortOf = ({ sort }) =>
  ({ given: "file or numbers", classes: "class, or a list", flag: "true or false" })[sort] ?? sort;

function row(setting) {
  const cells = [sortOf(setting), usual(setting), limits(setting), setting.description];
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, el("code", {}, setting.name)),
    cells.map((text) => el("td", {}, text)),
  );
}

function section(name, task, openapi) {
  const head = ["setting", "type", "default", "limits", "meaning"].map((text) => el("th", { scope: "col" }, text));
  const takes = task.takes ? `takes ${sizeOf(task.takes)}` : "takes seeds";
  const gives = task.gives
    ? `gives ${sizeOf(task.gives)}`
    : `gives numbers${task.unit ? ` in ${task.unit.replaceAll("_", " ")}` : ""}`;
  return el(
    "section",
    {},
    el("h3", { id: `task-${name}` }, words(name)),
    el(
      "p",
      { class: "caption" },
      el("code", {}, `POST ${task.address}`),
      ` ${takes}, ${gives}, as ${task.accept.join(", ")}`,
    ),
    el(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": `settings of ${words(name)}` },
      el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, settingsOf(openapi, name).map(row))),
    ),
  );
}

/** The page of one model's settings. */
export function reference(model, openapi) {
  const keep = () => save(new Blob([JSON.stringify(openapi, null, 2)]), `${routeOf(model)}-openapi.json`);
  return el(
    "div",
    { class: "reference" },
    el("h2", {}, routeOf(model)),
    el(
      "p",
      { class: "caption" },
      `${model.family}, version ${model.version}, ${sizeOf(model.data)}. `,
      button("Save as OpenAPI", keep, { class: "quiet" }),
    ),
    Object.entries(model.tasks).map(([name, task]) => section(name, task, openapi)),
  );
}
