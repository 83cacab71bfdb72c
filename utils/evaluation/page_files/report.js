// The list of images: those of a group whose name is searched for, in an order.
const list = $("list");
const rows = [...list.tBodies[0].rows]; // in the order of evaluation
const heads = [...list.tHead.rows[0].cells];
const order = $("order");
const all = $("shown").textContent;
const nameOf = row => row.querySelector(".name").textContent;
let group = "all";
let listed = rows;

function update() {
  const query = $("search").value.trim().toLowerCase();
  const [by, direction] = order.value.split(":");
  const column = heads.findIndex(head => head.dataset.order === by);
  const key = row => row.cells[column].dataset.key;
  const sign = direction === "down" ? -1 : 1;
  // What is unknown comes last, both ways.
  const compare = (a, b) => (!a || !b ? !a - !b : sign * (a - b || a.localeCompare(b, "en", {numeric: true})));
  listed = rows
    .filter(row => row.dataset.groups.split(" ").includes(group) && nameOf(row).toLowerCase().includes(query))
    .sort((a, b) => compare(key(a), key(b)));
  list.tBodies[0].replaceChildren(...listed);
  list.hidden = !listed.length;
  $("nothing").hidden = listed.length > 0;
  $("shown").textContent = listed.length < rows.length ? `${listed.length} of ${all}` : all;
  heads.forEach((head, i) => (head.ariaSort = i !== column ? "none" : sign < 0 ? "descending" : "ascending"));
  for (const button of $("filters").children) button.ariaPressed = button.dataset.filter === group;
}

list.tHead.addEventListener("click", ({target}) => {
  const by = target.closest("th").dataset.order;
  // The first click shows what matters: the largest number, or the first name.
  const [now, direction] = order.value.split(":");
  if (by !== "file") order.value = `${by}:${(now === by ? direction === "up" : by !== "name") ? "down" : "up"}`;
  update();
});
$("filters").addEventListener("click", ({target}) => {
  group = target.dataset.filter ?? group;
  update();
});
order.addEventListener("change", update);
$("search").addEventListener("input", update);
update();

// One image: the photograph with its points beside the density of each result; Plotly pans, zooms and hovers in all of them.
const viewer = $("viewer");
const stage = $("stage");
const PLASMA = ["#0d0887", "#5402a3", "#8b0aa5", "#b93289", "#db5c68", "#f48849", "#febc2b", "#f0f921"];
let shown = null;

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
  return {type: "scatter", mode: "markers", name: `${name} ${positions.length}`, x, y, visible, marker, hoverinfo: "skip"};
}

async function drawImage(row) {
  const {width, height, points, results} = JSON.parse(row.querySelector("script").textContent);
  const densities = await Promise.all(results.map(cells));
  if (row !== shown) return;
  const panels = 1 + results.length;
  const columns = innerWidth > 720 ? panels : 1;
  const side = {showgrid: false, zeroline: false, showticklabels: false, ticks: "", constrain: "domain"};
  const layout = {
    grid: {rows: panels / columns, columns, pattern: "independent", xgap: 0.03, ygap: 0.08},
    margin: {l: 8, r: 8, t: 24, b: 8},
    dragmode: touch ? false : "pan",
    legend: {orientation: "h", x: 0, y: 0, yanchor: "top"},
    coloraxis: {
      cmin: 0,
      cmax: Math.max(...results.map(result => result.density_max)) || 1,
      // Density is read by its square root: crowds and single people are both seen.
      colorscale: PLASMA.map((color, i) => [(i / (PLASMA.length - 1)) ** 2, color]),
      colorbar: {thickness: 10, outlinewidth: 0, title: {text: "objects per cell", side: "right"}},
    },
    images: [{
      ...{xref: "x", yref: "y", x: 0, y: 0, sizex: width, sizey: height, sizing: "stretch", layer: "below"},
      source: row.querySelector("img").src,
    }],
  };
  ["photograph", ...results.map(result => result.label)].forEach((text, i) => {
    const at = i ? i + 1 : "";
    const title = {text, standoff: 4, font: {size: 13}};
    layout[`xaxis${at}`] = {...side, range: [0, width], side: "top", title, ...(i && {matches: "x"})};
    layout[`yaxis${at}`] = {...side, range: [height, 0], ...(i ? {matches: "y"} : {scaleanchor: "x"})};
  });
  const traces = [
    marks("Truth", points ?? [], "circle-open", "#2ee6ff", true),
    ...results.map(({label, heads}) => marks(`Heads, ${label}`, heads ?? [], "cross-thin", "#ff9f1c", "legendonly")),
    ...densities.map((z, i) => {
      const [dx, dy] = [width / z[0].length, height / z.length];
      const place = {xaxis: `x${i + 2}`, yaxis: `y${i + 2}`, x0: dx / 2, dx, y0: dy / 2, dy};
      return {type: "heatmap", z, ...place, coloraxis: "coloraxis", hovertemplate: "%{z:.3f}<extra></extra>"};
    }),
  ];
  const panelHeight = (((stage.clientWidth - 90) / columns) * height) / width;
  stage.style.height = `${Math.min(0.8 * innerHeight, panelHeight + 20) * (panels / columns) + 60}px`;
  Plotly.react(stage, traces, themed(layout), {...CONFIG, scrollZoom: true});
}

function show(row) {
  if (!row) return;
  shown = row;
  const place = listed.indexOf(row);
  $("viewer-title").textContent = nameOf(row);
  $("viewer-position").textContent = place < 0 ? "" : `${place + 1} / ${listed.length}`;
  $("previous").disabled = place <= 0;
  $("next").disabled = place === listed.length - 1;
  $("facts").replaceChildren(...[...row.cells].slice(2).map(cell => cell.cloneNode(true)));
  if (!viewer.open) viewer.showModal();
  drawImage(row);
}

const step = by => show(listed[listed.indexOf(shown) + by]);
list.tBodies[0].addEventListener("click", event => {
  if (!getSelection().toString()) show(event.target.closest("tr"));
});
for (const node of plots) node.on("plotly_click", ({points: [point]}) => show(rows[point.customdata]));
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
viewer.addEventListener("keydown", ({key}) => step({ArrowLeft: -1, ArrowRight: 1}[key]));
viewer.addEventListener("click", ({target}) => target === viewer && viewer.close()); // beside it
