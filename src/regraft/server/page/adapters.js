// The adapters and how good they are.
import { bytes, h, notice, percent, svg } from "/page/dom.js";

export function adapters(main, catalogue) {
  main.append(h("h1", {}, "Adapters"));
  if (!catalogue.adapters.length) {
    main.append(notice("No adapters yet", "Put an adapter's directory into the served folder; it appears here by itself."));
    return;
  }
  main.append(
    h("p", { class: "soft" }, `For ${catalogue.base}. Retention is the share of the teacher's score that is left; whiskers are 95\u00a0% intervals.`),
    h("div", { class: "grid" }, ...catalogue.adapters.map(shown)),
  );
}

function shown(each) {
  const { card } = each;
  const first = card?.examples[0];
  const to = encodeURIComponent(each.name);
  return h(
    "article",
    { class: "panel stack" },
    h("div", {}, h("h2", {}, each.name), h("p", { class: "small soft" }, origin(each))),
    card ? h("div", {}, h("div", { class: "figure" }, card.retention === null ? "–" : percent(card.retention)), h("div", { class: "small soft" }, `retention, ${card.metric} on ${card.n} examples`)) : null,
    card ? bars(card) : h("p", { class: "soft" }, "No report card: nobody has measured it on this base."),
    first ? h("div", { class: "small" }, h("div", { class: "soft" }, "For example"), h("div", { class: "said" }, first.prompt), h("div", { class: "said soft" }, `→ ${first.adapted}`)) : null,
    h("div", { class: "row" }, h("a", { href: `#chat/${to}`, "aria-label": `Chat with ${each.name}` }, "Chat"), h("a", { href: `#compare/${to}`, "aria-label": `Compare ${each.name}` }, "Compare"), h("span", { class: "small soft" }, bytes(each.bytes))),
  );
}

function origin(each) {
  if (!each.is_recovered) return "plugged in as it is";
  return each.parent ? `recovered from ${each.parent}` : "trained for this base";
}

// Three horizontal bars with whiskers.
function bars(card) {
  const arms = [["teacher", "Teacher", card.teacher], ["plugged", "Plugged in", card.plugged_in], ["adapted", "Recovered", card.adapted]];
  const most = Math.max(1e-9, ...arms.map(([, , arm]) => arm.ci95[1]), ...arms.map(([, , arm]) => arm.score));
  const x = (value) => 80 + (160 * Math.max(value, 0)) / most;
  const said = arms.map(([, name, arm]) => `${name} ${arm.score.toFixed(3)}`).join(", ");
  return svg(
    "svg",
    { viewBox: "0 0 290 78", role: "img", "aria-label": `Scores: ${said}` },
    ...arms.flatMap(([kind, name, arm], row) => {
      const y = 26 * row;
      return [
        svg("text", { x: 0, y: y + 16 }, name),
        svg("rect", { class: `bar ${kind}`, x: 80, y: y + 5, width: Math.max(x(arm.score) - 80, 1), height: 14, rx: 3 }),
        svg("line", { class: "whisker", x1: x(arm.ci95[0]), x2: x(arm.ci95[1]), y1: y + 12, y2: y + 12 }),
        svg("text", { class: "value", x: 288, y: y + 16, "text-anchor": "end" }, arm.score.toFixed(3)),
      ];
    }),
  );
}
