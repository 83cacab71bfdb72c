// The numbers: totals or their comparison, errors by count, localisation, failures, and what is folded away.
const METRICS = {mae: "MAE", mse: "MSE (root)", nae: "NAE"};
const EXPLAINED = {
  mae: "mean absolute error",
  mse: "root mean squared error",
  nae: "mean of error / truth",
};

function interval(entry, name) {
  if (typeof entry?.low !== "number" || typeof entry.high !== "number") return "";
  const digits = digitsOf(entry.value, name);
  return `${number(entry.low, digits)} to ${number(entry.high, digits)}`;
}

function tile(title, value, note, key = null) {
  return el(
    "div",
    {class: "tile"},
    el("h3", {}, title),
    el("p", {class: "value", "data-total": key}, value),
    el("p", {class: "quiet"}, note),
  );
}

function showTotals() {
  const summary = results[0].summary;
  const tiles = Object.keys(METRICS)
    .filter(name => summary[name])
    .map(name => {
      const entry = summary[name];
      const range = interval(entry, name);
      const note = [EXPLAINED[name], range && `${range} (95\u202f%)`].filter(Boolean).join("\n");
      return tile(METRICS[name], metric(entry.value, name), note, name);
    });
  const predicted = images.reduce((sum, image) => sum + image.predicted[0], 0);
  const truth = scored.reduce((sum, image) => sum + image.truth, 0);
  const ofScored = scored.reduce((sum, image) => sum + image.predicted[0], 0);
  tiles.push(
    scored.length
      ? tile(
          "Objects",
          number(ofScored, 0),
          `predicted, of ${number(truth, 0)} annotated\n` +
            (truth ? `${percent((ofScored - truth) / truth)} in total` : ""),
        )
      : tile("Objects", number(predicted, 0), "predicted in total"),
  );
  if (typeof summary.images_per_second === "number") {
    tiles.push(
      tile("Speed", number(summary.images_per_second, summary.images_per_second < 10 ? 2 : 1), "images per second"),
    );
  }
  $("numbers").append(el("div", {class: "tiles"}, ...tiles));
}

// Every result's value with its interval as a whisker on an axis that all of them share.
function compareTotals() {
  const panels = Object.keys(METRICS)
    .filter(name => results.some(({summary}) => summary[name]))
    .map(name => {
      const entries = results.map(({summary}) => summary[name] ?? {});
      const numbers = entries
        .flatMap(({value, low, high}) => [value, low, high])
        .filter(value => typeof value === "number");
      const [least, most] = [Math.min(...numbers), Math.max(...numbers)];
      const place = value => 4 + (92 * (value - least)) / (most - least || 1);
      const lines = entries.map((entry, i) =>
        el(
          "div",
          {class: "versus"},
          el("span", {class: "label"}, swatch(i), results[i].label),
          el("span", {class: "value", "data-total": `${name}-${i}`}, metric(entry.value, name)),
          el(
            "span",
            {class: "whisker", "aria-hidden": "true"},
            interval(entry) && el("i", {style: `left:${place(entry.low)}%;right:${100 - place(entry.high)}%`}),
            typeof entry.value === "number"
              ? el("b", {style: `left:${place(entry.value)}%;background:${colourOf(i)}`})
              : null,
          ),
          el("span", {class: "quiet"}, interval(entry, name)),
        ),
      );
      return el(
        "div",
        {class: "tile"},
        el("h3", {}, METRICS[name]),
        el("p", {class: "quiet"}, `${EXPLAINED[name]}, 95\u202f% intervals`),
        ...lines,
      );
    });
  $("numbers").append(
    el("div", {class: "tiles wide"}, ...panels),
    ...report.paired.map((pair, i) => paired(pair, i + 1)),
  );
  if (report.left_out.length) {
    $("numbers").append(
      el(
        "p",
        {class: "quiet"},
        `${plural(report.left_out.length, "image")} failed in one of the results ` +
          `and stand${report.left_out.length === 1 ? "s" : ""} in no comparison: ${report.left_out.join(", ")}`,
      ),
    );
  }
}

function paired(pair, other) {
  if (!pair.images) return el("p", {class: "quiet"}, "No image is annotated: the errors cannot be compared.");
  const [first, second] = [results[0].label, results[other].label];
  const {low, high} = pair.mae;
  const [verdict, where] =
    low > 0
      ? [`${first} is better`, "above"]
      : high < 0
        ? [`${second} is better`, "below"]
        : ["No clear difference", "on both sides of"];
  const line = name => {
    const [change, least, most] = ["value", "low", "high"].map(key =>
      signed(pair[name][key], digitsOf(pair[name].value)),
    );
    return el(
      "span",
      {},
      `${METRICS[name]} `,
      el("b", {"data-paired": `${name}-${other}`}, change),
      el("span", {class: "quiet"}, ` (${least} to ${most})`),
    );
  };
  return el(
    "div",
    {class: "verdict"},
    el("p", {class: "head"}, verdict),
    el("p", {}, `${second} minus ${first}, same images: `, line("mae"), "; ", line("mse")),
    el(
      "p",
      {class: "quiet"},
      `The paired 95\u202f% interval of the MAE lies ${where} zero ` + `(${plural(pair.images, "image")}, bootstrap).`,
    ),
  );
}

function panel(title, note, ...content) {
  return el("div", {class: "panel"}, el("h2", {}, title), note && el("p", {class: "quiet"}, note), ...content);
}

function grid(heads, rows) {
  return el(
    "div",
    {class: "scroll"},
    el(
      "table",
      {class: "grid"},
      el("thead", {}, el("tr", {}, ...heads.map(head => el("th", {scope: "col"}, head)))),
      el(
        "tbody",
        {},
        ...rows.map(([first, ...rest]) =>
          el("tr", {}, el("th", {scope: "row"}, first), ...rest.map(value => el("td", {}, value))),
        ),
      ),
    ),
  );
}

function showBins() {
  const bins = results[0].summary.bins;
  if (!bins?.length || !bins.some(bin => bin.images)) return;
  const most = Math.max(...results.flatMap(({summary}) => (summary.bins ?? []).map(bin => bin.mae ?? 0))) || 1;
  const bar = (value, i) =>
    results.length > 2
      ? metric(value)
      : el(
          "span",
          {class: "bar-cell"},
          el("i", {
            style: `width:${(100 * (value ?? 0)) / most}%;background:${comparing ? colourOf(i) : "var(--accent)"}`,
          }),
          el("span", {}, metric(value)),
        );
  const rows = bins.map((bin, at) => [
    el(
      "span",
      {class: "whole"},
      number(bin.from, 0) + (typeof bin.to === "number" ? `\u2013${number(bin.to, 0)}` : " +"),
    ),
    number(bin.images, 0),
    ...results.flatMap(({summary}, i) => {
      const entry = summary.bins?.[at] ?? {};
      return comparing ? [bar(entry.mae, i)] : [bar(entry.mae, i), metric(entry.mse)];
    }),
  ]);
  const heads = comparing
    ? results.map((result, i) => el("span", {}, swatch(i), `MAE, ${result.label}`))
    : ["MAE", "MSE (root)"];
  $("tables").append(
    panel(
      "Errors by count",
      "Images grouped by how many objects are annotated.",
      grid(["Count", "Images", ...heads], rows),
    ),
  );
}

function showLocalisation() {
  const share = value => (typeof value === "number" ? number(100 * value, 1) : NONE);
  const named = key =>
    /^\d+$/.test(key) ? `within ${key} px` : key === "qnrf" ? "mean, 1 to 100 px" : key.toUpperCase();
  const keys = [...new Set(results.flatMap(({summary}) => Object.keys(summary.localisation ?? {})))];
  const rows = keys
    .flatMap(key => results.map(({label, summary}, i) => [key, label, summary.localisation?.[key], i]))
    .filter(([, , entry]) => entry)
    .map(([key, label, entry, i]) => [
      comparing ? el("span", {}, swatch(i), `${label}, ${named(key)}`) : named(key),
      share(entry.precision),
      share(entry.recall),
      share(entry.f1),
      share(entry.auc),
    ]);
  if (!rows.length) return;
  const all = ["", "Precision", "Recall", "F1", "AUC"];
  const used = all.map((_, column) => column === 0 || rows.some(row => row[column] !== NONE));
  const keep = row => row.filter((_, column) => used[column]);
  $("tables").append(panel("Localisation", "Heads found one to one, in per cent.", grid(keep(all), rows.map(keep))));
}

function showFailures() {
  const failures = new Map(); // the same failure of several results is one
  for (const {label, summary} of results) {
    for (const [name, reason] of summary.failed ?? []) {
      const key = JSON.stringify([name, reason]);
      failures.set(key, [...(failures.get(key) ?? []), label]);
    }
  }
  if (!failures.size) return;
  $("failures").hidden = false;
  $("failures-title").textContent = `${plural(failures.size, "image")} failed`;
  $("failures")
    .querySelector("ul")
    .append(
      ...[...failures].map(([key, labels]) => {
        const [name, reason] = JSON.parse(key);
        return el(
          "li",
          {},
          el("b", {}, name),
          ` ${reason}`,
          comparing ? el("span", {class: "quiet"}, ` (${labels.join(", ")})`) : null,
        );
      }),
    );
}

function flatten(value, prefix = "") {
  if (value === null || typeof value !== "object") return [[prefix, value === null ? NONE : String(value)]];
  if (Array.isArray(value))
    return [[prefix, value.map(part => (typeof part === "object" ? JSON.stringify(part) : part)).join(", ")]];
  return Object.entries(value).flatMap(([key, part]) => flatten(part, prefix ? `${prefix}.${key}` : key));
}

// What differs between the results is marked.
function showDetails() {
  for (const [title, ...keys] of [
    ["Model", "model", "weights_sha256"],
    ["Configuration", "configuration"],
    ["Versions", "versions"],
  ]) {
    const columns = results.map(
      ({summary}) => new Map(keys.flatMap(key => flatten(summary[key] ?? {}, key === "weights_sha256" ? key : ""))),
    );
    const names = [...new Set(columns.flatMap(column => [...column.keys()]))];
    if (!names.length) continue;
    const rows = names.map(name => {
      const values = columns.map(column => column.get(name) ?? NONE);
      const differs = values.some(value => value !== values[0]);
      return el(
        "tr",
        {class: differs ? "differs" : null},
        el("th", {scope: "row"}, name),
        ...values.map(value => el("td", {}, value)),
      );
    });
    const head = comparing
      ? el("thead", {}, el("tr", {}, el("th"), ...results.map(({label}) => el("th", {scope: "col"}, label))))
      : null;
    $("details").append(
      el(
        "details",
        {class: "panel"},
        el("summary", {}, title),
        el("div", {class: "scroll"}, el("table", {class: "pairs"}, head, el("tbody", {}, ...rows))),
      ),
    );
  }
}

showHeader();
if (comparing) compareTotals();
else showTotals();
showBins();
showLocalisation();
showFailures();
showDetails();
