// Calls to this server, and what may go wrong with them.
import { h } from "/page/dom.js";

const KEY = "regraft.key";

export class Problem extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server does not answer. It may have been stopped.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const retry = Number(response.headers.get("Retry-After")) || null;
  throw new Problem(response.status, told?.error?.message ?? `The server answered ${response.status}.`, retry);
}

export const get = async (path) => (await call(path)).json();

// The text of an answer as it comes: onText is given each piece. Ends when the answer does.
export async function stream(path, body, onText, signal) {
  const response = await call(path, { method: "POST", body: JSON.stringify({ ...body, stream: true }), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const said = JSON.parse(data);
        if (said.error) throw new Problem(500, said.error.message);
        const choice = said.choices[0];
        onText(choice?.delta?.content ?? choice?.text ?? "");
      }
    }
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
  }
  throw new Problem(0, "The server went away before the answer was complete.");
}

const TITLES = { 0: "The server is gone", 401: "A key is needed", 429: "The server is full" };

// What is shown in place of what could not be had.
export function trouble(problem, again) {
  const wait = problem.retryAfter ? ` Try again in ${problem.retryAfter} s.` : "";
  const button =
    problem.status === 401
      ? h("button", { class: "primary", onclick: async () => (await askKey()) && again() }, "Enter a key")
      : h("button", { onclick: again }, "Try again");
  return h(
    "section",
    { class: "panel notice trouble", role: "alert" },
    h("h2", {}, TITLES[problem.status] ?? "That did not work"),
    h("p", { class: "soft" }, (problem.message ?? String(problem)) + wait),
    button,
  );
}

function askKey() {
  const dialog = document.getElementById("key");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const field = dialog.querySelector("input");
        const given = dialog.returnValue === "ok" && field.value.trim();
        if (given) sessionStorage.setItem(KEY, given);
        field.value = "";
        resolve(Boolean(given));
      },
      { once: true },
    );
  });
}
