// The page without a service: the network and the merge run in a worker of this browser, and pictures stay in it.

import { Told, start } from "./page.js";

let about = null; // what engine.json says
const waiting = new Map(); // number of a message → { resolve, reject }
let worker = null, sent = 0, say = () => {};

function send(name, given = {}, transfer = []) {
  if (!worker) {
    worker = new Worker(new URL("browser/worker.js", import.meta.url), { type: "module" });
    worker.addEventListener("message", ({ data }) => {
      if ("share" in data) return say(data.share < 1 ? `Loading the engine, ${Math.round(100 * data.share)} % …` : "Segmenting …");
      const { resolve, reject } = waiting.get(data.id);
      waiting.delete(data.id);
      return "error" in data ? reject(new Told(data.error)) : resolve(data.answer);
    });
    worker.addEventListener("error", (event) => {
      for (const { reject } of waiting.values()) reject(new Told(`This browser cannot run the engine: ${event.message ?? "its worker does not start"}.`));
      waiting.clear();
      worker = null;
    });
  }
  return new Promise((resolve, reject) => {
    waiting.set(++sent, { resolve, reject });
    worker.postMessage({ id: sent, name, given }, transfer);
  });
}

/** The pixels of a picture, with its rotation applied. What is too large is refused before it is decoded. */
async function decode(file) {
  const image = new Image(), url = URL.createObjectURL(file);
  try {
    image.src = url;
    await new Promise((resolve, reject) => { image.onload = resolve; image.onerror = reject; });
    const most = about.most_pixels, { naturalWidth: width, naturalHeight: height } = image;
    if (width * height > most) {
      throw new Told(`This picture has ${width}×${height} pixels, ${(width * height / 1e6).toFixed(1)} million; expected at most ${most / 1e6} million. Make it smaller.`);
    }
    return await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch (error) {
    if (error instanceof Told) throw error;
    throw new Told(`${file.name || "This file"} is no picture that this browser can read, or is damaged; expected JPEG, PNG, WebP, AVIF, GIF or BMP.`);
  } finally {
    URL.revokeObjectURL(url);
  }
}

export const backend = {
  async describe() {
    try {
      about = await (await fetch(new URL("../engine/engine.json", import.meta.url))).json();
    } catch {
      throw new Told("This site lacks its file engine/engine.json. Build it again with diffseg page.");
    }
    return about;
  },

  async open(file, progress) {
    say = progress;
    about ?? (await this.describe());
    const bitmap = await decode(file);
    const found = await send("open", { bitmap }, [bitmap]), { threads, spent } = found;
    return { ...found, note: `network ${Math.round(spent.network)} ms on ${threads} thread${threads === 1 ? "" : "s"} of this browser` };
  },

  segment: (picture, threshold) => send("segment", { threshold }),
  at: (picture, x, y, threshold) => send("at", { x, y, threshold }),
  file: (picture, form, threshold) => send("file", { form, threshold }),
  sample: async () => (await fetch(new URL("sample.jpg", import.meta.url))).blob(),
  inside: (threshold) => send("inside", { threshold }),
};

start(backend);
