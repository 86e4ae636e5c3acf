// A conversation with the base, an adapter, or a mix.
import { stream, trouble } from "/page/api.js";
import { h, notice } from "/page/dom.js";

const MIX = "\u0000mix";

export function chat(main, catalogue, chosen) {
  const turns = [];
  let running = null;
  const weights = new Map();

  const log = h("div", { class: "turns", "aria-live": "polite", "aria-label": "Conversation" });
  const text = h("textarea", { id: "message", rows: "3", placeholder: "Ask something", "aria-label": "Message" });
  const send = h("button", { class: "primary", type: "submit" }, "Send");
  const stop = h("button", { type: "button", disabled: true, onclick: () => running?.abort() }, "Stop");
  const clear = h("button", { type: "button", class: "quiet", onclick: restart }, "New conversation");
  const form = h("form", { class: "stack", onsubmit: submit }, text, h("div", { class: "row end" }, clear, stop, send));

  const names = catalogue.adapters.map((each) => each.name);
  const who = h(
    "select",
    { id: "who", onchange: pick },
    h("option", { value: "" }, `${catalogue.base} (base)`),
    ...names.map((name) => h("option", { value: name }, name)),
    names.length > 1 ? h("option", { value: MIX }, "A mix…") : null,
  );
  if (chosen && names.includes(chosen)) who.value = chosen;
  const sliders = h("div", { class: "stack", hidden: true }, ...names.map(slider));
  const system = h("textarea", { rows: "2", placeholder: "None" });
  const temperature = h("input", { type: "number", min: "0", max: "2", step: "0.1", value: "0.7" });
  const longest = h("input", { type: "number", min: "1", max: "4096", value: "256" });
  const settings = h(
    "aside",
    { class: "panel stack", "aria-label": "Settings" },
    h("label", {}, "Who answers", who),
    sliders,
    h("label", {}, "System prompt", system),
    h("label", {}, "Temperature", temperature),
    h("label", {}, "Most tokens", longest),
  );

  function slider(name) {
    const shown = h("output", {}, "0");
    const range = h("input", {
      type: "range", min: "0", max: "1.5", step: "0.05", value: "0", "aria-label": `Weight of ${name}`,
      oninput: () => { weights.set(name, Number(range.value)); shown.textContent = range.value; },
    });
    return h("label", { class: "slider" }, h("span", {}, name), shown, range);
  }

  function pick() {
    sliders.hidden = who.value !== MIX;
  }

  function restart() {
    running?.abort();
    turns.length = 0;
    log.replaceChildren(notice("Nothing said yet", "Choose who answers, write below, and press Enter. Shift+Enter begins a new line."));
  }

  function answerer() {
    if (who.value !== MIX) return { body: { model: who.value }, label: who.selectedOptions[0].textContent };
    const mix = Object.fromEntries([...weights].filter(([, weight]) => weight));
    const label = Object.entries(mix).map(([name, weight]) => `${name} × ${weight}`).join(" + ");
    return { body: { model: "", adapters: mix }, label: label || `${catalogue.base} (no weights)` };
  }

  async function submit(event) {
    event?.preventDefault();
    const said = text.value.trim();
    if (!said || running || !form.reportValidity()) return;
    text.value = "";
    await ask(said);
  }

  async function ask(said) {
    if (!turns.length) log.replaceChildren();
    const { body, label } = answerer();
    const answer = h("div", { class: "said busy" });
    const question = h("div", { class: "turn user said" }, said);
    const turn = h("article", { class: "turn" }, h("div", { class: "who" }, label), answer);
    log.append(question, turn);
    turns.push({ role: "user", content: said });
    const begin = system.value.trim() ? [{ role: "system", content: system.value }] : [];
    running = new AbortController();
    [send.disabled, stop.disabled] = [true, false];
    try {
      const sent = { ...body, messages: [...begin, ...turns], temperature: Number(temperature.value), max_tokens: Number(longest.value) || 256 };
      await stream("/v1/chat/completions", sent, (piece) => answer.append(piece), running.signal);
      if (!answer.textContent) answer.append(h("span", { class: "soft" }, "(an empty answer)"));
      turns.push({ role: "assistant", content: answer.textContent });
    } catch (problem) {
      if (problem.name === "AbortError") {
        turns.push({ role: "assistant", content: answer.textContent });
        turn.append(h("p", { class: "small soft" }, "Stopped."));
      } else {
        turns.pop();
        turn.replaceWith(trouble(problem, function () { question.remove(); log.querySelector(".trouble")?.remove(); ask(said); }));
      }
    } finally {
      answer.classList.remove("busy");
      running = null;
      [send.disabled, stop.disabled] = [false, true];
    }
    log.lastElementChild?.scrollIntoView({ block: "nearest" });
  }

  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  });
  restart();
  main.append(h("h1", {}, "Chat"), h("div", { class: "chat" }, h("div", { class: "stack" }, log, form), settings));
  return () => running?.abort();
}
