// What the merge spends its time on, four numbers at once: two functions in WebAssembly, written here as its instructions.
// JavaScript alone takes about eight times as long.

const FLOAT = 4, LANES = 16; // bytes of a number, and of four
export const BLOCK = 64; // numbers: all lengths here are multiples of it
const I32 = 0x7f, F32 = 0x7d, V128 = 0x7b, VOID = 0x40, END = 0x0b;

const unsigned = (value) => (value < 128 ? [value] : [(value & 127) | 128, ...unsigned(value >>> 7)]);
const signed = (value) => (value >= -64 && value < 64 ? [value & 127] : [(value & 127) | 128, ...signed(value >> 7)]);
const vector = (items) => [...unsigned(items.length), ...items.flat()];
const section = (number, items) => [number, ...vector(vector(items))];
const text = (word) => vector([...word].map((letter) => letter.charCodeAt(0)));

const get = (local) => [0x20, local];
const set = (local) => [0x21, local];
const simd = (operation) => [0xfd, ...unsigned(operation)];
const [ADD, SUBTRACT, MULTIPLY] = [0xe4, 0xe5, 0xe6].map(simd);
const load = (local) => [...get(local), ...simd(0), 2, 0];
const store = [...simd(11), 2, 0];
const lane = (local, number) => [...get(local), ...simd(31), number];
const advance = (local, bytes) => [...get(local), 0x41, ...signed(bytes), 0x6a, ...set(local)];
const loop = (...body) => [0x03, VOID, ...body.flat(), END];
const againWhileBelow = (one, other) => [...get(one), ...get(other), 0x49, 0x0d, 0];

// add(target, source, end): target[i] += source[i] up to the address `end` of the target.
const add = [
  ...[0], // no locals
  ...loop(get(0), load(0), load(1), ADD, store, advance(0, LANES), advance(1, LANES), againWhileBelow(0, 2)),
  END,
];

// difference(a, logA, b, logB, end, most): Σ (a − b)(log a − log b) up to the address `end` of a. No term is negative, so it
// ends as soon as a block brings it above `most`. Locals: 6 the end of the block, 7 the sum, 8 four sums.
const difference = [
  ...vector([[1, I32], [1, F32], [1, V128]]),
  ...loop(
    get(0), [0x41, ...signed(BLOCK * FLOAT), 0x6a], set(6),
    loop(
      get(8), load(0), load(2), SUBTRACT, load(1), load(3), SUBTRACT, MULTIPLY, ADD, set(8),
      [0, 1, 2, 3].flatMap((local) => advance(local, LANES)), againWhileBelow(0, 6),
    ),
    lane(8, 0), lane(8, 1), [0x92], lane(8, 2), [0x92], lane(8, 3), [0x92], set(7),
    get(7), get(5), [0x5e, 0x04, VOID], get(7), [0x0f, END], // if it is above `most`, return it
    againWhileBelow(0, 4),
  ),
  ...get(7),
  END,
];

const MODULE = Uint8Array.from([
  ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
  ...section(1, [[0x60, ...vector([I32, I32, I32]), 0], [0x60, ...vector([I32, I32, I32, I32, I32, F32]), 1, F32]]),
  ...section(2, [[...text("m"), ...text("m"), 2, 0, 0]]),
  ...section(3, [0, 1]),
  ...section(7, [[...text("add"), 0, 0], [...text("difference"), 0, 1]]),
  ...section(10, [add, difference].map((body) => vector(body))),
]);

/** Memory for `floats` numbers, and what computes in it. */
export class Memory {
  constructor(floats) {
    const memory = new WebAssembly.Memory({ initial: Math.ceil((floats * FLOAT) / 65536) });
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(MODULE), { m: { m: memory } });
    Object.assign(this, { numbers: new Float32Array(memory.buffer), exports, used: 0 });
  }

  /** The next `count` numbers as a Float32Array. */
  take(count) { return this.numbers.subarray(this.used, (this.used += count)); }
}
