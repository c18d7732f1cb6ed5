// Files in JS, as `exports.io`. Everything that touches a disk is a promise answered from libuv's pool, except
// readTensor, which is work on the tensor's stream like an op.
//
//   parseSafetensorsHeader(path, headerBytesLimit) -> Promise<{ dataOffset, identity, metadata: [key, value][],
//                                                     entries: { name, dtype, shape, begin, end }[] }>
//   formatSafetensorsHeader(names, dtypes, shapes, metadata: [key, value][]) -> ArrayBuffer
//   readTensor(path, identity, offset, bytes, fileDtype, tensor, name, values: "any" | "finite" | "finite, not negative")
//                                     errors, and other values, surface at the stream's next wait
//   readBytes(path, identity, offset, bytes) -> Promise<ArrayBuffer>  at most 16 MiB
//   hashFile(path) -> Promise<{ bytes, sha256 }>
//   syncDirectory(path), renamePath(from, to), exchangePaths(one, other) -> Promise<void>
//   new DurableFile(path): open(), write(Uint8Array of at most 16 MiB), finish() -> { bytes, sha256 }, abandon()
//   new FileLock(path): write(text), release()                        these are synchronous; EAGAIN if it is held
//
// `identity` is that of the header's file, or "" for any: a file that was replaced since is refused. Lists, not objects
// keyed by names from a file: `__proto__` is a name there.
#pragma once

#include <napi.h>

namespace llamaforge {

void init_io(Napi::Env env, Napi::Object exports);

}  // namespace llamaforge
