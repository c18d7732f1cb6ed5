/** Handmade safetensors files, valid and invalid. */

/**
 * A file with this header text (or bytes) and this many bytes of data. `length` overrides the
 * length field.
 */
export function rawFile(
  header: string | Uint8Array,
  dataBytes = 0,
  { length }: { length?: bigint } = {},
): Uint8Array {
  const json = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const file = new Uint8Array(8 + json.length + dataBytes);
  new DataView(file.buffer).setBigUint64(0, length ?? BigInt(json.length), true);
  file.set(json, 8);
  for (let i = 0; i < dataBytes; i += 1) file[8 + json.length + i] = i % 251;
  return file;
}

/** `{"name":{"dtype":...,"shape":...,"data_offsets":...}}`, with any text for the values. */
export function entry(name: string, shape = "[2]", offsets = "[0,8]", dtype = '"F32"'): string {
  return `"${name}":{"dtype":${dtype},"shape":${shape},"data_offsets":${offsets}}`;
}
