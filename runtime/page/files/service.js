// The page of a service: a picture goes there once, which keeps its attention for some minutes.

import { Told, start } from "./page.js";

/** Asks the service, and turns what it refuses into an error in its own words. */
async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Told("The service does not answer. Is it still running?", 0);
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Told(said.error ?? `The service answered ${answer.status}.`, answer.status);
}

async function send(file) {
  const headers = { "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream" };
  const { picture: id, size, view } = await (await ask("/pictures", { method: "POST", body: file, headers })).json();
  return { id, size, view };
}

/** A request about a picture. If the service has forgotten it, it is sent again. */
async function about(picture, path) {
  try {
    return await ask(`/pictures/${picture.id}${path}`);
  } catch (error) {
    if (error.status !== 404) throw error;
    Object.assign(picture, await send(picture.file));
    return ask(`/pictures/${picture.id}${path}`);
  }
}

start({
  async describe() {
    const links = [{ text: "API", href: "/docs" }];
    return { ...(await (await ask("/engine")).json()), where: "It stays on this service's machine.", links };
  },

  open: send,

  async segment(picture, threshold) {
    const answer = await about(picture, `?threshold=${threshold}`);
    return { colours: await createImageBitmap(await answer.blob()), count: Number(answer.headers.get("X-Segments")) };
  },

  async at(picture, x, y, threshold) {
    const found = await (await about(picture, `/at?x=${x}&y=${y}&threshold=${threshold}`)).json();
    const grey = Uint8Array.from(atob(found.heat), (letter) => letter.charCodeAt(0));
    return { ...found, heat: await createImageBitmap(new Blob([grey], { type: "image/png" })) };
  },

  file: async (picture, form, threshold) => (await about(picture, `?format=${form}&threshold=${threshold}`)).blob(),
  sample: async () => (await ask("/page/sample.jpg")).blob(),
});
