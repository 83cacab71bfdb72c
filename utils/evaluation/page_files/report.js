// The page of results: its plots, the list of images, and one image beside what each model found in it.
"use strict";
const $ = id => document.getElementById(id);
const labels = JSON.parse($("labels").textContent);
const images = [...document.querySelectorAll(".image")].map(node => JSON.parse(node.textContent));
const single = labels.length === 1;
const touch = matchMedia("(pointer: coarse)").matches; // there a drag scrolls the page
const FLOOR = 0.5; // a logarithmic axis has no zero
const PLASMA = ["#0d0887", "#5402a3", "#8b0aa5", "#b93289", "#db5c68", "#f48849", "#febc2b", "#f0f921"];

images.forEach((image, index) => {
  image.index = index;
  image.truth = image.points?.length ?? NaN; // nobody annotated it
  image.errors = image.results.map(({predicted}) => predicted - image.truth);
  image.distances = image.errors.map(Math.abs);
});
const scored = images.filter(image => image.points);

function number(value, digits = 1, signDisplay = "negative", style = "decimal") {
  if (Number.isNaN(value)) return "–";
  const options = {minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay, style};
  return value.toLocaleString("en", options).replace("-", "−");
}

// The list of images

function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const signed = value => number(value, 1, "exceptZero");
const percent = value => number(value, 1, "exceptZero", "percent");

// In the color of the error's sign.
const colored = (error, text) => element("span", {className: error > 0 ? "over" : error < 0 ? "under" : ""}, text);

const relative = ({truth, errors: [error]}) => (truth > 0 ? error / truth : NaN);
// By how much the first is nearer than the best of the others.
const ahead = ({distances: [first, ...others]}) => Math.min(...others) - first;

const columns = [];
// A column: what stands above, what images are ordered by, and what is shown of each.
const add = (heading, key, show) => columns.push({heading, key, show});
add("Image", ({image}) => image, ({image}) => element("button", {type: "button"}, image));
if (scored.length) add("Truth", ({truth}) => truth, ({truth}) => number(truth, 0));
if (single) add("Predicted", ({results: [{predicted}]}) => predicted, ({results: [{predicted}]}) => number(predicted));
if (single && scored.length) {
  add("Error", ({distances: [distance]}) => distance, ({errors: [error]}) => colored(error, signed(error)));
  add("Relative", image => Math.abs(relative(image)), image => colored(image.errors[0], percent(relative(image))));
}
if (!single) {
  labels.forEach((label, i) => {
    const show = ({results, errors}) => [number(results[i].predicted), " ", colored(errors[i], signed(errors[i]))];
    add(label, ({distances}) => distances[i], show);
  });
}
if (!single && scored.length) add("Difference", ahead, image => signed(ahead(image)));
add("Size", ({width, height}) => width * height, ({width, height}) => `${width} × ${height}`);

const farthest = scored.toSorted((a, b) => Math.max(...b.distances) - Math.max(...a.distances));
const worst = new Set(farthest.slice(0, Math.ceil(scored.length / 10)));
// The filters: by name whether an image belongs to it.
const groups = {All: () => true, "Worst 10 %": image => worst.has(image)};
if (single) {
  groups.Over = ({errors: [error]}) => error > 0;
  groups.Under = ({errors: [error]}) => error < 0;
} else {
  labels.forEach((label, i) => {
    groups[`${label} nearer`] = ({distances}) => distances.every((other, j) => j === i || distances[i] < other);
  });
}

const [listHead, listBody] = $("list").querySelectorAll("tr, tbody");
let listed = images;

for (const image of images) {
  const photo = element("img", {loading: "lazy", alt: "", src: `data:image/jpeg;base64,${image.photo}`});
  const cells = columns.map(({heading, show}) => {
    const cell = element("td", {}, ...[show(image)].flat());
    cell.dataset.label = heading;
    return cell;
  });
  image.row = element("tr", {}, element("td", {}, photo), ...cells);
  image.row.addEventListener("click", () => getSelection().toString() || open(image));
}
listHead.append(element("th"), ...columns.map(({heading}) => element("th", {scope: "col"}, heading)));
for (const name in groups) {
  const radio = element("input", {type: "radio", name: "group", value: name, checked: name === "All"});
  $("filters").append(element("label", {}, radio, name));
}
columns.forEach(({heading}, i) => {
  const first = heading === (scored.length ? (single ? "Error" : "Difference") : "Predicted");
  $("order").append(new Option(`${heading}, descending`, `${i} -1`, first, first));
  $("order").append(new Option(`${heading}, ascending`, `${i} 1`));
});
$("order").append(new Option("As evaluated", `${columns.length} 1`));

function update() {
  const query = $("search").value.trim().toLowerCase();
  const member = groups[document.querySelector("[name=group]:checked").value];
  const [column, sign] = $("order").value.split(" ");
  const key = columns[column]?.key ?? (({index}) => index);
  // What is unknown comes last, both ways.
  const compare = (a, b) =>
    Number.isNaN(a) - Number.isNaN(b) || sign * (a.localeCompare?.(b, "en", {numeric: true}) ?? a - b);
  listed = images.filter(image => member(image) && image.image.toLowerCase().includes(query));
  listed.sort((a, b) => compare(key(a), key(b)));
  listBody.replaceChildren(...listed.map(({row}) => row));
  const all = `${images.length} image${images.length === 1 ? "" : "s"}`;
  $("shown").textContent = listed.length < images.length ? `${listed.length} of ${all}` : all;
}

$("controls").addEventListener("change", update);
$("search").addEventListener("input", update);
update();

// The plots

// Plotly takes colors, not variables.
function color(name) {
  document.head.style.color = `var(--${name})`;
  return getComputedStyle(document.head).color;
}

const colorOf = result => color(`series-${(result % 6) + 1}`);

// Plotly reads some markup.
const plain = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

// A figure in the colors of the page.
function draw(node, traces, layout, config) {
  const font = {family: getComputedStyle(document.body).fontFamily, color: color("quiet"), size: 11};
  const common = {paper_bgcolor: "transparent", plot_bgcolor: "transparent", font, hoverlabel: {align: "left"}};
  if (touch) layout.dragmode = false;
  Plotly.react(node, traces, {...common, ...layout}, {responsive: true, displayModeBar: false, ...config});
}

// What the list says of an image.
function facts({image, row}) {
  const lines = [...row.cells].slice(2).map(({dataset, textContent}) => `${dataset.label} ${textContent}`);
  return `<b>${plain(image)}</b><br>${lines.map(plain).join("<br>")}`;
}

// One marker an image, which says under the pointer what the list does and opens it when clicked.
function markers(name, fill, shown, x, y) {
  const many = shown.length > 500;
  return {
    type: "scatter",
    mode: "markers",
    name: plain(name),
    x: shown.map(x),
    y: shown.map(y),
    customdata: shown.map(image => image.index),
    text: shown.map(facts),
    hovertemplate: "%{text}<extra></extra>",
    marker: {color: fill, line: {width: many ? 0 : 1, color: color("surface")}, size: many ? 6 : 8, opacity: 0.7},
  };
}

// Markers of each of several results in its color; of one over and under the truth in two colors.
function series(shown, x, y) {
  if (!single) return labels.map((label, i) => markers(label, colorOf(i), shown, x, image => y(image, i)));
  const over = ({errors: [error]}) => error > 0;
  return [
    markers("too many", color("over"), shown.filter(over), x, image => y(image, 0)),
    markers("too few", color("under"), shown.filter(image => !over(image)), x, image => y(image, 0)),
  ];
}

const floored = value => Math.max(value, FLOOR);
const logarithmic = title => ({title, type: "log", nticks: 4, tickformat: ",~r", zeroline: false});

// The traces of a plot on whose dashed line both axes say the same, and its axes.
function withIdentity(traces, xTitle, yTitle) {
  const values = traces.flatMap(({x, y}) => [...x, ...y]);
  const ends = values.length ? [Math.min(...values), Math.max(...values)] : [];
  const line = {color: color("quiet"), width: 1.2, dash: "4px,4px"};
  const identity = {mode: "lines", x: ends, y: ends, hoverinfo: "skip", showlegend: false, line};
  return [[identity, ...traces], logarithmic(xTitle), logarithmic(yTitle)];
}

// Of each plot, by the id of its place: traces, x axis, y axis.
const figures = {
  errors() {
    const other = $("other").selectedIndex + 1;
    const x = ({distances}) => floored(distances[0]);
    const y = ({distances}) => floored(distances[other]);
    const nearer = ({distances}) => distances[0] < distances[other];
    const traces = [
      markers(`${labels[0]} nearer`, colorOf(0), scored.filter(nearer), x, y),
      markers(`${labels[other]} nearer`, colorOf(other), scored.filter(image => !nearer(image)), x, y),
    ];
    return withIdentity(traces, `error of ${plain(labels[0])}`, `error of ${plain(labels[other])}`);
  },
  counts() {
    const y = ({results}, i) => floored(results[i].predicted);
    return withIdentity(series(scored, ({truth}) => floored(truth), y), "annotated", "predicted");
  },
  densities() {
    const relative = $("unit").selectedIndex === 1;
    const x = ({truth, width, height}) => floored((1e6 * truth) / (width * height));
    const y = ({truth, errors}, i) => (relative ? (100 * errors[i]) / truth : errors[i]);
    const traces = series(scored.filter(({truth}) => truth > 0), x, y);
    return [traces, logarithmic("annotated objects per megapixel"), {title: `error, ${$("unit").value}`}];
  },
  predictions() {
    const traces = labels.map((label, i) => ({
      ...markers(label, colorOf(i), images, ({index}) => index + 1, ({results}) => results[i].predicted),
      mode: "lines+markers",
      line: {width: 1.2},
    }));
    const xaxis = {title: "image, in the order of evaluation", zeroline: false};
    return [traces, xaxis, {title: "predicted", rangemode: "tozero"}];
  },
};

const plots = document.querySelectorAll(".plot");

function drawPlots() {
  const colors = {gridcolor: color("line"), zerolinecolor: color("quiet"), linecolor: color("line")};
  const style = {...colors, automargin: true, ticklabelstandoff: 4, tickformat: ","};
  const axis = ({title, ...options}) => ({...style, title: {text: title, standoff: 10}, ...options});
  for (const node of plots) {
    const [traces, xaxis, yaxis] = figures[node.id]();
    draw(node, traces, {
      xaxis: axis(xaxis),
      yaxis: axis(yaxis),
      margin: {l: 8, r: 12, t: 8, b: 8},
      hovermode: "closest",
      showlegend: traces.filter(trace => trace.showlegend ?? true).length > 1,
      legend: {orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemclick: touch ? false : "toggle"},
    });
  }
}

drawPlots();
for (const node of plots) node.on("plotly_click", ({points: [point]}) => open(images[point.customdata]));
document.querySelectorAll(".panel > select").forEach(choice => choice.addEventListener("change", drawPlots));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);

// One image: the photograph with its points beside the density of each result; Plotly pans, zooms and hovers in all.

const viewer = $("viewer");
const stage = $("stage");
let opened = null;

// The cells of an 8-bit picture, of which 255 stands for `highest`, as rows.
async function cells({density, density_max: highest}) {
  const picture = new Image();
  picture.src = `data:image/png;base64,${density}`;
  await picture.decode();
  const {naturalWidth: width, naturalHeight: height} = picture;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(picture, 0, 0);
  const {data} = context.getImageData(0, 0, width, height);
  const value = (y, x) => (data[4 * (y * width + x)] * highest) / 255;
  return Array.from({length: height}, (_, y) => Array.from({length: width}, (_, x) => value(y, x)));
}

function marks(name, positions, symbol, color, visible) {
  const size = positions.length > 2000 ? 4 : positions.length > 500 ? 6 : 9;
  const marker = {symbol, size, color, line: {color, width: size > 4 ? 2 : 1}}; // some symbols are lines alone
  const [x, y] = [0, 1].map(axis => positions.map(position => position[axis]));
  name = `${plain(name)} ${positions.length}`;
  return {type: "scatter", mode: "markers", name, x, y, visible, marker, hoverinfo: "skip"};
}

async function drawImage(image) {
  const {width, height, points, results} = image;
  const densities = await Promise.all(results.map(cells));
  if (image !== opened) return;
  const panels = 1 + results.length;
  const columns = innerWidth > 720 ? panels : 1;
  const side = {showgrid: false, zeroline: false, showticklabels: false, ticks: "", constrain: "domain"};
  const photograph = {source: image.row.querySelector("img").src, sizing: "stretch", layer: "below"};
  const layout = {
    grid: {rows: panels / columns, columns, pattern: "independent", xgap: 0.03, ygap: 0.08},
    margin: {l: 8, r: 8, t: 24, b: 8},
    dragmode: "pan",
    legend: {orientation: "h", x: 0, y: 0, yanchor: "top"},
    coloraxis: {
      cmin: 0,
      cmax: Math.max(...results.map(result => result.density_max)) || 1,
      // Density is read by its square root: crowds and single people are both seen.
      colorscale: PLASMA.map((color, i) => [(i / (PLASMA.length - 1)) ** 2, color]),
      colorbar: {thickness: 10, outlinewidth: 0, title: {text: "objects per cell", side: "right"}},
    },
    images: [{...photograph, xref: "x", yref: "y", x: 0, y: 0, sizex: width, sizey: height}],
  };
  ["photograph", ...labels].forEach((text, i) => {
    const at = i ? i + 1 : "";
    const title = {text: plain(text), standoff: 4, font: {size: 13}};
    layout[`xaxis${at}`] = {...side, range: [0, width], side: "top", title, ...(i && {matches: "x"})};
    layout[`yaxis${at}`] = {...side, range: [height, 0], ...(i ? {matches: "y"} : {scaleanchor: "x"})};
  });
  const traces = [
    marks("Truth", points ?? [], "circle-open", "#2ee6ff", true),
    ...results.map(({heads}, i) => marks(`Heads, ${labels[i]}`, heads ?? [], "cross-thin", "#ff9f1c", "legendonly")),
    ...densities.map((z, i) => {
      const [dx, dy] = [width / z[0].length, height / z.length];
      const place = {xaxis: `x${i + 2}`, yaxis: `y${i + 2}`, x0: dx / 2, dx, y0: dy / 2, dy};
      return {type: "heatmap", z, ...place, coloraxis: "coloraxis", hovertemplate: "%{z:.3f}<extra></extra>"};
    }),
  ];
  const panelHeight = (((stage.clientWidth - 90) / columns) * height) / width;
  stage.style.height = `${Math.min(0.8 * innerHeight, panelHeight + 20) * (panels / columns) + 60}px`;
  draw(stage, traces, layout, {scrollZoom: true});
}

function open(image) {
  if (!image) return;
  opened = image;
  const place = listed.indexOf(image);
  $("viewer-title").textContent = image.image;
  $("viewer-position").textContent = place < 0 ? "" : `${place + 1} / ${listed.length}`;
  $("previous").disabled = place <= 0;
  $("next").disabled = place === listed.length - 1;
  $("facts").replaceChildren(...[...image.row.cells].slice(2).map(cell => cell.cloneNode(true)));
  if (!viewer.open) viewer.showModal();
  drawImage(image);
}

const step = by => open(listed[listed.indexOf(opened) + by]);
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
viewer.addEventListener("keydown", ({key}) => step({ArrowLeft: -1, ArrowRight: 1}[key]));
viewer.addEventListener("click", ({target}) => target === viewer && viewer.close()); // beside it
