// One image: the photograph, the density over it, truth points and localised heads.
const PLASMA = [
  [13, 8, 135],
  [84, 2, 163],
  [139, 10, 165],
  [185, 50, 137],
  [219, 92, 104],
  [244, 136, 73],
  [254, 188, 43],
  [240, 249, 33],
];
const viewer = $("viewer"),
  slider = $("opacity");
const MARKS = {truth: ["#2ee6ff", $("truth-marks")], heads: ["#ffffff", $("head-marks")]};
let shownImage = null,
  shownData = null,
  shownResult = 0,
  cells = null,
  turn = 0,
  visible = 60;

// Density is read by its square root: crowds and single people are both seen.
function plasma(share) {
  const place = share * (PLASMA.length - 1),
    below = Math.min(Math.floor(place), PLASMA.length - 2);
  return PLASMA[below].map((low, channel) => low + (PLASMA[below + 1][channel] - low) * (place - below));
}

async function greyCells(encoded) {
  const picture = new Image();
  picture.src = `data:image/png;base64,${encoded}`;
  await picture.decode();
  const canvas = el("canvas", {width: picture.naturalWidth, height: picture.naturalHeight});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(picture, 0, 0);
  const {data, width, height} = context.getImageData(0, 0, canvas.width, canvas.height);
  return {grey: data.filter((_, i) => i % 4 === 0), width, height};
}

// Half way only what holds density covers the photograph; at the end nothing of the photograph is left.
function paintDensity() {
  $("opacity-value").textContent = `${slider.value}\u202f%`;
  if (!cells) return;
  const canvas = $("density"),
    share = slider.value / 100,
    highest = Math.max(...shownData.results.map(part => part.density_max)) || 1;
  const own = shownData.results[shownResult].density_max / highest;
  canvas.width = cells.width;
  canvas.height = cells.height;
  const context = canvas.getContext("2d"),
    picture = context.createImageData(cells.width, cells.height);
  const table = Array.from({length: 256}, (_, grey) => {
    const level = Math.sqrt((grey / 255) * own),
      covered = Math.min(1, 3 * level);
    return [...plasma(level), 255 * (share ** 5 + (1 - (1 - share) ** 2 - share ** 5) * covered)];
  });
  cells.grey.forEach((grey, i) => picture.data.set(table[grey], 4 * i));
  context.putImageData(picture, 0, 0);
  $("ramp-middle").textContent = number(highest / 4, 2);
  $("ramp-high").textContent = number(highest, 2);
}

function paintMarks() {
  const canvas = $("marks"),
    {clientWidth: width, clientHeight: height} = $("stage");
  if (!shownData || !width) return;
  const ratio = Math.min(devicePixelRatio, 2),
    context = canvas.getContext("2d");
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const scale = ratio * Math.min(1, Math.max(0.5, width / 800));
  const kinds = [
    ["truth", shownData.points],
    ["heads", shownData.results[shownResult].heads],
  ];
  for (const [kind, positions] of kinds) {
    const [paint, box] = MARKS[kind];
    if (!box.checked || !positions) continue;
    const radius = scale * (positions.length > 2000 ? 2 : positions.length > 500 ? 3 : 4.5);
    const path = new Path2D();
    for (const [x, y] of positions) {
      const left = (x / shownImage.width) * canvas.width,
        top = (y / shownImage.height) * canvas.height;
      if (kind === "truth") {
        path.moveTo(left + radius, top);
        path.arc(left, top, radius, 0, 2 * Math.PI);
      } else {
        path.moveTo(left - radius, top);
        path.lineTo(left + radius, top);
        path.moveTo(left, top - radius);
        path.lineTo(left, top + radius);
      }
    }
    for (const [style, line] of [
      ["rgb(0 0 0 / 65%)", 3.2],
      [paint, 1.5],
    ]) {
      context.strokeStyle = style;
      context.lineWidth = line * scale;
      context.stroke(path);
    }
  }
}

function facts() {
  const {truth, predicted, errors, relative, width, height} = shownImage,
    i = shownResult;
  const fact = (name, value, kind = "") => [el("dt", {}, name), el("dd", {class: kind}, value)];
  $("facts").replaceChildren(
    ...[
      fact("Predicted", number(predicted[i])),
      fact("Truth", count(truth)),
      ...(truth === null
        ? []
        : [fact("Error", signed(errors[i]), side(errors[i])), fact("Relative", percent(relative[i]), side(errors[i]))]),
      fact("Size", `${width} \u00d7 ${height}`),
    ].flat(),
  );
}

async function showResult(i) {
  shownResult = i;
  for (const [at, button] of [...$("switch").children].entries()) button.setAttribute("aria-pressed", at === i);
  facts();
  if (!shownData) return;
  const heads = shownData.results[i].heads,
    points = shownData.points;
  $("truth-number").textContent = points ? number(points.length, 0) : NONE;
  $("head-number").textContent = heads ? number(heads.length, 0) : NONE;
  const mine = ++turn,
    decoded = await greyCells(shownData.results[i].density);
  if (mine !== turn) return;
  cells = decoded;
  paintDensity();
  paintMarks();
}

async function showImage(image) {
  shownImage = image;
  shownData = cells = null;
  const mine = ++turn,
    place = listed.indexOf(image);
  $("viewer-title").textContent = image.name;
  $("viewer-position").textContent = place < 0 ? "" : `${number(place + 1, 0)} / ${number(listed.length, 0)}`;
  $("previous").disabled = place < 0 ? !listed.length : place === 0;
  $("next").disabled = place < 0 ? !listed.length : place === listed.length - 1;
  $("stage").style.setProperty("--ratio", image.width / image.height);
  for (const canvas of [$("density"), $("marks")]) canvas.width = canvas.width; // clears it
  facts();
  const data = await imageData(image.index);
  if (mine !== turn) return;
  shownData = data;
  $("photo").src = photoSource(data);
  $("photo").alt = `Photograph ${image.name}`;
  showResult(shownResult);
}

function step(by) {
  const place = listed.indexOf(shownImage);
  const next = listed[place < 0 ? 0 : place + by];
  if (next) showImage(next);
}

function openViewer(index) {
  if (!viewer.open) viewer.showModal();
  showImage(images[index]);
}

function startViewer() {
  const ramp = $("ramp").getContext("2d");
  for (let x = 0; x < 256; x++) {
    ramp.fillStyle = `rgb(${plasma(x / 255)
      .map(Math.round)
      .join(" ")})`;
    ramp.fillRect(x, 0, 1, 1);
  }
  if (comparing) {
    $("switch").hidden = $("switch-keys").hidden = false;
    $("switch").append(
      ...results.map(({label}, i) => el("button", {type: "button", onclick: () => showResult(i)}, swatch(i), label)),
    );
    showSwitch();
  }
  slider.addEventListener("input", paintDensity);
  for (const [, box] of Object.values(MARKS)) box.addEventListener("change", paintMarks);
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", event => {
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onSlider = event.target === slider; // there the arrows move it
    const toggle = box => {
      box.checked = !box.checked;
      paintMarks();
    };
    if (event.key === "ArrowLeft" && !onSlider) step(-1);
    else if (event.key === "ArrowRight" && !onSlider) step(1);
    else if (event.key === "t") toggle(MARKS.truth[1]);
    else if (event.key === "h") toggle(MARKS.heads[1]);
    else if (event.key === "d") {
      if (slider.value > 0) visible = slider.value;
      slider.value = slider.value > 0 ? 0 : visible;
      paintDensity();
    } else if (comparing && results[event.key - 1]) showResult(event.key - 1);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(paintMarks).observe($("stage"));
}

const showSwitch = () =>
  [...$("switch").children].forEach((button, i) => button.setAttribute("aria-pressed", i === shownResult));

startViewer();
startList(openViewer);
addPlots();
startTheme(() => plots.forEach(draw));
drawPlots(openViewer);
