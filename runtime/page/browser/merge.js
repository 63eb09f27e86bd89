// DiffSeg's merge on one frame's attention maps: "Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), sections 3.2 to
// 3.4. The numbers are those of the Python package runtime.merge, but for the rounding of floats.

import { CELLS, blocksPerAxis, interpolation, sumBlocks } from "./aggregate.js";
import { BLOCK, Memory } from "./simd.js";

const SMALLEST = 1e-12; // what a logarithm sees in place of a probability of 0
const MARGIN = 1e-4; // far above what float32 may round in a divergence
const GROUP = 8; // tokens whose rows are added up together

const padded = (count) => Math.ceil(count / BLOCK) * BLOCK;

/**
 * Maps of n numbers that sum to n, their logarithms, and both of their sums in blocks of pixels, in a `Memory`. Zeros, in
 * values and logarithms, fill each row up to the length `stride`: they add nothing to any sum or divergence.
 */
class Maps {
  constructor(memory, most, shape) {
    this.shape = shape;
    this.n = shape[0] * shape[1];
    this.blocksOf = shape.map((side) => blocksPerAxis(side));
    this.cells = this.blocksOf[0] * this.blocksOf[1];
    Object.assign(this, { exports: memory.exports, count: 0, stride: padded(this.n), width: padded(this.cells) });
    [this.values, this.logs] = [0, 0].map(() => memory.take(most * this.stride));
    [this.blocks, this.blockLogs] = [0, 0].map(() => memory.take(most * this.width));
  }

  /** How many numbers the memory of `most` maps has. */
  static room(most, n) { return 2 * most * (padded(n) + CELLS * CELLS); }

  /** The map i. */
  row(i) { return this.values.subarray(i * this.stride, i * this.stride + this.n); }

  /** All maps, Float32Array [count, n], one behind the other. */
  all() {
    if (this.stride === this.n) return this.values.subarray(0, this.count * this.n);
    const found = new Float32Array(this.count * this.n);
    for (let i = 0; i < this.count; i++) found.set(this.row(i), i * this.n);
    return found;
  }

  /** Makes the rest fit the first `count` of the values. */
  fill(count) {
    this.count = count;
    const { n, cells, stride, width, values, logs, blocks, blockLogs } = this, smallest = n * SMALLEST;
    for (let i = 0; i < count; i++) {
      for (let k = i * stride, end = k + n; k < end; k++) logs[k] = Math.log(values[k] > smallest ? values[k] : smallest);
      blocks.set(sumBlocks(this.row(i), this.shape, this.blocksOf), i * width);
      for (let k = i * width, end = k + cells; k < end; k++) {
        // Added, where the exact logarithm takes a maximum: so the sums' divergence is never above the maps' own.
        blocks[k] += smallest;
        blockLogs[k] = Math.log(blocks[k]);
      }
    }
    return this;
  }

  /**
   * 2n·D (equation 5) of map i and map j of `other`, or a number above `most` that is not above it: then D of the sums may
   * be enough, which is never above D of the pixels (the data-processing inequality).
   */
  difference(i, other, j, most) {
    const { stride, width, exports: { difference } } = this, margin = MARGIN * this.n;
    const [a, b] = [this, other].map(({ blocks }) => blocks.byteOffset), [logA, logB] = [this, other].map(({ blockLogs }) => blockLogs.byteOffset);
    let from = 4 * i * width, to = 4 * j * width;
    const least = difference(a + from, logA + from, b + to, logB + to, a + from + 4 * width, most + margin);
    if (least > most + margin) return least - margin;
    from = this.values.byteOffset + 4 * i * stride;
    to = other.values.byteOffset + 4 * j * stride;
    const own = this.logs.byteOffset - this.values.byteOffset, others = other.logs.byteOffset - other.values.byteOffset;
    return difference(from, from + own, to, to + others, from + 4 * stride, most);
  }

  /** Writes the mean of the members of each row of `members`, Uint8Array [rows, count], to `target`; `table`: for sums. */
  means(members, target, table) {
    const { values, count, stride, exports: { add } } = this, rows = members.length / count, bytes = 4 * stride;
    const numbers = new Int32Array(rows), slots = new Int32Array(1 << GROUP);
    target.values.fill(0, 0, rows * stride);
    for (let first = 0; first < count; first += GROUP) {
      // Rows whose members among these few maps are the same share their sum.
      const last = Math.min(first + GROUP, count);
      let used = 0;
      slots.fill(-1);
      for (let row = 0; row < rows; row++) {
        let pattern = 0;
        for (let j = first; j < last; j++) pattern |= members[row * count + j] << (j - first);
        if (!pattern) continue;
        let slot = slots[pattern];
        if (slot < 0) {
          slot = slots[pattern] = table.byteOffset + bytes * used;
          table.fill(0, used * stride, ++used * stride);
          for (let j = first; j < last; j++) if ((pattern >> (j - first)) & 1) add(slot, values.byteOffset + bytes * j, slot + bytes);
        }
        const to = target.values.byteOffset + bytes * row;
        add(to, slot, to + bytes);
        for (; pattern; pattern &= pattern - 1) numbers[row]++;
      }
    }
    for (let row = 0; row < rows; row++) for (let k = row * stride; k < (row + 1) * stride; k++) target.values[k] /= numbers[row];
    return target.fill(rows);
  }
}

/** One frame's aggregated attention, merged again and again with other thresholds (section 3.3). */
export class Kept {
  /** maps: of `aggregate`; shape: [h, w]; anchors: the tokens of the grid. */
  constructor(maps, shape, anchors) {
    const n = shape[0] * shape[1], count = anchors.length;
    const memory = new Memory(Maps.room(n, n) + 2 * Maps.room(count, n) + (padded(n) << GROUP));
    this.maps = new Maps(memory, n, shape);
    for (let i = 0; i < n; i++) this.maps.row(i).set(maps.subarray(i * n, (i + 1) * n));
    this.maps.fill(n);
    this.proposals = [0, 0].map(() => new Maps(memory, count, shape));
    this.table = memory.take(padded(n) << GROUP);
    Object.assign(this, { anchors, shape });
    // Of each anchor and each map 2n·D or, where it is not `exact`, what it is not below.
    this.differences = new Float64Array(count * n);
    this.exact = new Uint8Array(count * n);
    anchors.forEach((anchor, i) => { this.exact[i * n + anchor] = 1; });
  }

  /** The proposals Float32Array [P, n], each sums to n; thresholds: one per iteration. They are valid until the next call. */
  propose(thresholds) {
    let [now, next] = this.proposals;
    this.maps.means(this.members(thresholds[0]), now, this.table);
    for (const threshold of thresholds.slice(1)) {
      now.means(claims(now, threshold), next, this.table);
      [now, next] = [next, now];
    }
    return now.all();
  }

  /** Computes all divergences of the anchor number i, so that no threshold has to wait for them. */
  settle(i) {
    const { maps, anchors, differences, exact } = this;
    for (let j = 0, at = i * maps.n; j < maps.n; j++, at++) {
      if (!exact[at]) differences[at] = maps.difference(anchors[i], maps, j, Infinity);
      exact[at] = 1;
    }
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
