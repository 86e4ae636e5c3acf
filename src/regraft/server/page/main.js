// Which view is shown, and in which light.
import { get, trouble } from "/page/api.js";
import { adapters } from "/page/adapters.js";
import { chat } from "/page/chat.js";
import { compare } from "/page/compare.js";
import { machine } from "/page/machine.js";

const VIEWS = { chat, compare, adapters, machine };
const THEME = "regraft.theme";
const main = document.getElementById("view");
let leave = () => {};
let shown = 0;

async function show(focus = true) {
  const [name, chosen] = location.hash.slice(1).split("/");
  const view = VIEWS[name] ? name : "chat";
  const turn = ++shown;
  leave();
  leave = () => {};
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${view[0].toUpperCase()}${view.slice(1)} · regraft`;
  try {
    const catalogue = await get("/page/adapters");
    if (turn !== shown) return;
    main.replaceChildren();
    leave = VIEWS[view](main, catalogue, chosen ? decodeURIComponent(chosen) : null) ?? leave;
  } catch (problem) {
    if (turn === shown) main.replaceChildren(trouble(problem, show));
  }
  if (focus) main.focus({ preventScroll: true });
}

const dark = matchMedia("(prefers-color-scheme: dark)");

function light() {
  const theme = localStorage.getItem(THEME) ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  const other = theme === "dark" ? "light" : "dark";
  const button = document.getElementById("theme");
  button.textContent = other === "dark" ? "Dark" : "Light";
  button.setAttribute("aria-label", `Switch to ${other} colours`);
  button.onclick = () => {
    localStorage.setItem(THEME, other);
    light();
  };
}

dark.addEventListener("change", light);
addEventListener("hashchange", () => show());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
light();
show(false);
