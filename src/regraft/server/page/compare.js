// One prompt, four answers: what compression takes from an adapter, and what recovery gives back.
import { stream, trouble } from "/page/api.js";
import { h, notice } from "/page/dom.js";

export function compare(main, catalogue, chosen) {
  const aborts = new Set();
  const known = catalogue.adapters.filter((each) => each.is_recovered);
  const listed = known.length ? known : catalogue.adapters;
  main.append(h("h1", {}, "Compare"));
  if (!listed.length) {
    main.append(notice("No adapters yet", "Put an adapter's directory into the served folder; it appears here by itself."));
    return;
  }
  const who = h("select", { onchange: fill }, ...listed.map((each) => h("option", { value: each.name }, each.name)));
  if (listed.some((each) => each.name === chosen)) who.value = chosen;
  const prompt = h("textarea", { rows: "4", required: true });
  const form = h("select", {}, h("option", { value: "text" }, "as plain text"), h("option", { value: "chat" }, "as a conversation"));
  const examples = h("div", { class: "stack" });
  const arms = h("div", { class: "arms", "aria-live": "polite" });
  const go = h("button", { class: "primary" }, "Compare");

  function adapter() {
    return listed.find((each) => each.name === who.value);
  }

  function fill() {
    const rows = adapter().card?.examples ?? [];
    form.value = rows.some((row) => /^(user|system): /.test(row.prompt)) ? "chat" : "text";
    examples.replaceChildren(
      ...(rows.length ? [h("p", { class: "small soft" }, "Prompts from its report card")] : []),
      ...rows.map((row) => h("button", { type: "button", class: "example", title: row.prompt, onclick: () => { prompt.value = row.prompt; } }, shortened(row.prompt))),
    );
    prompt.value = rows[0]?.prompt ?? "";
    arms.replaceChildren(notice("Nothing compared yet", "The same prompt goes to the base and to the adapter before and after its recovery."));
  }

  function shortened(text) {
    return form.value === "chat" ? turns(text).at(-1).content : text;
  }

  function arm(title, under, text) {
    const said = h("div", { class: "said" }, text ?? "");
    const box = h("article", { class: "panel arm stack" }, h("div", {}, h("h3", {}, title), h("div", { class: "who" }, under)), said);
    return { box, said };
  }

  async function live(title, model) {
    const made = arm(title, model || catalogue.base);
    const abort = new AbortController();
    aborts.add(abort);
    const isChat = form.value === "chat";
    const body = isChat ? { messages: turns(prompt.value) } : { prompt: prompt.value };
    const path = isChat ? "/v1/chat/completions" : "/v1/completions";
    arms.append(made.box);
    made.said.classList.add("busy");
    try {
      await stream(path, { ...body, model, temperature: 0, max_tokens: 128 }, (piece) => made.said.append(made.said.textContent ? piece : piece.trimStart()), abort.signal);
      if (!made.said.textContent) made.said.append(h("span", { class: "soft" }, "(an empty answer)"));
    } catch (problem) {
      if (problem.name !== "AbortError") made.box.append(trouble(problem, run));
    } finally {
      made.said.classList.remove("busy");
      aborts.delete(abort);
    }
  }

  async function run(event) {
    event?.preventDefault();
    if (!prompt.reportValidity()) return;
    leave();
    const each = adapter();
    const row = each.card?.examples.find((example) => example.prompt.trim() === prompt.value.trim());
    arms.replaceChildren();
    go.disabled = true;
    const work = [live("Base", "")];
    arms.append(arm("Teacher", "recorded", row?.teacher ?? missing(each, "teacher’s")).box);
    if (!each.is_recovered) work.push(live("Adapter plugged in", each.name));
    else if (each.plugged_in) work.push(live("Adapter plugged in", each.plugged_in));
    else arms.append(arm("Adapter plugged in", "recorded", row?.plugged_in ?? "The original adapter is not served here; put it into the folder to see its answers.").box);
    if (each.is_recovered) work.push(live("Adapter recovered", each.name));
    await Promise.all(work);
    go.disabled = false;
  }

  function missing(each, whose) {
    return each.card ? `The report card has the ${whose} answers to its own prompts only.` : "This adapter has no report card.";
  }

  function leave() {
    for (const abort of aborts) abort.abort();
  }

  main.append(
    h(
      "form",
      { class: "chat", onsubmit: run },
      h("div", { class: "stack" }, h("label", {}, "Prompt", prompt), h("div", { class: "row end" }, go)),
      h("aside", { class: "panel stack" }, h("label", {}, "Adapter", who), h("label", {}, "Sent", form), examples),
    ),
    arms,
  );
  fill();
  return leave;
}

// The report card shows a conversation as "role: text" lines.
function turns(text) {
  const parts = text.split(/^(system|user|assistant): /m);
  if (parts.length < 3) return [{ role: "user", content: text }];
  const found = [];
  for (let i = 1; i < parts.length; i += 2) found.push({ role: parts[i], content: parts[i + 1].trim() });
  return found;
}
