// Elements without markup: what a model or an adapter says only ever becomes text.

export function h(tag, options = {}, ...children) {
  return build(document.createElement(tag), options, children);
}

export function svg(tag, options = {}, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", tag), options, children);
}

function build(element, options, children) {
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let power = 0;
  for (; count >= 1024 && power < units.length - 1; power++) count /= 1024;
  return `${count.toFixed(power && count < 10 ? 1 : 0)} ${units[power]}`;
}

export const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

export function notice(title, text, ...more) {
  return h("section", { class: "panel notice" }, h("h2", {}, title), h("p", { class: "soft" }, text), ...more);
}
