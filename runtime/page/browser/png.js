// PNG files, of labels and of colours.

const SIGNATURE = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

function chunk(name, data) {
  const out = new Uint8Array(12 + data.length), view = new DataView(out.buffer);
  view.setUint32(0, data.length);
  out.set(new TextEncoder().encode(name), 4);
  out.set(data, 8);
  let check = 0xffffffff;
  for (let i = 4; i < out.length - 4; i++) check = TABLE[(check ^ out[i]) & 255] ^ (check >>> 8);
  view.setUint32(out.length - 4, ~check);
  return out;
}

/**
 * A PNG as a Blob. lines(y, out): writes the row y into `out`, `channels` × `bits` / 8 bytes a pixel, the higher byte first.
 * Its text entry says that this program wrote it.
 */
export async function encodePng([height, width], channels, bits, lines) {
  const header = new Uint8Array(13), view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([bits, channels === 1 ? 0 : 2], 8);
  const stride = (width * channels * bits) / 8;
  let y = 0, before = new Uint8Array(stride), line = new Uint8Array(stride);
  const filtered = new ReadableStream({
    pull(controller) {
      const most = Math.min(height, y + Math.ceil(2 ** 18 / stride)), part = new Uint8Array((most - y) * (stride + 1));
      for (let to = 0; y < most; y++) {
        lines(y, line);
        part[to++] = 2; // each byte less the one above it
        for (let i = 0; i < stride; i++) part[to++] = line[i] - before[i];
        [before, line] = [line, before];
      }
      controller.enqueue(part);
      if (y === height) controller.close();
    },
  });
  const packed = await new Response(filtered.pipeThrough(new CompressionStream("deflate"))).arrayBuffer();
  const mark = new TextEncoder().encode("Software\0diffseg");
  const parts = [SIGNATURE, chunk("IHDR", header), chunk("tEXt", mark), chunk("IDAT", new Uint8Array(packed)), chunk("IEND", new Uint8Array(0))];
  return new Blob(parts, { type: "image/png" });
}
