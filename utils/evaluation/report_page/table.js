// The list of images: order, filter, search, and rows that are made as the reader comes to them.
const ROWS_AT_ONCE = 60;
const size = error => (error === null ? null : Math.abs(error));
const worst = image => Math.max(...image.errors.map(Math.abs));
const change = image => (image.truth === null ? null : Math.abs(image.errors[state.other]) - Math.abs(image.errors[0]));

const ORDERS = {
  name: {label: "Name", key: image => image.name},
  file: {label: "As evaluated", key: image => image.index},
  truth: {label: "Truth", key: image => image.truth},
  predicted: {label: "Predicted", key: image => image.predicted[0]},
  error: {label: "Error", key: image => size(image.errors[0])},
  relative: {label: "Relative error", key: image => size(image.relative[0])},
  size: {label: "Size", key: image => image.width * image.height},
  change: {label: "Difference", key: change},
};
results.forEach((result, i) => {
  ORDERS[`error-${i}`] = {label: `Error of ${result.label}`, key: image => size(image.errors[i])};
});

// [order, descending, what the menu calls it]
const MENU = comparing
  ? [
      ["change", true, `Most in favour of ${results[0].label}`],
      ["change", false, `Least in favour of ${results[0].label}`],
      ...results.flatMap(({label}, i) => [
        [`error-${i}`, true, `Worst of ${label} first`],
        [`error-${i}`, false, `Best of ${label} first`],
      ]),
      ["truth", true, "Most objects first"],
      ["truth", false, "Fewest objects first"],
      ["name", false, "By name"],
    ]
  : [
      ...(scored.length
        ? [
            ["error", true, "Worst first"],
            ["error", false, "Best first"],
            ["relative", true, "Worst relative error first"],
            ["truth", true, "Most objects first"],
            ["truth", false, "Fewest objects first"],
          ]
        : []),
      ["predicted", true, "Most predicted first"],
      ["predicted", false, "Fewest predicted first"],
      ["name", false, "By name"],
      ["file", false, "As evaluated"],
      ["size", true, "Largest picture first"],
    ];

const ranked = [...scored].sort((a, b) => worst(b) - worst(a));
const WORST = new Set(ranked.slice(0, Math.max(1, Math.ceil(scored.length / 10))));
const FILTERS = comparing
  ? {
      all: ["All", () => true],
      worst: ["Worst 10\u202f%", image => WORST.has(image)],
      first: [`${results[0].label} nearer`, image => change(image) > 0],
      other: [null, image => change(image) < 0],
    }
  : {
      all: ["All", () => true],
      worst: ["Worst 10\u202f%", image => WORST.has(image)],
      over: ["Over", image => image.errors[0] > 0],
      under: ["Under", image => image.errors[0] < 0],
    };

// [order, heading, class, content]
const COLUMNS = [
  [null, "", "thumb", image => el("img", {alt: "", width: 76, height: 54, "data-image": image.index})],
  ["name", "Image", "name", image => el("button", {type: "button"}, image.name)],
  ["truth", "Truth", "n truth", image => count(image.truth)],
  ...(comparing
    ? [
        ...results.map((result, i) => [
          `error-${i}`,
          result.label,
          "n result",
          image =>
            el(
              "span",
              {},
              el("span", {class: "tag"}, swatch(i), result.label),
              number(image.predicted[i]),
              el("small", {class: side(image.errors[i])}, image.truth === null ? "" : signed(image.errors[i])),
            ),
        ]),
        [
          "change",
          "Difference",
          "n change",
          image => el("span", {class: "delta"}, image.truth === null ? NONE : signed(change(image))),
        ],
      ]
    : [
        ["predicted", "Predicted", "n predicted", image => number(image.predicted[0])],
        [
          "error",
          "Error",
          "n error",
          image => el("span", {class: side(image.errors[0])}, image.truth === null ? NONE : signed(image.errors[0])),
        ],
        [
          "relative",
          "Relative",
          "n relative",
          image => el("span", {class: side(image.errors[0])}, percent(image.relative[0])),
        ],
      ]),
  ["size", "Size", "n size", image => `${image.width} \u00d7 ${image.height}`],
];

const ERRORS = /\b(truth|error|relative|change)\b/; // columns that are empty where nothing is annotated
const columns = COLUMNS.filter(([, , kind]) => scored.length || !ERRORS.test(kind));

let listed = [],
  made = 0;

function setOrder(order, descending) {
  state.order = `${order}:${descending ? "down" : "up"}`;
  list();
}

function sorted(chosen) {
  const [order, direction] = state.order.split(":");
  const {key} = ORDERS[order],
    sign = direction === "down" ? -1 : 1;
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", {numeric: true}) : a - b);
  return chosen
    .map(image => [key(image), image])
    .sort(([a, first], [b, second]) => {
      // What is unknown comes last, both ways.
      if (a === null || b === null) return (a === null) - (b === null) || first.index - second.index;
      return sign * compare(a, b) || first.index - second.index;
    })
    .map(([, image]) => image);
}

function list() {
  const query = state.query.trim().toLowerCase();
  listed = sorted(images.filter(image => FILTERS[state.filter][1](image) && image.name.toLowerCase().includes(query)));
  $("list").tBodies[0].replaceChildren();
  made = 0;
  makeRows();
  const [order, direction] = state.order.split(":");
  for (const head of $("list").tHead.querySelectorAll("th[data-order]")) {
    const here = head.dataset.order === order;
    head.setAttribute("aria-sort", here ? (direction === "down" ? "descending" : "ascending") : "none");
  }
  $("order").value = MENU.some(([name, down]) => `${name}:${down ? "down" : "up"}` === state.order) ? state.order : "";
  for (const button of $("filters").children)
    button.setAttribute("aria-pressed", button.dataset.filter === state.filter);
  $("shown").textContent =
    listed.length === images.length
      ? plural(images.length, "image")
      : `${number(listed.length, 0)} of ${plural(images.length, "image")}`;
  $("nothing").hidden = listed.length > 0;
  $("list").hidden = !listed.length;
  $("list").setAttribute("aria-rowcount", listed.length + 1);
}

// Thumbnails are read when their row comes near; a row that is far below the reader does not exist yet.
const thumbnails = new IntersectionObserver(
  entries => {
    for (const {isIntersecting, target} of entries) {
      if (!isIntersecting) continue;
      thumbnails.unobserve(target);
      imageData(Number(target.dataset.image)).then(data => {
        target.src = photoSource(data);
      });
    }
  },
  {rootMargin: "300px"},
);

function makeRows() {
  const rows = listed.slice(made, made + ROWS_AT_ONCE).map((image, i) => {
    const cells = columns.map(([, heading, kind, content]) =>
      el("td", {class: kind, role: "cell", "data-label": heading}, content(image)),
    );
    thumbnails.observe(cells[0].firstChild);
    return el("tr", {role: "row", "aria-rowindex": made + i + 2, "data-image": image.index}, ...cells);
  });
  $("list").tBodies[0].append(...rows);
  made += rows.length;
}

function startList(open) {
  $("list").tHead.append(
    el(
      "tr",
      {role: "row"},
      ...columns.map(([order, heading, kind]) =>
        el(
          "th",
          {scope: "col", role: "columnheader", class: kind, "data-order": order},
          order ? el("button", {type: "button"}, heading) : heading || el("span", {class: "hidden"}, "Photograph"),
        ),
      ),
    ),
  );
  $("list").tHead.addEventListener("click", event => {
    const order = event.target.closest("th[data-order]")?.dataset.order;
    if (!order) return;
    // The first click shows what matters: the largest number, or the first name.
    const [now, direction] = state.order.split(":");
    setOrder(order, now === order ? direction === "up" : order !== "name");
  });
  $("list").tBodies[0].addEventListener("click", event => {
    const row = event.target.closest("tr");
    if (row && !getSelection().toString()) open(Number(row.dataset.image));
  });
  $("order").append(
    el("option", {value: "", hidden: true}, "By column"),
    ...MENU.map(([order, down, label]) => el("option", {value: `${order}:${down ? "down" : "up"}`}, label)),
  );
  $("order").addEventListener("change", () => {
    state.order = $("order").value;
    list();
  });
  if (scored.length) {
    $("filters").append(
      ...Object.entries(FILTERS).map(([name, [label]]) =>
        el(
          "button",
          {
            type: "button",
            "data-filter": name,
            onclick: () => {
              state.filter = name;
              list();
            },
          },
          label ?? `${results[state.other].label} nearer`,
        ),
      ),
    );
  } else $("filters").hidden = true;
  $("search").addEventListener("input", () => {
    state.query = $("search").value;
    list();
  });
  new IntersectionObserver(
    ([entry]) => {
      // Seen again after each batch: a tall window may hold more than one.
      if (entry.isIntersecting && made < listed.length) {
        makeRows();
        entry.target.hidden = true;
        requestAnimationFrame(() => {
          entry.target.hidden = false;
        });
      }
    },
    {rootMargin: "900px"},
  ).observe($("more"));
  setOrder(MENU[0][0], MENU[0][1]);
}
