/** The page: which model, which view, which task; the address after # holds all three. */

import { aboutPanel, aboutTasks } from "./about.js";
import { ApiError, token } from "./api.js";
import { Compare } from "./compare.js";
import { button, el, words } from "./dom.js";
import { ModelList, follow, schemaOf, wake } from "./models.js";
import { reference } from "./reference.js";
import { isPicture, routeOf } from "./schema.js";
import { taskPanel } from "./task.js";
import { prepareViewer } from "./viewer.js";

const PICTURE = "picture"; // the tab of all that is said of one picture
const work = document.getElementById("work");
const tabs = document.getElementById("tabs");
const notice = document.getElementById("notice");
const links = document.querySelectorAll("nav a");
const panels = new Map();
const compare = new Compare(schemaOf);
const list = new ModelList((address) =>
  go(
    "try",
    models.find((each) => each.address === address),
  ),
);
let models = [];
let drawn = "";

const where = () => {
  const [view = "try", route = "", task = ""] = location.hash.slice(1).split("/").map(decodeURIComponent);
  return { view: ["compare", "settings"].includes(view) ? view : "try", route, task };
};

function go(view, model, task) {
  const keep = where().view === "settings" && view === "try" && !task ? "settings" : view;
  location.hash = [keep, model ? routeOf(model) : where().route, ...(task ? [task] : [])]
    .map(encodeURIComponent)
    .join("/");
}

const chosen = () => models.find((each) => routeOf(each) === where().route) ?? models[0];

/** The tabs of a model: what it draws from seeds, what it says of a picture, then each other task. */
function tabsOf(model, openapi) {
  const names = Object.keys(model.tasks);
  const seeds = names.filter((name) => !model.tasks[name].takes);
  const about = isPicture(model.data) && aboutTasks(model, openapi).length ? [PICTURE] : [];
  return [...seeds, ...about, ...names.filter((name) => !seeds.includes(name))];
}

function panelOf(model, name, openapi) {
  const key = `${model.address}@${model.version}/${name}`;
  if (!panels.has(key)) {
    panels.set(
      key,
      name === PICTURE ? aboutPanel(model, aboutTasks(model, openapi), openapi) : taskPanel(model, name, openapi),
    );
  }
  return panels.get(key);
}

function showTabs(names, name, model) {
  const tab = (each) =>
    button(words(each), () => go("try", model, each), {
      role: "tab",
      id: `tab-${each}`,
      "aria-selected": String(each === name),
      "aria-controls": "work",
      tabindex: each === name ? 0 : -1,
    });
  const focused = tabs.contains(document.activeElement);
  tabs.replaceChildren(...names.map(tab));
  const at = tabs.querySelector("[aria-selected=true]");
  if (focused) at?.focus();
  if (at) tabs.scrollLeft = at.offsetLeft - tabs.offsetLeft - 40;
}

tabs.addEventListener("keydown", (event) => {
  const all = [...tabs.children];
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) all[(all.indexOf(document.activeElement) + step + all.length) % all.length].click();
});

function asleep(model) {
  const start = async () => {
    notice.replaceChildren(`Waking ${routeOf(model)} …`);
    await wake(model).catch(say);
    await look();
  };
  return el(
    "p",
    { class: "empty" },
    `${routeOf(model)} is ${model.state}. `,
    ["asleep", "unloaded"].includes(model.state) ? button("Wake it", start) : null,
  );
}

/** Draw the view that the address names, unless it is there already. */
async function show() {
  const { view, task } = where();
  const model = chosen();
  document.body.dataset.view = view;
  work.setAttribute("role", view === "try" ? "tabpanel" : "region");
  for (const link of links) link.setAttribute("aria-current", link.dataset.view === view ? "page" : "false");
  list.update(models, model?.address);
  if (view === "compare") await compare.update(models);
  const now = [view, model?.address, model?.version, model?.state, view === "try" && task].join("|");
  if (now === drawn || !model) return;
  drawn = now;
  if (view === "compare") {
    tabs.replaceChildren();
    work.replaceChildren(compare.element);
  } else if (!model.tasks) {
    tabs.replaceChildren();
    work.replaceChildren(asleep(model));
  } else {
    const openapi = await schemaOf(model);
    if (now === drawn) fill(view, model, task, openapi);
  }
}

function fill(view, model, task, openapi) {
  if (view === "settings") {
    tabs.replaceChildren();
    work.replaceChildren(reference(model, openapi));
    return;
  }
  const names = tabsOf(model, openapi);
  const name = names.includes(task) ? task : names[0];
  showTabs(names, name, model);
  const panel = panelOf(model, name, openapi);
  work.setAttribute("aria-labelledby", `tab-${name}`);
  work.replaceChildren(panel.element);
  panel.refresh();
}

function say(error) {
  notice.textContent = error?.message ?? "";
  document.getElementById("access").classList.toggle("wanted", error instanceof ApiError && error.status === 401);
}

for (const link of links) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    location.hash = [link.dataset.view, where().route].map(encodeURIComponent).join("/");
  });
}

const field = document.getElementById("token");
field.value = token.get();
field.addEventListener("change", () => {
  token.set(field.value.trim());
  look();
});
document.getElementById("access").addEventListener("submit", (event) => {
  event.preventDefault();
  field.blur();
});

document.getElementById("models").append(list.element);
prepareViewer((spec) => {
  const model = chosen();
  const name = Object.keys(model.tasks).find((each) => isPicture(model.tasks[each].takes));
  const same = spec.shape.join() === model.data.shape.join();
  notice.textContent = name && same ? "" : "It is kept for a model that takes pictures of this size.";
  if (name && same)
    schemaOf(model).then((openapi) => go("try", model, tabsOf(model, openapi).includes(PICTURE) ? PICTURE : name));
});
window.addEventListener("hashchange", () => show().catch(say));
const look = follow((found) => {
  models = found;
  show().catch(say);
}, say);
