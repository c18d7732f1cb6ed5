// Ranks and collectives in JS, as `exports.comm`. Every call that waits for another rank returns a
// promise, which threads of the store and of the communication stream answer.
//
//   connectStore(host, port, rank, worldSize, token, timeoutMs, oneHost) -> Promise<Store>
//   createCommunicator(store, device number, name, global ranks, timeoutMs, startTimeoutMs) ->
//   Promise<Communicator>
//
//   Store: localAddress, set(key, Uint8Array), get(key, timeoutMs) -> ArrayBuffer, add(key, amount)
//   -> number,
//     barrier(name, timeoutMs), onFailure(listener), close()
//   Communicator: allReduce(tensor, average), reduceScatter(input, output, average),
//   allGather(input, output),
//     broadcast(tensor, root), barrier() -> Work; stats(), backend, close(), abort(reason),
//     makeTimeline() -> Timeline, follow(Timeline or null)
//   Work: wait(), done() -> Promise
//   Timeline: mark() -> number of a moment, times() -> milliseconds of all moments, spans() ->
//   between moments
#pragma once

#include <napi.h>

namespace llamaforge {

void init_comm(Napi::Env env, Napi::Object exports);

}  // namespace llamaforge
