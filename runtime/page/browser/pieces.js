// Pieces of segments that do not touch become segments of their own, as runtime.refine does it with the pixels of a picture.

/**
 * Splits labels, and gives pieces of fewer than `least` pixels to the neighbour with the longest common border first.
 * raw: Int32Array [rows · columns], labels of cells. rows, columns: how many rows and columns of pixels each of theirs has.
 * Returns { regions: Int32Array of the same length, numbers by label, then by first pixel; owner: the labels of these }. Cells
 * without pixels have a number of their own.
 */
export function splitPieces(raw, rows, columns, least) {
  const some = (counts) => Int32Array.from(counts.keys()).filter((i) => counts[i]);
  const ys = some(rows), xs = some(columns), width = xs.length, labels = new Int32Array(ys.length * width);
  ys.forEach((y, i) => xs.forEach((x, j) => { labels[i * width + j] = raw[y * columns.length + x]; }));
  const tall = ys.map((y) => rows[y]), broad = xs.map((x) => columns[x]);
  const whole = absorb(labels, connected(labels, width), tall, broad, least), { regions, owner } = connected(whole, width);
  const found = new Int32Array(raw.length).fill(owner.length);
  ys.forEach((y, i) => xs.forEach((x, j) => { found[y * columns.length + x] = regions[i * width + j]; }));
  return { regions: found, owner };
}

/** The numbers of splitPieces' regions, where those of one label are the same in which most of `samples` are the same. */
export function asOne({ regions, owner }, places, samples) {
  const votes = owner.map(() => new Map()), numbers = new Map();
  samples.forEach((sample, i) => {
    const found = votes[regions[places[i]]];
    found.set(sample, (found.get(sample) ?? 0) + 1);
  });
  const renamed = owner.map((label, region) => {
    const [best] = [...votes[region]].sort(([one, few], [other, many]) => many - few || one - other)[0] ?? [-1 - region];
    const key = `${label} ${best}`;
    if (!numbers.has(key)) numbers.set(key, numbers.size);
    return numbers.get(key);
  });
  return regions.map((region) => renamed[region] ?? numbers.size);
}

/** Regions connected by sides, numbered by their labels and then by their first cells: { regions, owner: their labels }. */
export function connected(labels, width) {
  const found = new Int32Array(labels.length).fill(-1), first = [], waiting = [];
  for (let start = 0; start < labels.length; start++) {
    if (found[start] >= 0) continue;
    found[start] = first.push(start) - 1;
    waiting.push(start);
    while (waiting.length) {
      const at = waiting.pop(), x = at % width;
      for (const next of [x ? at - 1 : -1, x + 1 < width ? at + 1 : -1, at - width, at + width]) {
        if (labels[next] !== labels[at] || found[next] >= 0) continue; // also outside, where there is no label
        found[next] = found[start];
        waiting.push(next);
      }
    }
  }
  const order = [...first.keys()].sort((one, other) => labels[first[one]] - labels[first[other]] || one - other);
  const numbers = new Int32Array(first.length);
  order.forEach((region, number) => { numbers[region] = number; });
  return { regions: found.map((region) => numbers[region]), owner: order.map((region) => labels[first[region]]) };
}

/** The labels after regions of fewer than `least` pixels went to their neighbours, the smallest first. */
function absorb(labels, { regions, owner }, tall, broad, least) {
  const width = broad.length, areas = new Float64Array(owner.length), borders = owner.map(() => new Map());
  const touch = (one, other, length) => borders[one].set(other, (borders[one].get(other) ?? 0) + length);
  const meet = (one, other, length) => { if (one !== other) { touch(one, other, length); touch(other, one, length); } };
  regions.forEach((region, at) => {
    const y = Math.floor(at / width), x = at % width;
    areas[region] += tall[y] * broad[x];
    if (x + 1 < width) meet(region, regions[at + 1], tall[y]);
    if (y + 1 < tall.length) meet(region, regions[at + width], broad[x]);
  });
  const parent = Int32Array.from(owner.keys()), later = ([area, region], [other, its]) => other - area || its - region;
  const small = [...owner.keys()].filter((region) => areas[region] < least).map((region) => [areas[region], region]).sort(later);
  if (!small.length) return labels;
  while (small.length) {
    const [area, region] = small.pop(), around = borders[region];
    if (parent[region] !== region || area !== areas[region] || !around.size) continue; // grew, went, or is all there is
    const before = (one, other) => around.get(other) - around.get(one) || areas[one] - areas[other] || one - other;
    const into = [...around.keys()].reduce((one, other) => (before(one, other) < 0 ? one : other));
    // What touches the region and has its new label is then one region with it.
    for (const gone of [region, ...[...around.keys()].filter((other) => owner[other] === owner[into] && other !== into)]) {
      parent[gone] = into;
      areas[into] += areas[gone];
      for (const [other, length] of borders[gone]) {
        borders[other].delete(gone);
        if (other !== into) meet(into, other, length);
      }
      borders[gone] = new Map();
    }
    if (areas[into] >= least) continue;
    let low = 0, high = small.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (later(small[middle], [areas[into], into]) < 0) low = middle + 1;
      else high = middle;
    }
    small.splice(low, 0, [areas[into], into]);
  }
  for (let region = 0; region < parent.length; region++) {
    let root = region;
    while (parent[root] !== root) root = parent[root];
    parent[region] = root;
  }
  return regions.map((region) => owner[parent[region]]);
}
