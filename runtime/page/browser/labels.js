// From the merge's labels, at the engine's size, to segments of a picture of any size: numbers, colours, outlines, RLE.

import { asOne, splitPieces } from "./pieces.js";

/** Per place of an axis of `target` the place of one of `source` that its centre is in (OpenCV's INTER_NEAREST_EXACT). */
export function nearest(source, target) {
  return Int32Array.from({ length: target }, (_, i) => Math.floor(((2 * i + 1) * source) / (2 * target)));
}

/**
 * The labels of one picture at [height, width], numbered 0 … count − 1 without gaps.
 * grid: Int32Array [h·w] of the labels at the engine's size with those numbers; `down`, `across`: the place there of each
 * row and column. least: a share of the picture from which a piece is a segment of its own; 0: segments keep their pieces.
 * alike: { numbers: Int32Array [rows · columns], shape: [rows, columns] } of tokens; pieces in which most have the same number are one.
 */
export class Labels {
  constructor(raw, [h, w], [height, width], least = 0, alike = null) {
    Object.assign(this, { height, width, w, down: nearest(h, height), across: nearest(w, width) });
    const rows = counts(this.down, h), columns = counts(this.across, w);
    if (least) {
      const split = splitPieces(raw, rows, columns, least * (height * width));
      raw = alike ? asOne(split, ...this.samples(alike)) : split.regions;
    }
    const areas = new Float64Array(raw.reduce((most, label) => Math.max(most, label), 0) + 1), numbers = new Int32Array(areas.length).fill(-1);
    for (let y = 0, at = 0; y < h; y++) for (let x = 0; x < w; x++) areas[raw[at++]] += rows[y] * columns[x];
    const present = [...areas.keys()].filter((label) => areas[label] > 0);
    present.forEach((label, number) => { numbers[label] = number; });
    this.grid = new Int32Array(raw.length); // -1 where no pixel of the picture is
    for (let i = 0; i < raw.length; i++) this.grid[i] = numbers[raw[i]];
    this.areas = present.map((label) => areas[label]);
    this.count = present.length;
  }

  /** Four places in each token, in the grid, and their numbers. */
  samples({ numbers, shape: [rows, columns] }) {
    const { down, across, height, width, w } = this, places = [], found = [];
    nearest(height, 2 * rows).forEach((y, i) => nearest(width, 2 * columns).forEach((x, j) => {
      places.push(down[y] * w + across[x]);
      found.push(numbers[(i >> 1) * columns + (j >> 1)]);
    }));
    return [places, found];
  }

  at(x, y) { return this.grid[this.down[y] * this.w + this.across[x]]; }

  /** Writes the labels of the row y into `out`. */
  row(y, out) {
    const { grid, across, width } = this;
    for (let x = 0, from = this.down[y] * this.w; x < width; x++) out[x] = grid[from + across[x]];
    return out;
  }
}

function counts(places, length) {
  const found = new Int32Array(length);
  for (const place of places) found[place]++;
  return found;
}

/**
 * A colour [R, G, B] per label: the palette's, but for labels after the first 16 one that is far from those of the segments
 * that they touch, as runtime.outputs.palette chooses it. palette: { colours, distances, distinct, far }.
 */
export function coloursOf(labels, { colours, distances, distinct, far }) {
  const given = Array.from({ length: labels.count }, (_, i) => (i < distinct ? i : -1));
  if (labels.count > distinct) {
    const touching = touchingOf(labels), inSight = new Set(given.filter((place) => place >= 0));
    for (let label = distinct; label < labels.count; label++) {
      const around = [...touching[label]].map((other) => given[other]).filter((place) => place >= 0);
      const least = (place, others, most) => others.reduce((found, other) => Math.min(found, distances[place][other]), most);
      const near = colours.map((_, place) => least(place, around, far));
      let own = label % colours.length;
      if (near[own] < far || inSight.has(own)) {
        const seen = [...inSight], rest = colours.map((_, place) => least(place, seen, 1e3));
        own = 0;
        for (let place = 1; place < colours.length; place++) {
          if (near[place] > near[own] || (near[place] === near[own] && rest[place] >= rest[own])) own = place;
        }
      }
      given[label] = own;
      inSight.add(own);
    }
  }
  return given.map((place) => colours[place]);
}

function touchingOf({ grid, w, count }) {
  const found = Array.from({ length: count }, () => new Set());
  for (let i = 0; i < grid.length; i++) {
    for (const j of [(i + 1) % w ? i + 1 : i, i + w < grid.length ? i + w : i]) {
      if (grid[i] === grid[j] || grid[i] < 0 || grid[j] < 0) continue;
      found[grid[i]].add(grid[j]);
      found[grid[j]].add(grid[i]);
    }
  }
  return found;
}

/**
 * Rows of colours, with white borders between segments: next() gives those of the next row, Uint8Array [width, channels] of
 * RGB and, with four channels, 255; and `edges`, Uint8Array [width], 1 where the border is. The next call uses them again.
 */
export function painter(labels, colours, channels = 3) {
  const { width, height } = labels, thickness = 1 + Math.floor(Math.min(width, height) / 400);
  // A pixel is on the border if one of those that a square of `thickness` around it covers has another right or lower one.
  const before = thickness >> 1, after = thickness - 1 - before;
  const plain = new Map(), lines = new Uint16Array(width); // row → where it has a border; how many rows near y have one
  const own = new Int32Array(width), below = new Int32Array(width), out = new Uint8Array(width * channels).fill(255), edges = new Uint8Array(width);
  const table = Uint8Array.from(colours.flat());
  const words = channels === 4 ? new Uint32Array(out.buffer) : null; // pixels as single numbers
  const packed = new Uint32Array(Uint8Array.from(colours.flatMap((colour) => [...colour, 255])).buffer);
  let last = null, places = ""; // of the last row that entered: its border, and what it follows from
  function enter(y) {
    const from = `${labels.down[y]} ${labels.down[Math.min(y + 1, height - 1)]}`;
    if (from !== places) last = border(y);
    places = from;
    plain.set(y, last);
    for (let x = 0; x < width; x++) lines[x] += last[x];
  }
  function border(y) {
    const found = new Uint8Array(width);
    labels.row(y, own);
    labels.row(Math.min(y + 1, height - 1), below);
    for (let x = 0; x < width; x++) {
      found[x] = own[x] !== below[x] || (x + 1 < width && own[x] !== own[x + 1]) ? 1 : 0;
    }
    return found;
  }
  function leave(y) {
    const found = plain.get(y);
    for (let x = 0; x < width; x++) lines[x] -= found[x];
    plain.delete(y);
  }
  let y = 0, entered = 0;
  return () => {
    while (entered < height && entered <= y + after) enter(entered++);
    if (y > before) leave(y - before - 1);
    edges.fill(0);
    for (let x = 0; x < width; x++) if (lines[x]) edges.fill(1, Math.max(0, x - after), Math.min(width, x + before + 1));
    labels.row(y++, own);
    if (words) for (let x = 0; x < width; x++) words[x] = edges[x] ? 0xffffffff : packed[own[x]];
    else for (let i = 0; i < out.length; i++) out[i] = edges[(i / 3) | 0] ? 255 : table[3 * own[(i / 3) | 0] + (i % 3)];
    return { colours: out, edges };
  };
}

/** The border of a segment as rings of x, y, shares of the width and the height, through the middles of cells' edges. */
export function outline({ grid, w }, label) {
  const h = grid.length / w, inside = (x, y) => x >= 0 && y >= 0 && x < w && y < h && grid[y * w + x] === label;
  // Edges of cells run right, down, left and up, with the segment on the right-hand side.
  const starts = [[0, 0], [1, 0], [1, 1], [0, 1]], steps = [[1, 0], [0, 1], [-1, 0], [0, -1]], outside = [[0, -1], [1, 0], [0, 1], [-1, 0]];
  const seen = new Uint8Array(4 * grid.length), rings = [];
  const isEdge = (x, y, side) => inside(x, y) && !inside(x + outside[side][0], y + outside[side][1]);
  for (let first = 0; first < seen.length; first++) {
    let side = first & 3, x = (first >> 2) % w, y = Math.floor((first >> 2) / w);
    if (seen[first] || !isEdge(x, y, side)) continue;
    const ring = [];
    for (let edge = first; !seen[edge]; edge = 4 * (y * w + x) + side) {
      seen[edge] = 1;
      const [startX, startY] = starts[side], [stepX, stepY] = steps[side];
      ring.push([(x + startX + stepX / 2) / w, (y + startY + stepY / 2) / h]);
      const left = (side + 3) % 4, ahead = [x + stepX, y + stepY], beside = [ahead[0] + steps[left][0], ahead[1] + steps[left][1]];
      if (!inside(...ahead)) side = (side + 1) % 4;
      else if (!inside(...beside)) [x, y] = ahead;
      else { [x, y] = beside; side = left; }
    }
    rings.push(ring);
  }
  return rings;
}

/** COCO's instances with compressed RLE, as the service's form coco. */
export function coco(labels, name) {
  const { height, width, count } = labels, column = new Int32Array(height);
  const runs = Array.from({ length: count }, () => []), ends = new Float64Array(count); // lengths without and with each
  const boxes = Array.from({ length: count }, () => [width, height, 0, 0]);
  let start = 0, current = labels.at(0, 0);
  const finish = (end) => {
    runs[current].push(start - ends[current], end - start);
    ends[current] = end;
  };
  for (let x = 0, at = 0; x < width; x++) {
    for (let y = 0; y < height; y++, at++) {
      const label = (column[y] = labels.at(x, y)), box = boxes[label];
      box[0] = Math.min(box[0], x);
      box[1] = Math.min(box[1], y);
      box[2] = Math.max(box[2], x + 1);
      box[3] = Math.max(box[3], y + 1);
      if (label === current) continue;
      finish(at);
      start = at;
      current = label;
    }
  }
  finish(height * width);
  const annotations = runs.map((lengths, label) => {
    if (ends[label] < height * width) lengths.push(height * width - ends[label]);
    const [left, top, right, bottom] = boxes[label];
    return {
      id: label + 1, image_id: 1, category_id: 1, label,
      segmentation: { size: [height, width], counts: compressed(lengths) },
      area: labels.areas[label], bbox: [left, top, right - left, bottom - top], iscrowd: 0,
    };
  });
  const images = [{ id: 1, file_name: name, height, width }];
  return { images, annotations, categories: [{ id: 1, name: "segment", supercategory: "" }] };
}

/** COCO's text for lengths of runs: five bits a letter, from the third on the difference to the last but one. */
function compressed(lengths) {
  let text = "";
  lengths.forEach((length, i) => {
    let rest = i > 2 ? length - lengths[i - 2] : length, more = true;
    while (more) {
      let bits = rest & 31;
      rest >>= 5;
      more = bits & 16 ? rest !== -1 : rest !== 0;
      if (more) bits |= 32;
      text += String.fromCharCode(bits + 48);
    }
  });
  return text;
}
