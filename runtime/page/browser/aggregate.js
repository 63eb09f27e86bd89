// Step 1 of DiffSeg, one attention tensor from the maps of several resolutions, and what all steps do with maps:
// interpolate them and sum their pixels. The numbers are those of runtime.merge.aggregate.

export const CELLS = 8; // blocks of pixels per axis, at most, by whose sums far maps are told without an exact divergence

/** Per place of an axis of `target`: the two places of one of `source` that it is between, and the share of the second. */
export function interpolation(source, target) {
  const first = new Int32Array(target), second = new Int32Array(target), share = new Float64Array(target);
  for (let i = 0; i < target; i++) {
    const position = ((i + 0.5) * source) / target - 0.5, below = Math.floor(position);
    first[i] = Math.max(below, 0);
    second[i] = Math.min(below + 1, source - 1);
    share[i] = position - below;
  }
  return { first, second, share };
}

/** A map [h, w] at `at` in `maps`, interpolated bilinearly to `out` [H, W]; the sum of all pixels. */
function enlarge(maps, at, [h, w], out, [height, width], down, across) {
  const wide = new Float32Array(h * width);
  for (let y = 0, to = 0; y < h; y++) {
    const row = at + y * w;
    for (let x = 0; x < width; x++) {
      const one = maps[row + across.first[x]];
      wide[to++] = one + (maps[row + across.second[x]] - one) * across.share[x];
    }
  }
  let sum = 0;
  for (let y = 0, to = 0; y < height; y++) {
    const one = down.first[y] * width, other = down.second[y] * width, share = down.share[y];
    for (let x = 0; x < width; x++) sum += out[to++] = wide[one + x] + (wide[other + x] - wide[one + x]) * share;
  }
  return sum;
}

function checkSum(sum, lowest, grid) {
  if (Number.isFinite(sum) && sum > 1e-30 && lowest >= 0) return;
  throw new Error(`The engine gave maps that are no probabilities (attention_${grid.join("x")}): this picture cannot be segmented.`);
}

/**
 * The aggregated attention (section 3.2): Float32Array [n, n] of which each row sums to n.
 * levels: Float32Array [h·w, h·w] per resolution, finest first; grids: their [h, w]; ratios: their weights, sum 1.
 */
export function aggregate(levels, grids, ratios) {
  const [h, w] = grids[0], n = h * w, maps = new Float32Array(n * n);
  for (let i = 0, at = 0; ratios[0] > 0 && i < n; i++, at += n) {
    let sum = 0, lowest = Infinity;
    for (let j = at; j < at + n; j++) {
      sum += levels[0][j];
      lowest = Math.min(lowest, levels[0][j]);
    }
    checkSum(sum, lowest, grids[0]);
    const scale = (ratios[0] * n) / sum;
    for (let j = at; j < at + n; j++) maps[j] = levels[0][j] * scale;
  }
  for (let level = 1; level < levels.length; level++) {
    if (!(ratios[level] > 0)) continue;
    const [high, wide] = grids[level], size = high * wide, full = new Float32Array(n);
    const down = interpolation(high, h), across = interpolation(wide, w);
    const queries = Array.from({ length: size }, () => []);
    for (let i = 0; i < n; i++) queries[Math.floor((Math.floor(i / w) * high) / h) * wide + Math.floor(((i % w) * wide) / w)].push(i);
    for (let query = 0; query < size; query++) {
      let lowest = Infinity;
      for (let j = query * size; j < (query + 1) * size; j++) lowest = Math.min(lowest, levels[level][j]);
      const sum = enlarge(levels[level], query * size, grids[level], full, grids[0], down, across);
      checkSum(sum, lowest, grids[level]);
      const scale = (ratios[level] * n) / sum;
      for (let j = 0; j < n; j++) full[j] *= scale;
      for (const i of queries[query]) for (let j = 0, to = i * n; j < n; j++) maps[to++] += full[j];
    }
  }
  return maps;
}

/** Into how many equal blocks an axis is summed: the most that divide it, at most `most`. */
export function blocksPerAxis(side, most = CELLS) {
  for (let parts = Math.min(side, most); ; parts--) if (side % parts === 0) return parts;
}

/** Maps [count, h·w] summed in [down, across] equal blocks of pixels: Float32Array [count, down·across]. */
export function sumBlocks(maps, [h, w], [down, across]) {
  const count = maps.length / (h * w), cells = down * across, out = new Float32Array(count * cells);
  const high = h / down, wide = w / across;
  for (let map = 0, at = 0; map < count; map++) {
    for (let y = 0; y < h; y++) {
      const row = map * cells + Math.floor(y / high) * across;
      for (let cell = row; cell < row + across; cell++) {
        let sum = 0;
        for (let x = 0; x < wide; x++) sum += maps[at++];
        out[cell] += sum;
      }
    }
  }
  return out;
}
