// What every page does: its theme and its plots.
const $ = id => document.getElementById(id);
const touch = matchMedia("(pointer: coarse)").matches; // there a drag scrolls the page
const CONFIG = {responsive: true, displayModeBar: false};
const plots = document.querySelectorAll(".plot");

// Plotly takes colours, not variables.
function colour(variable) {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = variable;
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

// What figures have in common; its colours are those of the theme.
function themed(layout) {
  const font = {family: getComputedStyle(document.body).fontFamily, color: colour("var(--quiet)")};
  const hoverlabel = {bgcolor: colour("var(--surface)"), bordercolor: colour("var(--line)"), align: "left"};
  hoverlabel.font = {...font, color: colour("var(--ink)")};
  return {paper_bgcolor: "transparent", plot_bgcolor: "transparent", font, hoverlabel, ...layout};
}

function draw(node) {
  const figures = JSON.parse(node.nextElementSibling.textContent.replace(/var\(--[\w-]+\)/g, colour));
  const {data, layout} = figures[node.parentNode.querySelector("select")?.selectedIndex ?? 0];
  layout.dragmode = touch ? false : "zoom";
  layout.legend.itemclick = touch ? false : "toggle";
  Plotly.react(node, data, themed(layout), CONFIG);
}

const redraw = () => plots.forEach(draw);
const systemTheme = matchMedia("(prefers-color-scheme: dark)");
redraw();
systemTheme.addEventListener("change", redraw);
document.querySelectorAll(".panel > select").forEach(choice => choice.addEventListener("change", redraw));
$("theme").addEventListener("click", () => {
  const {dataset} = document.documentElement;
  dataset.theme = (dataset.theme ?? (systemTheme.matches ? "dark" : "light")) === "dark" ? "light" : "dark";
  redraw();
});
