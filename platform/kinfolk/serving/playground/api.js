/** Requests to the server of this page: the token, refusals, waiting while it is busy, and streams of events. */

const KEY = "kinfolk-token";
const MOST_TRIES = 6;

/** What the server refused, with the field that must change. */
export class ApiError extends Error {
  constructor(status, field, message, retryAfter = 0) {
    super(message);
    Object.assign(this, { status, field, retryAfter });
  }
}

/** The bearer token, kept until the tab is closed. */
export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

async function refusal(response) {
  const said = await response.json().catch(() => null);
  const error = said?.error ?? { field: null, message: `The server answered ${response.status}.` };
  return new ApiError(response.status, error.field, error.message, Number(response.headers.get("Retry-After")) || 1);
}

async function send(path, { headers = {}, ...options }) {
  const authorization = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...authorization }, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, null, "The server cannot be reached.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** What the server says at `path`, as JSON. */
export async function read(path) {
  return (await send(path, {})).json();
}

/** Ask a task. A server that is busy is asked again when it says; `onWait` is told the seconds left. */
export async function ask(address, body, { accept, signal, onWait }) {
  const headers = { Accept: accept, "Content-Type": "application/json" };
  for (let tries = 1; ; tries += 1) {
    try {
      return await send(address, { method: "POST", headers, body: JSON.stringify(body), signal });
    } catch (error) {
      if (error.status !== 503 || tries === MOST_TRIES) throw error;
      await countdown(error.retryAfter, signal, onWait);
    }
  }
}

async function countdown(seconds, signal, onWait) {
  for (let left = seconds; left > 0; left -= 1) {
    onWait(left);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    signal?.throwIfAborted();
  }
}

/** The events of an answer as they arrive: {name, data}. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    yield* blocks.map(event);
  }
}

function event(block) {
  const lines = block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]);
  const { event: name, data } = Object.fromEntries(lines);
  return { name, data: JSON.parse(data) };
}
