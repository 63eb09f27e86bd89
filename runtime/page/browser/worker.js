// The service's work in a browser: one picture at a time, its attention kept. Answers messages { id, name, given }.

import { InferenceSession, Tensor, env } from "../../onnxruntime/ort.wasm.bundle.min.js";
import { aggregate, interpolation } from "./aggregate.js";
import { Labels, coco, coloursOf, outline, painter } from "./labels.js";
import { Kept, suppress } from "./merge.js";
import { chooseParts } from "./parts.js";
import { encodePng } from "./png.js";
import { resizePicture } from "./resize.js";

const MOST_THREADS = 4;
let engine = null; // what engine.json says
let session = null; // a promise of the network
let picture = null; // { bitmap, size, view, kept }

/** The bytes of the network's file; say(share) tells how far it is. */
async function read(url, bytes, say) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`The engine could not be loaded: ${url} answered ${answer.status}.`);
  const data = new Uint8Array(bytes);
  let at = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > bytes) break;
    data.set(value, at);
    say((at += value.length) / bytes);
  }
  if (at !== bytes) throw new Error(`The engine could not be loaded: ${url} has ${at} bytes, expected ${bytes}. Build the site again.`);
  return data;
}

async function load() {
  engine = await (await fetch(new URL("../../engine/engine.json", import.meta.url))).json();
  env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
  env.wasm.wasmPaths = { wasm: new URL("../../onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  const say = (share) => postMessage({ share });
  const data = await read(new URL(`../../engine/${encodeURIComponent(engine.file)}`, import.meta.url), engine.bytes, say);
  try {
    return await InferenceSession.create(data, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
  } catch (error) {
    throw new Error(`ONNX Runtime does not start in this browser, or the site lacks a file of it: ${error?.message ?? error}`);
  }
}

/** Reads RGBA bytes of rows of a picture. Rows are asked for from above to below. */
function reader(bitmap) {
  let canvas = null;
  return (top, count) => {
    if (canvas?.height !== count) canvas = new OffscreenCanvas(bitmap.width, count);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.clearRect(0, 0, bitmap.width, count);
    context.drawImage(bitmap, 0, -top);
    return context.getImageData(0, 0, bitmap.width, count).data;
  };
}

const work = {
  async open({ bitmap }) {
    const network = await (session ??= load().catch((error) => { session = null; throw error; }));
    const size = [bitmap.height, bitmap.width], scale = Math.min(1, engine.view / Math.max(...size));
    const started = performance.now();
    const frame = resizePicture(reader(bitmap), size, engine.size);
    const resized = performance.now();
    const found = await network.run({ frame: new Tensor("uint8", frame, [1, ...engine.size, 3]) }, engine.outputs);
    const inferred = performance.now();
    const levels = engine.outputs.map((name) => found[name].data);
    const kept = new Kept(aggregate(levels, engine.grids, engine.ratios), engine.grids[0], engine.anchors);
    picture?.bitmap.close();
    picture = { bitmap, size, view: size.map((side) => Math.max(1, Math.round(side * scale))), kept, frame, raw: new Map() };
    settle(kept);
    const spent = { resize: resized - started, network: inferred - resized, attention: performance.now() - inferred };
    return { size, view: picture.view, threads: env.wasm.numThreads, spent };
  },

  async segment({ threshold }) {
    const labels = labelled(threshold, picture.view), { height, width } = labels;
    const next = painter(labels, coloursOf(labels, engine.palette), 4), pixels = new Uint8ClampedArray(height * width * 4);
    for (let y = 0; y < height; y++) pixels.set(next().colours, y * width * 4);
    return { count: labels.count, colours: await createImageBitmap(new ImageData(pixels, width, height)) };
  },

  async at({ x, y, threshold }) {
    const labels = labelled(threshold, picture.size), index = labels.at(x, y), area = labels.areas[index];
    const heat = await createImageBitmap(heatOf(x, y));
    return { index, area, share: area / (labels.height * labels.width), outline: [outline(labels, index)], heat };
  },

  async file({ form, threshold }) {
    const labels = labelled(threshold, picture.size);
    if (form === "coco") return new Blob([JSON.stringify(coco(labels, "picture"))], { type: "application/json" });
    if (form === "labels") {
      const bits = labels.count > 256 ? 16 : 8, row = new Int32Array(labels.width);
      return encodePng(picture.size, 1, bits, (y, out) => {
        labels.row(y, row);
        if (bits === 8) out.set(row);
        else for (let x = 0; x < row.length; x++) [out[2 * x], out[2 * x + 1]] = [row[x] >> 8, row[x]];
      });
    }
    const next = painter(labels, coloursOf(labels, engine.palette)), rows = reader(picture.bitmap), band = 64;
    let pixels = null;
    return encodePng(picture.size, 3, 8, (y, out) => {
      if (y % band === 0) pixels = rows(y, Math.min(band, labels.height - y));
      const { colours, edges } = next();
      for (let x = 0, from = (y % band) * labels.width * 4, to = 0; x < labels.width; x++, from++) {
        for (let channel = 0; channel < 3; channel++, to++, from++) {
          const sum = colours[to] + pixels[from], half = sum >> 1;
          out[to] = edges[x] ? 255 : half + (sum & half & 1);
        }
      }
    });
  },

  /** For tests: the resized frame and the labels at the engine's size. */
  async inside({ threshold }) { return { frame: picture.frame, raw: merged(threshold).raw }; },
};

/** Between messages, computes what any threshold may need. */
function settle(kept, anchor = 0) {
  for (let last = Math.min(anchor + 4, engine.anchors.length); anchor < last; anchor++) kept.settle(anchor);
  if (anchor < engine.anchors.length) setTimeout(() => { if (picture?.kept === kept) settle(kept, anchor); });
}

/** { raw: the labels at the engine's size, alike: of Labels }; the last few are kept, since a click and a download need those that are shown. */
function merged(threshold) {
  const { raw, kept } = picture;
  if (!raw.has(threshold)) {
    if (raw.size > 3) raw.delete(raw.keys().next().value);
    const shape = engine.grids[0], { scores, alike = null } = threshold === "auto"
      ? chooseParts(kept, engine.thresholds) : { scores: kept.propose(engine.thresholds.map(() => Number(threshold))) };
    raw.set(threshold, { raw: suppress(scores, shape, engine.size), alike: alike && { numbers: alike, shape } });
  }
  return raw.get(threshold);
}

function labelled(threshold, size) {
  const { raw, alike } = merged(threshold);
  return new Labels(raw, engine.size, size, engine.least_piece, alike);
}

/** Where a pixel looks: its token's map, at most engine.heat pixels wide and high, as a grey picture. */
function heatOf(x, y) {
  const [h, w] = engine.grids[0], [height, width] = picture.size, { maps } = picture.kept;
  const token = Math.floor((y * h) / height) * w + Math.floor((x * w) / width), map = maps.row(token);
  const scale = engine.heat / Math.max(height, width), [tall, broad] = picture.size.map((side) => Math.max(1, Math.round(side * Math.min(1, scale))));
  const down = interpolation(h, tall), across = interpolation(w, broad), heat = new Float32Array(tall * broad);
  let most = 0;
  for (let i = 0, to = 0; i < tall; i++) {
    const one = down.first[i] * w, other = down.second[i] * w;
    for (let j = 0; j < broad; j++, to++) {
      const a = across.first[j], b = across.second[j], upper = map[one + a] + (map[one + b] - map[one + a]) * across.share[j];
      const lower = map[other + a] + (map[other + b] - map[other + a]) * across.share[j];
      heat[to] = upper + (lower - upper) * down.share[i];
      most = Math.max(most, heat[to]);
    }
  }
  const pixels = new Uint8ClampedArray(heat.length * 4).fill(255);
  heat.forEach((value, i) => pixels.fill(Math.floor((255 * value) / most), 4 * i, 4 * i + 3));
  return new ImageData(pixels, broad, tall);
}

let last = Promise.resolve(); // one after the other: `open` waits for the network
addEventListener("message", ({ data: { id, name, given } }) => {
  last = last.then(() => work[name](given)).then(
    (answer) => postMessage({ id, answer }, Object.values(answer).filter((value) => value instanceof ImageBitmap)),
    (error) => postMessage({ id, error: error?.message ?? String(error) }),
  );
});
