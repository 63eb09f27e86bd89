// Runs job.js of a folder: a module whose default export takes `given` and returns arrays and JSON, by name.
// given.json: name → JSON, or { file, type } for an array in a file of its own. read(name): the bytes of a file.

const TYPES = { uint8: Uint8Array, int32: Int32Array, float32: Float32Array };

export async function run(job, read) {
  const given = JSON.parse(new TextDecoder().decode(await read("given.json")));
  for (const [name, value] of Object.entries(given)) {
    if (value?.file) given[name] = new TYPES[value.type](await read(value.file));
  }
  const found = await job(given);
  for (const [name, value] of Object.entries(found)) {
    if (ArrayBuffer.isView(value)) found[name] = { type: value.constructor.name.replace("Array", "").toLowerCase(), values: Array.from(value) };
  }
  return JSON.stringify(found);
}
