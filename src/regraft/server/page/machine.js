// What the engine is doing, looked at once a second.
import { get, trouble } from "/page/api.js";
import { bytes, h, svg } from "/page/dom.js";

const EVERY_MS = 1000;
const POINTS = 60;

export function machine(main) {
  const body = h("div", { class: "stack" });
  const speeds = [];
  let before = null;
  let timer = null;
  let left = false;

  async function look() {
    try {
      const state = await get("/page/state");
      if (left) return;
      if (before) {
        const seconds = Math.max(state.time_s - before.time_s, 1e-3);
        speeds.push(Math.max(0, (state.num_tokens - before.num_tokens) / seconds));
        if (speeds.length > POINTS) speeds.shift();
      }
      before = state;
      body.replaceChildren(...shown(state, speeds));
      timer = setTimeout(look, EVERY_MS);
    } catch (problem) {
      before = null;
      if (!left) body.replaceChildren(trouble(problem, look));
    }
  }

  main.append(h("h1", {}, "Machine"), body);
  look();
  return () => {
    left = true;
    clearTimeout(timer);
  };
}

function shown(state, speeds) {
  const { memory } = state;
  const speed = speeds.at(-1) ?? 0;
  return [
    h("div", { class: "grid" },
      figure(speed.toFixed(speed < 10 ? 1 : 0), "tokens a second", line(speeds)),
      figure(state.num_running, "answers running", h("p", { class: "small soft" }, state.num_running ? "" : "Idle: nobody is asking.")),
      figure(state.num_waiting, "waiting", h("p", { class: "small soft" }, `of at most ${state.max_answers} running and waiting`))),
    h("section", { class: "panel" }, h("h2", {}, "Memory"), h("p", { class: "small soft" }, `${bytes(memory.total)} for keys, values and adapters`), pool(memory),
      h("ul", { class: "key" }, h("li", { class: "kv" }, `keys and values ${bytes(memory.kv)}`), h("li", { class: "adapters" }, `adapters ${bytes(memory.adapters)}`), h("li", {}, `free ${bytes(memory.free)}`)),
      h("p", { class: "small soft" }, `${bytes(memory.idle)} of it are kept only in case they are of use again.`)),
    h("div", { class: "grid" },
      names("In the running batch", state.running_adapters, "No adapter is running."),
      names("Waiting", state.waiting_adapters, "Nothing waits."),
      names("In memory", state.resident_adapters, "No adapter has been used yet.")),
  ];
}

function figure(value, what, more) {
  return h("section", { class: "panel" }, h("div", { class: "figure" }, String(value)), h("div", { class: "small soft" }, what), more);
}

function names(title, list, none) {
  const inside = list.length ? list.map((name) => h("span", { class: "tag" }, name)) : [h("p", { class: "small soft" }, none)];
  return h("section", { class: "panel stack" }, h("h3", {}, title), h("div", {}, ...inside));
}

function pool(memory) {
  const share = (count) => (1000 * count) / Math.max(memory.total, 1);
  const kv = share(memory.kv);
  return svg("svg", { viewBox: "0 0 1000 24", preserveAspectRatio: "none", height: 24, role: "img", "aria-label": `Memory: ${bytes(memory.kv)} keys and values, ${bytes(memory.adapters)} adapters, ${bytes(memory.free)} free` },
    svg("rect", { class: "bar rest", width: 1000, height: 24 }),
    svg("rect", { class: "bar", width: kv, height: 24 }),
    svg("rect", { class: "bar plugged", x: kv, width: share(memory.adapters), height: 24 }));
}

function line(speeds) {
  const most = Math.max(1, ...speeds);
  const points = speeds.map((speed, i) => `${(100 * i) / Math.max(speeds.length - 1, 1)},${30 - (28 * speed) / most}`);
  return svg("svg", { viewBox: "0 0 100 32", preserveAspectRatio: "none", height: 32, role: "img", "aria-label": "Tokens a second over the last minute" }, svg("polyline", { class: "line", points: points.join(" ") }));
}
