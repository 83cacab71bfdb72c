// What every part of the page uses, its head and its theme. The other scripts follow in the same scope.
const report = JSON.parse(document.getElementById("report").textContent);
const results = report.results;
const comparing = results.length > 1;
const images = report.images.map(([name, width, height, truth, predicted], index) => {
  const known = truth !== null;
  const errors = predicted.map(value => (known ? value - truth : null));
  const relative = errors.map(error => (known && truth > 0 ? error / truth : null));
  const perMegapixel = known ? truth / ((width * height) / 1e6) : null;
  return {index, name, width, height, truth, predicted, errors, relative, perMegapixel};
});
const scored = images.filter(image => image.truth !== null);
const state = {query: "", filter: "all", order: "", other: 1};

const $ = id => document.getElementById(id);
const MINUS = "\u2212",
  NONE = "\u2013";

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null));
  return node;
}

function number(value, digits = 1) {
  if (typeof value !== "number") return NONE;
  const text = Math.abs(value).toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
  return (value < 0 && /[1-9]/.test(text) ? MINUS : "") + text;
}
const signed = (value, digits = 1) => (value > 0 ? "+" : "") + number(value, digits);
const percent = value => (value === null ? NONE : signed(100 * value, Math.abs(value) < 0.1 ? 1 : 0) + "\u202f%");
const count = value => number(value, Number.isInteger(value) ? 0 : 1);
const plural = (amount, noun) => `${number(amount, 0)} ${noun}${amount === 1 ? "" : "s"}`;
const side = error => (error > 0 ? "over" : error < 0 ? "under" : "");
const digitsOf = (value, name) => (name === "nae" ? 3 : Math.abs(value) < 10 ? 2 : 1);
const metric = (value, name) => number(value, digitsOf(value, name));

// The blocks of the images follow this script: one is whole as soon as the next has begun.
const pause = () => new Promise(done => setTimeout(done, 30));
async function imageData(index) {
  while (document.readyState === "loading" && !$(`image-${index + 1}`)) await pause();
  return JSON.parse($(`image-${index}`).textContent);
}
const photoSource = data => `data:image/jpeg;base64,${data.photo}`;

const SERIES = ["--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--series-6"];
const colourOf = i => `var(${SERIES[i % SERIES.length]})`;
const swatch = i => el("i", {class: "swatch", style: `background:${colourOf(i)}`, "aria-hidden": "true"});

function showHeader() {
  const {summary} = results[0];
  const model = ({model, weights_sha256: hash}) =>
    [model?.name ?? model?.model_name, hash && `weights ${hash.slice(0, 8)}`].filter(Boolean).join(", ");
  const all = summary.images ?? images.length,
    failed = summary.failed?.length ?? 0;
  const totals = [
    el("b", {"data-total": "images"}, number(all, 0)),
    all === 1 ? " image" : " images",
    ", ",
    el("b", {"data-total": "scored"}, number(summary.scored ?? scored.length, 0)),
    " scored",
    ", ",
    el("b", {"data-total": "failed", class: failed ? "bad" : null}, number(failed, 0)),
    " failed",
  ];
  $("title").textContent = results.map(({label}) => label).join(comparing && results.length === 2 ? " and " : ", ");
  if (comparing) $("subtitle").append(`${plural(images.length, "image")} counted by ${results.length} models`);
  else $("subtitle").append(...totals, ...(model(summary) ? [el("span", {class: "dot"}), model(summary)] : []));
  // A path beside the page, and no address of a script: what a summary says is not to be trusted.
  const card = summary.model_card;
  if (!comparing && typeof card === "string" && /^[^:]+\.md$/.test(card))
    $("subtitle").append(el("span", {class: "dot"}), el("a", {href: card.split("/").map(encodeURIComponent).join("/")}, "model card"));
}

const systemTheme = matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.dataset.theme ?? (systemTheme.matches ? "dark" : "light");
function startTheme(changed) {
  // A browser may refuse storage to a page that comes from a file.
  const stored = action => {
    try {
      return action();
    } catch {
      return null;
    }
  };
  const chosen = stored(() => localStorage.getItem("report-theme"));
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  $("theme").addEventListener("click", () => {
    const next = theme() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    stored(() => localStorage.setItem("report-theme", next));
    changed();
  });
  systemTheme.addEventListener("change", changed);
}
