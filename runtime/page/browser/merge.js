// DiffSeg's merge on one frame's attention maps: "Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), sections 3.2 to
// 3.4. The numbers are those of the Python package runtime.merge, but for the rounding of floats.

const SMALLEST = 1e-12; // what a logarithm sees in place of a probability of 0
const CELLS = 8; // blocks of pixels per axis, at most, by whose sums far maps are told without an exact divergence
const MARGIN = 1e-4; // far above what float32 may round in a divergence
const GROUP = 8; // tokens whose rows are added up together
const STEP = 64; // numbers of a divergence between two looks at whether it is too large already

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

/** Logarithms of maps [count, n] that sum to n. */
export function logarithms(maps, n) {
  const out = new Float32Array(maps.length), smallest = n * SMALLEST;
  for (let i = 0; i < out.length; i++) out[i] = Math.log(maps[i] > smallest ? maps[i] : smallest);
  return out;
}

/**
 * Σ (a − b)(log a − log b) of two maps of n numbers at `i` and `j`: 2n·D (equation 5), for maps that sum to n.
 * No term is negative, so the sum may end as soon as it exceeds `most`.
 */
function difference(a, logA, i, b, logB, j, n, most) {
  let one = 0, two = 0, three = 0, four = 0, k = 0;
  const tail = n & ~3;
  while (k < tail) {
    for (const end = Math.min(tail, k + STEP); k < end; k += 4, i += 4, j += 4) {
      one += (a[i] - b[j]) * (logA[i] - logB[j]);
      two += (a[i + 1] - b[j + 1]) * (logA[i + 1] - logB[j + 1]);
      three += (a[i + 2] - b[j + 2]) * (logA[i + 2] - logB[j + 2]);
      four += (a[i + 3] - b[j + 3]) * (logA[i + 3] - logB[j + 3]);
    }
    if (one + two + three + four > most) return one + two + three + four;
  }
  for (; k < n; k++, i++, j++) one += (a[i] - b[j]) * (logA[i] - logB[j]);
  return one + two + three + four;
}

/** Maps [count, n] that sum to n, their logarithms, and both of their sums in blocks of pixels. */
class Maps {
  constructor(values, shape) {
    this.values = values;
    this.n = shape[0] * shape[1];
    this.count = values.length / this.n;
    this.logs = logarithms(values, this.n);
    this.blocks = sumBlocks(values, shape, shape.map((side) => blocksPerAxis(side)));
    this.cells = this.blocks.length / this.count;
    // Added, where the exact logarithm takes a maximum: so the sums' divergence is never above the maps' own.
    for (let i = 0; i < this.blocks.length; i++) this.blocks[i] += this.n * SMALLEST;
    this.blockLogs = this.blocks.map(Math.log);
  }

  /**
   * 2n·D of map i and map j of `other`, or a number above `most` that is not above it: then D of sums of pixels may be
   * enough, which is never above D of the pixels (the data-processing inequality).
   */
  difference(i, other, j, most) {
    const { cells, n } = this, least = most + MARGIN * n;
    const summed = difference(this.blocks, this.blockLogs, i * cells, other.blocks, other.blockLogs, j * cells, cells, least);
    if (summed > least) return summed - MARGIN * n;
    return difference(this.values, this.logs, i * n, other.values, other.logs, j * n, n, most);
  }

  /** The mean of the members of each row of `members`, Uint8Array [rows, count]: Float32Array [rows, n]. */
  means(members) {
    const { values, count, n } = this, rows = members.length / count;
    const sums = new Float32Array(rows * n), numbers = new Int32Array(rows);
    const table = new Float32Array(n << GROUP);
    for (let first = 0; first < count; first += GROUP) {
      // Rows whose members among these few maps are the same share their sum.
      const last = Math.min(first + GROUP, count), slots = new Map();
      for (let row = 0; row < rows; row++) {
        let pattern = 0, number = 0;
        for (let j = first; j < last; j++) if (members[row * count + j]) { pattern |= 1 << (j - first); number++; }
        if (!pattern) continue;
        let slot = slots.get(pattern);
        if (slot === undefined) {
          slots.set(pattern, (slot = slots.size * n));
          table.fill(0, slot, slot + n);
          for (let j = first; j < last; j++) if ((pattern >> (j - first)) & 1) add(table, slot, values, j * n, n);
        }
        add(sums, row * n, table, slot, n);
        numbers[row] += number;
      }
    }
    for (let row = 0; row < rows; row++) for (let k = row * n; k < (row + 1) * n; k++) sums[k] /= numbers[row];
    return sums;
  }
}

function add(target, to, source, from, n) {
  for (let k = 0; k < n; k++) target[to + k] += source[from + k];
}

/** One frame's aggregated attention, merged again and again with other thresholds (section 3.3). */
export class Kept {
  /** maps: of `aggregate`; shape: [h, w]; anchors: the tokens of the grid. */
  constructor(maps, shape, anchors) {
    this.maps = new Maps(maps, shape);
    Object.assign(this, { shape, anchors });
    // Of each anchor and each map 2n·D or, where it is not `exact`, what it is not below.
    this.differences = new Float64Array(anchors.length * this.maps.n);
    this.exact = new Uint8Array(this.differences.length);
    anchors.forEach((anchor, i) => { this.exact[i * this.maps.n + anchor] = 1; });
  }

  /** The proposals Float32Array [P, n], each sums to n; thresholds: one per iteration. */
  propose(thresholds) {
    const { maps, shape } = this;
    let proposals = maps.means(this.members(thresholds[0]));
    for (const threshold of thresholds.slice(1)) {
      const before = new Maps(proposals, shape);
      proposals = before.means(claims(before, threshold));
    }
    return proposals;
  }

  /** Which maps are nearer to each anchor than the threshold: Uint8Array [anchors, n]. */
  members(threshold) {
    const { maps, anchors, differences, exact } = this, most = 2 * maps.n * threshold, found = new Uint8Array(exact.length);
    for (let i = 0, at = 0; i < anchors.length; i++) {
      for (let j = 0; j < maps.n; j++, at++) {
        if (!exact[at] && differences[at] < most) {
          differences[at] = maps.difference(anchors[i], maps, j, most);
          exact[at] = differences[at] < most ? 1 : 0;
        }
        found[at] = differences[at] < most ? 1 : 0;
      }
    }
    return found;
  }
}

/** In order, each proposal that no earlier one has claimed claims all that are near it: Uint8Array [kept, count]. */
function claims(proposals, threshold) {
  const { count, n } = proposals, most = 2 * n * threshold, claimed = new Uint8Array(count), kept = [];
  for (let i = 0; i < count; i++) {
    if (claimed[i]) continue;
    const near = new Uint8Array(count);
    for (let j = 0; j < count; j++) if (i === j || proposals.difference(i, proposals, j, most) < most) near[j] = claimed[j] = 1;
    kept.push(near);
  }
  const found = new Uint8Array(kept.length * count);
  kept.forEach((near, i) => found.set(near, i * count));
  return found;
}

/**
 * The proposal that is largest at each pixel, the first one on a tie (section 3.4): Int32Array [H·W].
 * scores: Float32Array [P, h·w]; they are interpolated bilinearly, with half-pixel centres.
 */
export function suppress(scores, [h, w], [height, width]) {
  const n = h * w, count = scores.length / n, labels = new Int32Array(height * width);
  const down = interpolation(h, height), across = interpolation(w, width);
  const rows = runs(down), columns = runs(across);
  const candidates = new Int32Array(count);
  for (const [top, bottom] of rows) {
    const upper = down.first[top] * w, lower = down.second[top] * w;
    for (const [left, right] of columns) {
      const a = upper + across.first[left], b = upper + across.second[left];
      const c = lower + across.first[left], d = lower + across.second[left];
      // Between four tokens a proposal is nowhere above its largest, nor below its smallest value there.
      let least = -Infinity, few = 0;
      for (let at = 0; at < scores.length; at += n) {
        least = Math.max(least, Math.min(scores[at + a], scores[at + b], scores[at + c], scores[at + d]));
      }
      for (let at = 0; at < scores.length; at += n) {
        if (scores[at + a] >= least || scores[at + b] >= least || scores[at + c] >= least || scores[at + d] >= least) candidates[few++] = at;
      }
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) {
          const along = across.share[x], aside = down.share[y];
          let best = -Infinity, winner = 0;
          for (let i = 0; i < few; i++) {
            const at = candidates[i];
            const one = scores[at + a] + (scores[at + b] - scores[at + a]) * along;
            const other = scores[at + c] + (scores[at + d] - scores[at + c]) * along;
            const value = one + (other - one) * aside;
            if (value > best) { best = value; winner = at; }
          }
          labels[y * width + x] = winner / n;
        }
      }
    }
  }
  return labels;
}

/** Where the places of an axis begin and end that are between the same two of the source: [[start, end], …]. */
function runs({ first, second }) {
  const found = [];
  for (let start = 0, i = 1; i <= first.length; i++) {
    if (i < first.length && first[i] === first[start] && second[i] === second[start]) continue;
    found.push([start, i]);
    start = i;
  }
  return found;
}
