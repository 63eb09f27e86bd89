// Resizing a picture to the engine's size as runtime.frames.resize does it with OpenCV, up to the rounding of a value: an
// axis that shrinks is averaged (INTER_AREA), one that grows is interpolated (INTER_LINEAR), first the former.

import { interpolation } from "./aggregate.js";

/** Per place of an axis of `target`: the first place of one of `source` that it covers, and the weights from there on. */
function areas(source, target) {
  const scale = source / target;
  return Array.from({ length: target }, (_, i) => {
    const start = i * scale, end = Math.min(start + scale, source), width = end - start;
    const first = Math.min(Math.floor(start + 1e-3), source - 1), last = Math.min(Math.ceil(end - 1e-3), source);
    const weights = Float32Array.from({ length: last - first }, (_, k) => (Math.min(first + k + 1, end) - Math.max(first + k, start)) / width);
    return { first, weights };
  });
}

/** Rounds as OpenCV: a half goes to the even number or, where both axes are halved, up. */
function rounded(value, halved) {
  const below = Math.floor(value), rest = value - below;
  return rest > 0.5 || (rest === 0.5 && (halved || below % 2)) ? below + 1 : below;
}

/**
 * The picture at [height, width]: Uint8Array [height, width, 3] BGR.
 * rows(top, count): its RGBA bytes [count, W, 4] from the row `top` on, asked for from above to below, each once.
 */
export function resizePicture(rows, [tall, broad], [height, width], band = 256) {
  const high = Math.min(height, tall), wide = Math.min(width, broad);
  const down = areas(tall, high), across = areas(broad, wide);
  const small = new Uint8Array(high * wide * 3), line = new Float32Array(wide * 3);
  const sums = new Float32Array(high * wide * 3);
  const halved = tall === 2 * high && broad === 2 * wide;
  let next = 0; // the first row of the target that is not finished
  for (let top = 0; top < tall; top += band) {
    const count = Math.min(band, tall - top), pixels = rows(top, count);
    for (let y = top; y < top + count; y++) {
      line.fill(0);
      for (let x = 0, to = 0; x < wide; x++, to += 3) {
        const { first, weights } = across[x];
        let red = 0, green = 0, blue = 0;
        for (let k = 0, from = ((y - top) * broad + first) * 4; k < weights.length; k++, from += 4) {
          red += pixels[from] * weights[k];
          green += pixels[from + 1] * weights[k];
          blue += pixels[from + 2] * weights[k];
        }
        line[to] = blue;
        line[to + 1] = green;
        line[to + 2] = red;
      }
      for (let row = next; row < high && down[row].first <= y; row++) {
        const weight = down[row].weights[y - down[row].first];
        if (weight === undefined) { next = row + 1; continue; }
        for (let k = 0, to = row * line.length; k < line.length; k++, to++) sums[to] += line[k] * weight;
      }
    }
  }
  for (let i = 0; i < sums.length; i++) small[i] = rounded(sums[i], halved);
  return high === height && wide === width ? small : enlarged(small, [high, wide], [height, width]);
}

/** INTER_LINEAR of Uint8Array [h, w, 3], in the whole numbers that OpenCV uses: shares are 11 bits. */
function enlarged(small, [h, w], [height, width]) {
  const down = interpolation(h, height), across = interpolation(w, width), out = new Uint8Array(height * width * 3);
  const bits = (share) => Math.round(share * 2048);
  for (let y = 0, to = 0; y < height; y++) {
    const second = bits(down.share[y]), first = bits(1 - down.share[y]);
    for (let x = 0; x < width; x++) {
      const right = bits(across.share[x]), left = bits(1 - across.share[x]);
      for (let channel = 0; channel < 3; channel++, to++) {
        const along = (row) => (small[(row * w + across.first[x]) * 3 + channel] * left + small[(row * w + across.second[x]) * 3 + channel] * right) >> 4;
        out[to] = (((first * along(down.first[y])) >> 16) + ((second * along(down.second[y])) >> 16) + 2) >> 2;
      }
    }
  }
  return out;
}
