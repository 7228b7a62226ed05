/** One request from what was asked to what is shown: previews, progress, waiting, and the answer. */

import { ApiError, ask, events } from "./api.js";

const PREVIEWS = 20;
const [PNG, EVENTS] = ["image/png", "text/event-stream"];

/** Whether the task draws samples of seeds, step by step. */
export const draws = (task) => task.accept.includes(EVENTS);

/** Whether those can be seen on their way. */
const streams = (task) => draws(task) && task.accept.includes(PNG);

/** How many samples a body asks for. */
export function countOf(task, body) {
  return body.seeds?.length ?? body.n ?? (task.needs.includes("seed_to") ? 8 : 1);
}

function blobOf(base64) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: PNG });
}

async function streamed(response, { onStep, onPreview }) {
  for await (const { name, data } of events(response)) {
    if (name === "preview") {
      onStep(data.call, data.calls);
      await onPreview(blobOf(data.image));
    } else if (name === "error") {
      throw new ApiError(500, data.error.field, data.error.message);
    } else if (name === "done") {
      const { image, ...facts } = data;
      return { blob: blobOf(image), facts };
    }
  }
  throw new ApiError(0, null, "The answer broke off: ask again.");
}

function factsOf(headers) {
  const told = [...headers].filter(([name]) => name.startsWith("kinfolk-"));
  return Object.fromEntries(told.map(([name, value]) => [name.slice(8).replaceAll("-", "_"), value]));
}

/** Ask `task` for `body`: {blob, facts} of pictures, else {data, facts}. The watchers are told of what happens. */
export async function perform(task, body, { signal, onWait, onStep, onPreview }) {
  if (streams(task)) {
    const address = `${task.address}?previews=${PREVIEWS}`;
    return streamed(await ask(address, body, { accept: EVENTS, signal, onWait }), { onStep, onPreview });
  }
  const response = await ask(task.address, body, { accept: task.accept[0], signal, onWait });
  const facts = factsOf(response.headers);
  if (task.accept[0] === PNG) return { blob: await response.blob(), facts };
  return { data: await response.json(), facts };
}

/** `body` with the seed that the server drew, so that it gives the same again. */
export function repeatable(task, body, facts) {
  const drawn = draws(task) && body.seed === undefined && body.seeds === undefined;
  return drawn ? { ...body, seed: Number(facts.seed) } : body;
}
