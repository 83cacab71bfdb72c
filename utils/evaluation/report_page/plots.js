// The plots. A point shows its photograph while the pointer is on it and opens the image when clicked.
const FLOOR = 0.5; // a logarithmic axis has no zero
const lifted = value => Math.max(value, FLOOR);
const tip = $("tip");
const touch = matchMedia("(pointer: coarse)").matches; // there a drag scrolls the page

// Plotly takes colours, not variables.
function colour(variable) {
  const probe = document.body.appendChild(el("i", {style: `color:var(${variable})`}));
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

function axis(title, options = {}) {
  const log = options.type === "log";
  return {
    title: {text: title, font: {size: 12.5}, standoff: 10},
    gridcolor: colour("--line"),
    zerolinecolor: colour("--quiet"),
    linecolor: colour("--line"),
    tickfont: {size: 11.5},
    ticklabelstandoff: 4,
    automargin: true,
    tickformat: ",",
    ...options,
    ...(log ? {...ticks(options.range), tickformat: ",~r", zeroline: false} : {}),
  };
}

// Decades, 1, 2 and 5 of each, or, where a range holds few of these, about five even steps.
function ticks([low, high]) {
  if (high - low > 0.9) return {dtick: high - low > 1.6 ? 1 : "D2"};
  const [first, last] = [10 ** low, 10 ** high];
  const magnitude = 10 ** Math.floor(Math.log10((last - first) / 5));
  const step = magnitude * [1, 2, 5, 10].find(factor => factor * magnitude >= (last - first) / 5);
  const tickvals = [];
  for (let i = Math.ceil(first / step); i * step <= last; i++) tickvals.push(i * step);
  return {tickmode: "array", tickvals};
}

function logRange(values) {
  const low = Math.log10(Math.min(...values.map(lifted))),
    high = Math.log10(Math.max(...values.map(lifted)));
  const room = 0.06 * (high - low || 1);
  return [low - room, high + room];
}

function points(chosen, x, y, colourName, name) {
  return {
    type: "scatter",
    mode: "markers",
    name,
    x: chosen.map(x),
    y: chosen.map(y),
    customdata: chosen.map(image => image.index),
    hoverinfo: "none",
    marker: {
      color: colour(colourName),
      size: chosen.length > 500 ? 6 : 8,
      opacity: chosen.length > 500 ? 0.55 : 0.75,
      line: {width: chosen.length > 500 ? 0 : 1, color: colour("--surface")},
    },
  };
}

function identity(range) {
  const ends = range.map(value => 10 ** value);
  return {
    type: "scatter",
    mode: "lines",
    x: ends,
    y: ends,
    hoverinfo: "skip",
    showlegend: false,
    line: {color: colour("--quiet"), width: 1.2, dash: "4px,4px"},
  };
}

// One result: over and under in two colours. Several: a colour each.
function series(x, y, chosen = scored) {
  if (comparing)
    return results.map(({label}, i) =>
      points(
        chosen,
        image => x(image, i),
        image => y(image, i),
        SERIES[i % SERIES.length],
        plain(label),
      ),
    );
  return [
    ["over", "too many"],
    ["under", "too few"],
  ].map(([which, name]) =>
    points(
      chosen.filter(image => image.errors[0] > 0 === (which === "over")),
      image => x(image, 0),
      image => y(image, 0),
      `--${which}`,
      name,
    ),
  );
}
// Plotly reads some markup in names.
const plain = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function countsPlot() {
  const range = logRange(scored.flatMap(image => [image.truth, ...image.predicted]));
  return [
    [
      identity(range),
      ...series(
        image => lifted(image.truth),
        (image, i) => lifted(image.predicted[i]),
      ),
    ],
    {xaxis: axis("annotated", {type: "log", range}), yaxis: axis("predicted", {type: "log", range})},
  ];
}

function densityPlot(relative) {
  const chosen = scored.filter(image => image.perMegapixel > 0);
  const range = logRange(chosen.map(image => image.perMegapixel));
  const y = relative ? (image, i) => 100 * image.relative[i] : (image, i) => image.errors[i];
  return [
    series(image => lifted(image.perMegapixel), y, chosen),
    {
      xaxis: axis("annotated objects per megapixel", {type: "log", range}),
      yaxis: axis(relative ? "error, % of the truth" : "error, objects", {zeroline: true}),
    },
  ];
}

function errorsPlot() {
  const error = (image, i) => lifted(Math.abs(image.errors[i]));
  const range = logRange(scored.flatMap(image => [error(image, 0), error(image, state.other)]));
  const nearer = (which, i) =>
    points(
      scored.filter(image => change(image) > 0 === (which === 0)),
      image => error(image, 0),
      image => error(image, state.other),
      SERIES[i % SERIES.length],
      `${plain(results[i].label)} nearer`,
    );
  return [
    [identity(range), nearer(0, 0), nearer(1, state.other)],
    {
      xaxis: axis(`error of ${plain(results[0].label)}`, {type: "log", range}),
      yaxis: axis(`error of ${plain(results[state.other].label)}`, {type: "log", range}),
    },
  ];
}

function sequencePlot() {
  const lines = results.map((_, i) => ({
    ...points(
      images,
      image => image.index + 1,
      image => image.predicted[i],
      comparing ? SERIES[i % SERIES.length] : "--accent",
      plain(results[i].label),
    ),
    mode: images.length > 1 ? "lines+markers" : "markers",
    line: {width: 1.2},
  }));
  return [
    lines,
    {
      xaxis: axis("image, in the order of evaluation", {zeroline: false}),
      yaxis: axis("predicted", {rangemode: "tozero"}),
    },
  ];
}

const plots = [];

function addPlot(title, note, make, control = null) {
  const node = el("div", {
    class: "plot",
    role: "img",
    "aria-label": `${title}. ${note} The list below holds the same images.`,
  });
  $("plots").append(
    el(
      "div",
      {class: "panel"},
      el("div", {class: "panel-head"}, el("h2", {}, title), control),
      el("p", {class: "quiet"}, note),
      node,
    ),
  );
  plots.push([node, make]);
}

function draw([node, make]) {
  const [traces, layout] = make();
  if (!window.Plotly) return;
  Plotly.react(
    node,
    traces,
    {
      ...layout,
      margin: {l: 8, r: 12, t: 8, b: 8},
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      hovermode: "closest",
      hoverdistance: 14,
      dragmode: touch ? false : "zoom",
      font: {family: getComputedStyle(document.body).fontFamily, color: colour("--quiet")},
      showlegend: traces.filter(trace => trace.showlegend !== false).length > 1,
      legend: {
        orientation: "h",
        x: 0,
        y: 1.02,
        yanchor: "bottom",
        font: {size: 12},
        itemclick: touch ? false : "toggle",
      },
    },
    {displaylogo: false, responsive: true, displayModeBar: false},
  );
}

function showTip(index, event) {
  const image = images[index];
  const [photo, text] = tip.children;
  text.children[0].textContent = image.name;
  const truth = image.truth === null ? "" : `truth ${count(image.truth)}, `;
  text.children[1].textContent =
    truth +
    (comparing
      ? image.predicted.map((value, i) => `${results[i].label} ${number(value)}`).join(", ")
      : `predicted ${number(image.predicted[0])}`);
  photo.removeAttribute("src");
  tip.dataset.image = index;
  imageData(index).then(data => {
    if (tip.dataset.image === String(index)) photo.src = photoSource(data);
  });
  tip.hidden = false;
  const {width, height} = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 16, innerWidth - width - 12))}px`;
  tip.style.top = `${event.clientY + 16 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 16}px`;
}

function addPlots() {
  if (scored.length) {
    if (comparing) {
      const choice =
        results.length > 2 &&
        el(
          "select",
          {
            "aria-label": "Compared with",
            onchange: event => {
              state.other = Number(event.target.value);
              $("filters").querySelector("[data-filter=other]").textContent = `${results[state.other].label} nearer`;
              plots.forEach(draw);
              list();
            },
          },
          ...results.slice(1).map(({label}, i) => el("option", {value: i + 1}, label)),
        );
      addPlot("Absolute errors", "Under the dashed line the second is nearer.", errorsPlot, choice || null);
    }
    addPlot(
      "Predicted against annotated",
      `On the dashed line the count is right.${touch ? "" : " Drag to zoom, double-click to go back."}`,
      countsPlot,
    );
    let relative = false;
    const unit = el(
      "button",
      {
        type: "button",
        class: "small",
        "aria-pressed": "false",
        onclick: () => {
          relative = !relative;
          unit.setAttribute("aria-pressed", relative);
          draw(plots.at(-1));
        },
      },
      "in %",
    );
    addPlot(
      "Error against density",
      "Above zero too many were counted, below too few.",
      () => densityPlot(relative),
      unit,
    );
  } else addPlot("Predicted counts", "Nobody annotated these images: there are no errors to show.", sequencePlot);
}

// The library follows this script; the list is there before it.
async function drawPlots(open) {
  for (const plot of plots) {
    do await pause();
    while (!window.Plotly);
    draw(plot);
    const [node] = plot;
    node.on(
      "plotly_hover",
      ({points: [point], event}) => point.customdata !== undefined && showTip(point.customdata, event),
    );
    node.on("plotly_unhover", () => {
      tip.hidden = true;
    });
    node.on("plotly_click", ({points: [point]}) => {
      tip.hidden = true;
      if (point.customdata !== undefined) open(point.customdata);
    });
  }
}
