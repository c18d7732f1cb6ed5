// The warps of a chain that do not compute: the copies to the ring, the stages after them in the L2
// cache, and the check of places.
#pragma once

#include "cuda/gemm/chain_stages.cuh"

namespace llamaforge::cuda::chain {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Copies stages to the ring, as soon as there is room.
class Copier {
 public:
  // `copied`, in shared memory, counts stages.
  __device__ __forceinline__ Copier(const Ring& ring, volatile int* copied)
      : ring_(ring), copied_(copied), free_(ring.rows) {}

  __device__ __forceinline__ void stage(int rows, uint32_t bytes, const Piece& piece) {
    const int lane = static_cast<int>(threadIdx.x) % 32, slot = nth_ % kSlots;
    const int used = rows + cursor_.left_out(ring_, rows);
    while (free_ < used || nth_ - oldest_ == kSlots) {
      hopper::barrier_wait(&ring_.empty[oldest_ % kSlots], oldest_ / kSlots % 2);
      free_ += __shfl_sync(0xffffffffu, taken_, oldest_ % kSlots);
      ++oldest_;
    }
    if (nth_ >= kInFlight) {
      const int before = nth_ - kInFlight;
      hopper::barrier_wait(&ring_.full[before % kSlots], before / kSlots % 2);
    }
    if (lane == slot) taken_ = used;
    bfloat16* const place = ring_.memory + cursor_.take(ring_, rows) * kPitch;
    if (lane == 0) hopper::barrier_expect_bytes(&ring_.full[slot], bytes);
    __syncwarp();
    if (piece.bytes > 0)
      hopper::bulk_load(piece.from, place + piece.place, &ring_.full[slot], piece.bytes, policy_);
    free_ -= used;
    ++nth_;
    if (lane == 0) *copied_ = nth_;
  }

 private:
  const Ring& ring_;
  volatile int* copied_;
  const uint64_t policy_ = hopper::evict_first();
  Cursor cursor_;
  int free_, nth_ = 0, oldest_ = 0;
  int taken_ = 0;  // rows of the stage in the lane's slot, with those left out before it
};

// Brings the stages after those that the copier has copied to the L2 cache, so that the memory does
// not rest while the ring is full.
class Prefetcher {
 public:
  __device__ __forceinline__ explicit Prefetcher(const volatile int* copied) : copied_(copied) {}

  __device__ __forceinline__ void stage(const Piece& piece) {
    int copied;
    while (nth_ - (copied = *copied_) >= kPrefetched) __nanosleep(100);
    if (nth_++ < copied || piece.bytes == 0) return;
    hopper::prefetch(piece.from, piece.bytes);
  }

 private:
  const volatile int* copied_;
  int nth_ = 0;
};

// Reports places outside of the tensors. Called by a warp for which nobody waits.
__device__ void check_places(const Link* links, int count) {
  for (int l = 0; l < count; ++l) {
    if (!links[l].is_attention) continue;
    const paged::Call& c = links[l].attention.call;
    for (int token = 0; token < c.call.batch * c.call.time; ++token) {
      if (token % gridDim.x == blockIdx.x) paged::check(c, token);
    }
  }
}

#endif

}  // namespace llamaforge::cuda::chain
