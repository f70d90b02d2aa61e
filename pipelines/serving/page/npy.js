// Arrays of uint8 as `.npy` files. `shape` is [T, H, W, 3], or [H, W, 3] for one frame.

export function readNpy(buffer) {
  const start = new DataView(buffer).getUint8(6) === 1 ? 10 : 12;
  const length = start === 10 ? new DataView(buffer).getUint16(8, true) : new DataView(buffer).getUint32(8, true);
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, start, length));
  const shape = header.match(/'shape': \(([^)]*)\)/)[1].split(",").filter((size) => size.trim()).map(Number);
  if (!header.includes("'|u1'") || !header.includes("'fortran_order': False")) throw new Error("The endpoint answered an array of another kind.");
  return { shape, values: new Uint8Array(buffer, start + length) };
}

export function writeNpy(shape, parts) {
  const text = `{'descr': '|u1', 'fortran_order': False, 'shape': (${shape.join(", ")}), }`;
  const header = text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11) + "\n";
  const head = new Uint8Array(10 + header.length);
  head.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8]);
  head.set(new TextEncoder().encode(header), 10);
  return new Blob([head, ...parts], { type: "application/octet-stream" });
}
