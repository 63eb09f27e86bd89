// The threshold "auto": the hierarchy of the merge's segments is cut where a criterion is largest, as runtime.merge.parts
// does and explains it.

import { blocksPerAxis, sumBlocks } from "./aggregate.js";
import { connected } from "./pieces.js";

const FINEST = 0.7, ROUNDS = 5, KL_SHARE = 0.25, LEAST = 0.2, ALIKE = 0.6, TIE = 1e-6; // of runtime.merge.parts
const LEAST_PIECE = 0.004; // of runtime.labels
const CELLS = 16; // of runtime.merge.likeness

/** Square roots of maps [count, n] summed in blocks, as rows of unit length: { rows, cells }. */
function profiles(maps, shape) {
  const blocks = shape.map((side) => blocksPerAxis(side, CELLS)), cells = blocks[0] * blocks[1], rows = sumBlocks(maps, shape, blocks);
  for (let at = 0; at < rows.length; at += cells) {
    let sum = 0;
    for (let k = at; k < at + cells; k++) sum += rows[k];
    for (let k = at; k < at + cells; k++) rows[k] = Math.sqrt(rows[k] / sum);
  }
  return { rows, cells };
}

/** How like each token is to each of some maps: Float32Array [maps, n]. */
function likenesses(some, own) {
  const count = some.rows.length / some.cells, n = own.rows.length / own.cells, found = new Float32Array(count * n);
  for (let i = 0, to = 0; i < count; i++) {
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let a = i * some.cells, b = j * own.cells, end = a + some.cells; a < end; a++, b++) sum += some.rows[a] * own.rows[b];
      found[to++] = sum;
    }
  }
  return found;
}

/** The first of the largest of each token's likenesses, and numbers without gaps for them: Int32Array [n]. */
function strongest(scores, n) {
  const count = scores.length / n, winners = Int32Array.from({ length: n }, (_, j) => {
    let best = 0;
    for (let i = 1; i < count; i++) if (scores[i * n + j] > scores[best * n + j]) best = i;
    return best;
  });
  return renumbered(winners);
}

function renumbered(values) {
  const numbers = new Map([...new Set(values)].sort((a, b) => a - b).map((value, number) => [value, number]));
  return Int32Array.from(values, (value) => numbers.get(value));
}

/** Σ over all k of a[k]·b[k], maps i of a and j of b. */
function product(a, i, b, j, n) {
  let sum = 0;
  for (let k = 0, from = i * n, to = j * n; k < n; k++) sum += a[from++] * b[to++];
  return sum;
}

/** D of the maps i and j of some maps, whose logarithms are `logs`; each sums to n. */
function divergence(maps, logs, i, j, n) {
  const cross = product(maps, i, logs, j, n) + product(maps, j, logs, i, n);
  return (product(maps, i, logs, i, n) + product(maps, j, logs, j, n) - cross) / (2 * n);
}

function logarithms(maps, n) { return maps.map((value) => Math.log(Math.max(value, n * 1e-12))); }

/** The mean map of each part: Float64Array [sizes.length, n]; part: Int32Array [n], −1 for tokens of no part. */
function meansOf(maps, part, sizes, n) {
  const means = new Float64Array(sizes.length * n);
  for (let i = 0; i < n; i++) if (part[i] >= 0) for (let k = 0, to = part[i] * n; k < n; k++) means[to++] += maps[i * n + k] / sizes[part[i]];
  return means;
}

/** Which of the hierarchy's segments each part goes to; means: Float64Array [count, n], sizes: their tokens. */
function cutHierarchy(means, part, sizes, n) {
  const count = sizes.length, logs = logarithms(means, n);
  // How much of all attention goes from part i to part j; and D of every two of them.
  const attention = Array.from({ length: count }, () => new Float64Array(count)), apart = Array.from({ length: count }, () => new Float64Array(count).fill(Infinity));
  for (let i = 0; i < count; i++) for (let j = 0; j < n; j++) attention[i][part[j]] += (means[i * n + j] * sizes[i]) / n ** 2;
  for (let i = 0; i < count; i++) {
    for (let j = 0; j < i; j++) {
      attention[i][j] = attention[j][i] = (attention[i][j] + attention[j][i]) / 2;
      apart[i][j] = apart[j][i] = divergence(means, logs, i, j, n);
    }
  }
  const groups = sizes.map((size, i) => ({
    size, within: attention[i][i], degree: attention[i].reduce((sum, share) => sum + share, 0),
    sum: means.slice(i * n, (i + 1) * n).map((value) => value * size), children: null,
  }));
  const node = groups.map((_, i) => i), weights = [...sizes];
  for (let union = 1; union < count; union++) {
    let kept = 0, gone = 0, least = Infinity;
    for (let i = 0; i < count; i++) for (let j = i + 1; j < count; j++) if (apart[i][j] < least) [kept, gone, least] = [i, j, apart[i][j]];
    const one = groups[node[kept]], other = groups[node[gone]];
    groups.push({
      size: one.size + other.size, within: one.within + other.within + 2 * attention[kept][gone], degree: one.degree + other.degree,
      sum: one.sum.map((value, k) => value + other.sum[k]), children: [node[kept], node[gone]],
    });
    node[kept] = groups.length - 1;
    const share = weights[gone] / (weights[kept] + weights[gone]);
    weights[kept] += weights[gone];
    for (let i = 0; i < count; i++) {
      attention[kept][i] += attention[gone][i];
      if (i !== kept) apart[kept][i] = apart[i][kept] = apart[kept][i] * (1 - share) + apart[gone][i] * share;
    }
    for (let i = 0; i < count; i++) {
      attention[i][kept] += attention[i][gone];
      apart[gone][i] = apart[i][gone] = Infinity;
    }
  }
  const values = groups.map(({ size, within, degree, sum }) => {
    let told = 0;
    for (const value of sum) told += (value / size) * Math.log(Math.max(value / size, n * 1e-12));
    return within - degree ** 2 + (KL_SHARE * told * size) / n ** 2;
  });
  const whole = groups.map(() => true), chosen = groups.map((_, i) => i);
  for (let i = count; i < groups.length; i++) {
    const [first, second] = groups[i].children, parts = values[first] + values[second];
    whole[i] = values[i] >= parts - (i === groups.length - 1 ? LEAST : TIE);
    values[i] = Math.max(values[i], parts);
  }
  for (let i = groups.length - 1; i >= count; i--) for (const child of groups[i].children) if (whole[i] || chosen[i] !== i) chosen[child] = chosen[i];
  return renumbered(chosen.slice(0, count));
}

/** Int32Array [n]: pieces of one segment whose mean maps are nearer than `apart` have one number. segments: of each token. */
function alikePieces(segments, maps, width, n, apart) {
  const { regions, owner } = connected(segments, width), sizes = new Float64Array(owner.length), number = Int32Array.from(owner.keys());
  for (const region of regions) sizes[region]++;
  for (const segment of new Set(owner)) {
    const own = [...owner.keys()].filter((region) => owner[region] === segment).sort((one, other) => sizes[other] - sizes[one] || one - other);
    for (const region of own) number[region] = own[0]; // that of small ones does not count
    const large = own.filter((region) => sizes[region] >= LEAST_PIECE * n);
    if (large.length < 2) continue;
    const part = regions.map((region) => large.indexOf(region)), means = meansOf(maps, part, large.map((region) => sizes[region]), n);
    const logs = logarithms(means, n), waiting = [...large.keys()];
    while (waiting.length) { // with each piece those near it, and those near these
      const found = [waiting.shift()];
      for (const one of found) {
        number[large[one]] = large[found[0]];
        for (const other of waiting.filter((piece) => divergence(means, logs, one, piece, n) < apart)) found.push(...waiting.splice(waiting.indexOf(other), 1));
      }
    }
  }
  return regions.map((region) => number[region]);
}

/**
 * The segments whose number and size follow from the maps themselves: { scores: Float32Array [segments, n], alike: Int32Array
 * [n], where pieces of one segment that the network sees as one have one number }.
 * kept: of merge.js; usual: the thresholds of the merge where they are not chosen.
 */
export function chooseParts(kept, usual) {
  const { maps: { n }, shape } = kept, maps = kept.maps.all(), own = profiles(maps, shape);
  let part, sizes, means, chosen;
  for (let round = 0; round < ROUNDS; round++) {
    const small = profiles(kept.propose(usual.map((threshold) => (FINEST / 2 ** round) * threshold)), shape);
    part = strongest(likenesses(small, own), n);
    sizes = Array(Math.max(...part) + 1).fill(0);
    for (const i of part) sizes[i]++;
    means = meansOf(maps, part, sizes, n);
    chosen = cutHierarchy(means, part, sizes, n);
    if (chosen.length > 2 || Math.max(...chosen) < chosen.length - 1) break;
  }
  const firsts = [...new Set(Array.from(part, (i) => chosen[i]))]; // segments are numbered by their first tokens
  const united = new Float32Array(firsts.length * n), whole = firsts.map((segment) => sizes.reduce((sum, size, i) => sum + (chosen[i] === segment ? size : 0), 0));
  sizes.forEach((size, i) => {
    const segment = firsts.indexOf(chosen[i]);
    for (let k = 0; k < n; k++) united[segment * n + k] += (means[i * n + k] * size) / whole[segment];
  });
  const scores = likenesses(profiles(united, shape), own);
  return { scores, alike: alikePieces(strongest(scores, n), maps, shape[1], n, ALIKE * usual[usual.length - 1]) };
}
