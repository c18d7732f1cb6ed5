// Ranks and collectives in JS, as `exports.comm`. Everything that waits for another rank is a promise, answered from
// threads of the store and of the communication stream.
//
//   connectStore(host, port, rank, worldSize, token, timeoutMs) -> Promise<Store>
//   createCommunicator(store, device number, name, global ranks, timeoutMs, startTimeoutMs) -> Promise<Communicator>
//
//   Store: localAddress, set(key, Uint8Array), get(key, timeoutMs) -> ArrayBuffer, add(key, amount) -> number,
//     barrier(name, timeoutMs), onFailure(listener), close()
//   Communicator: allReduce(tensor, average), reduceScatter(input, output, average), allGather(input, output),
//     broadcast(tensor, root), barrier() -> Work; stats(), backend, close(), abort(reason)
//   Work: wait(), done() -> Promise
#pragma once

#include <napi.h>

namespace llamaforge {

void init_comm(Napi::Env env, Napi::Object exports);

}  // namespace llamaforge
