// Files in JS, as `exports.io`. Every function that touches a disk returns a promise, answered from
// libuv's pool. The exception is readTensor, which is work on the tensor's stream like an op.
//
//   parseSafetensorsHeader(path, headerBytesLimit) -> Promise<{ dataOffset, identity, metadata:
//   [key, value][],
//                                                     entries: { name, dtype, shape, begin, end }[]
//                                                     }>
//   formatSafetensorsHeader(names, dtypes, shapes, metadata: [key, value][]) -> ArrayBuffer
//   readTensor(path, identity, offset, bytes, fileDtype, tensor, name, values: "any" | "finite" |
//   "finite, not negative")
//                                     errors, and other values, surface at the stream's next wait
//   readBytes(path, identity, offset, bytes) -> Promise<ArrayBuffer>  at most 16 MiB
//   hashFile(path) -> Promise<{ bytes, sha256 }>
//   syncDirectory(path), renamePath(from, to), exchangePaths(one, other) -> Promise<void>
//   new DurableFile(path): open(), write(Uint8Array of at most 16 MiB), finish() -> { bytes, sha256
//   }, abandon() new FileLock(path): write(text), release()                        these are
//   synchronous; EAGAIN if it is held
//
// `identity` is that of the header's file, or "" for any file; a file that was replaced since then
// is refused. Results are lists rather than objects keyed by names from a file, because `__proto__`
// may be such a name.
#pragma once

#include <napi.h>

namespace llamaforge {

void init_io(Napi::Env env, Napi::Object exports);

}  // namespace llamaforge
