// The page. Whoever segments is behind one interface, `backend`: a service (service.js) or this browser (browser.js). The
// network runs once for a picture; the threshold and clicks then need no pass of it.
//
//   describe()                        what segments: { name, size, threshold, thresholds, auto, attention, most_bytes, where,
//                                     links }
//   open(file, say)                   a picture to segment: { size, view }, [height, width], and perhaps a note on how it was
//                                     done; say(text): what is being done
//   segment(picture, threshold)       { colours, count }: a bitmap to lay over the picture, and the number of segments
//   at(picture, x, y, threshold)      { index, area, share, outline, heat } of a pixel's segment; heat: a grey bitmap
//   file(picture, form, threshold)    a Blob to download
//   sample()                          a Blob with a picture
// Each may throw a Told.

const $ = (id) => document.getElementById(id);
const RANGE = 4; // the slider goes from a RANGEth of the engine's own threshold to RANGE times it
let backend = null;
let engine = null; // what the backend says about its engine
let sent = null; // { file, stem, size, … } of the picture that is shown
let wanted = null; // the newest settings that are not shown yet
let showing = false;
let shown = null; // the threshold of what is shown
let cross = [0.5, 0.5]; // of the keyboard, as shares of width and height
let clicked = null;

/** An error in words for people. */
export class Told extends Error {
  constructor(text, status) { super(text); this.status = status; }
}

function tell(error) {
  console.info(error);
  const place = $("error");
  place.textContent = error.message;
  place.hidden = false;
  ($("panel").hidden ? $("stage") : $("panel")).prepend(place);
}

function busy(text) {
  $("busy").hidden = !text;
  $("doing").textContent = text;
}

function title() { return `engine ${engine.name}, ${engine.size.join("×")}`; }

function threshold() {
  if ($("auto").checked) return "auto";
  const own = engine?.thresholds[0] ?? 0.5;
  return (own * RANGE ** (($("threshold").value - 100) / 100)).toPrecision(3);
}

async function open(file) {
  if (!file) return;
  $("error").hidden = true;
  if (engine && file.size > engine.most_bytes) {
    return tell(new Told(`This file has ${(file.size / 2 ** 20).toFixed(0)} MB; expected at most ${(engine.most_bytes / 2 ** 20).toFixed(0)} MB.`));
  }
  busy("Segmenting …");
  try {
    const kept = await backend.open(file, busy);
    if (kept.note) $("engine").textContent = `${title()}; ${kept.note}`;
    sent = { file, stem: (file.name || "picture").replace(/\.[^.]*$/, "") || "picture", ...kept };
    clicked = null;
    unmark();
    await place(file, kept.view);
    $("start").hidden = true;
    $("figure").hidden = $("panel").hidden = false;
    document.querySelector("main").classList.add("open");
    await show();
  } catch (error) {
    tell(error);
  } finally {
    busy("");
  }
}

/** Shows the picture itself. What a browser cannot show, as TIFF, is shown by its colours alone. */
async function place(file, [height, width]) {
  const photo = $("photo");
  if (photo.src) URL.revokeObjectURL(photo.src);
  photo.src = URL.createObjectURL(file);
  const shown = await photo.decode().then(() => true, () => false);
  if (!shown) photo.src = URL.createObjectURL(new Blob([`<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"/>`], { type: "image/svg+xml" }));
  $("layers").classList.toggle("alone", !shown);
}

/** Segments with the settings as they are. While one answer is on its way, only the newest wish is kept. */
async function show() {
  wanted = { threshold: threshold(), since: performance.now() };
  $("value").textContent = wanted.threshold;
  if (showing || !sent) return;
  showing = true;
  try {
    while (wanted) {
      const now = wanted;
      wanted = null;
      const { colours, count } = await backend.segment(sent, now.threshold);
      const view = $("view");
      view.width = colours.width;
      view.height = colours.height;
      view.getContext("2d").drawImage(colours, 0, 0);
      const spent = Math.round(performance.now() - now.since);
      $("count").textContent = `${count} segment${count === 1 ? "" : "s"}, shown after ${spent} ms`;
      Object.assign(view.dataset, { threshold: now.threshold, count, milliseconds: spent });
      shown = now.threshold;
      $("error").hidden = true;
      if (clicked && !wanted) await choose(...clicked);
    }
  } catch (error) {
    tell(error);
  } finally {
    showing = false;
  }
}

/** Downloads what is shown, in one of its forms. */
async function save({ dataset: { form, end } }) {
  busy("Writing …");
  try {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await backend.file(sent, form, shown));
    link.download = sent.stem + end;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60e3);
  } catch (error) {
    tell(error);
  } finally {
    busy("");
  }
}

function unmark() {
  $("heat").width = $("heat").width; // clears it
  for (const path of $("outline").children) path.removeAttribute("d");
  $("chosen").innerHTML = '<p class="quiet">Click a segment for its outline, its area, and where it looks.</p>';
}

/** The segment at a place, as shares of width and height: its outline, area, and attention as heat. */
async function choose(across, down) {
  if (!engine?.attention) return tell(new Told("This engine gives labels alone: it has no attention to show."));
  clicked = [across, down];
  const [height, width] = sent.size;
  const x = Math.min(width - 1, Math.floor(across * width)), y = Math.min(height - 1, Math.floor(down * height));
  try {
    const found = await backend.at(sent, x, y, threshold());
    const line = found.outline.flat().map((ring) => `M${ring.map((point) => point.join(" ")).join("L")}Z`).join("");
    for (const path of $("outline").children) path.setAttribute("d", line);
    warm(found.heat);
    const title = document.createElement("strong"), text = document.createElement("span");
    title.textContent = `Segment ${found.index}`;
    text.textContent = `${found.area.toLocaleString("en")} pixels, ${(100 * found.share).toFixed(1)} % of the picture. Bright: where this place looks.`;
    $("chosen").replaceChildren(title, text);
    $("chosen").dataset.index = found.index;
  } catch (error) {
    tell(error);
  }
}

/** Paints a grey bitmap as heat: from nothing over red and yellow to white. */
function warm(grey) {
  const heat = $("heat");
  heat.width = grey.width;
  heat.height = grey.height;
  const context = heat.getContext("2d", { willReadFrequently: true });
  context.drawImage(grey, 0, 0);
  const pixels = context.getImageData(0, 0, heat.width, heat.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const value = Math.sqrt(pixels.data[i] / 255);
    pixels.data.set([255 * Math.min(1, 3 * value), 255 * Math.min(1, Math.max(0, 3 * value - 1)), 255 * Math.max(0, 3 * value - 2), 200 * value], i);
  }
  context.putImageData(pixels, 0, 0);
}

/** Starts the page. */
export function start(given) {
  backend = given;
  for (const id of ["file", "camera"]) $(id).addEventListener("change", (event) => { open(event.target.files[0]); event.target.value = ""; });
  $("sample").addEventListener("click", async () => {
    try {
      open(new File([await backend.sample()], "sample.jpg", { type: "image/jpeg" }));
    } catch (error) { tell(error); }
  });
  for (const button of document.querySelectorAll("#downloads button")) button.addEventListener("click", () => save(button));
  $("another").addEventListener("click", () => $("file").click());
  const stage = $("stage");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); stage.classList.toggle("over", kind === "dragover"); });
  }
  document.addEventListener("drop", (event) => open(event.dataTransfer.files[0]));
  document.addEventListener("paste", (event) => open([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
  $("threshold").addEventListener("input", () => { $("auto").checked = false; show(); });
  $("auto").addEventListener("change", show);
  $("opacity").addEventListener("input", () => { $("view").style.opacity = $("opacity").value / 100; });
  $("view").style.opacity = $("opacity").value / 100;
  const layers = $("layers");
  layers.addEventListener("click", (event) => {
    const box = layers.getBoundingClientRect();
    $("cross").hidden = true;
    choose((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  layers.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 0.1 : 0.02;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) {
      cross = cross.map((value, axis) => Math.min(0.999, Math.max(0, value + moves[event.key][axis])));
      Object.assign($("cross").style, { left: `${100 * cross[0]}%`, top: `${100 * cross[1]}%` });
      $("cross").hidden = false;
    } else if (event.key === "Enter" || event.key === " ") {
      choose(...cross);
    } else if (event.key === "Escape") {
      clicked = null;
      $("cross").hidden = true;
      unmark();
    } else {
      return;
    }
    event.preventDefault();
  });
  backend.describe().then((found) => {
    engine = found;
    $("engine").textContent = title();
    $("where").textContent = engine.where;
    for (const { text, href } of engine.links) {
      const link = document.createElement("a");
      Object.assign(link, { textContent: text, href });
      $("links").append(link);
    }
    $("auto-label").hidden = !engine.auto;
    $("threshold").disabled = engine.head === "features"; // what is cut has no threshold
    $("auto").checked = engine.threshold === "auto";
  }).catch(tell);
}
