// Thin functions around Hopper's own instructions (PTX ISA, "Asynchronous warpgroup level matrix
// instructions" and "cp.async.bulk"): mbarriers, the bulk tensor copy engine (TMA), wgmma, and
// moving registers between warpgroups.
//
// Shared-memory tiles are slabs of 64 bfloat16 columns (128 bytes a row) in the 128-byte swizzle,
// 1024-byte aligned. TMA writes this layout with CU_TENSOR_MAP_SWIZZLE_128B, and wgmma reads it. A
// tile of more columns is several consecutive slabs.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "runtime/dtype.h"

namespace llamaforge::cuda::hopper {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- mbarriers ----------------------------------------------------------------------------------

using Barrier = uint64_t;

__device__ __forceinline__ void barrier_init(Barrier* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
// Marks that a warp is done with the stage that the barrier guards. All lanes of the warp call it;
// it makes kReleaseArrivals arrivals of the barrier's count. __syncwarp orders the plain loads of
// all lanes (statistics, work numbers) before the arrival of lane 0, and so before the copy that
// the producer then starts. The reads of wgmma have ended with its wait.
//
// The racecheck tool of compute-sanitizer credits an arrival only to the lane that makes it, and
// reports the loads of the other lanes, here as in cuBLASLt's own kernels. With
// -DLLAMAFORGE_RACECHECK every lane arrives, and racecheck reports nothing (docs/cuda.md).
#ifdef LLAMAFORGE_RACECHECK
constexpr int kReleaseArrivals = 32;
#else
constexpr int kReleaseArrivals = 1;
#endif
__device__ __forceinline__ void release_stage(Barrier* barrier) {
  __syncwarp();
  if (kReleaseArrivals == 32 || threadIdx.x % 32 == 0) barrier_arrive(barrier);
}
__device__ __forceinline__ void barrier_expect_bytes(Barrier* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// Waits until the phase of this parity has completed.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// A place in a ring of `kStages` buffers, and the parity of the barrier's phase there.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Hardware barriers between warps: id 0 is __syncthreads.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- TMA ----------------------------------------------------------------------------------------

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Loads one box of a (batch, time, column) tensor into shared memory; elements outside the tensor
// arrive as zeros.
__device__ __forceinline__ void tma_load(const CUtensorMap* map, void* to, Barrier* barrier,
                                         int column, int time, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(time), "r"(batch)
      : "memory");
}
// Loads a run of bytes: a multiple of 16, at 16-byte aligned addresses.
__device__ __forceinline__ void bulk_load(const void* from, void* to, Barrier* barrier,
                                          uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
// A policy for memory that is read once: its lines are the first to leave the L2 cache.
__device__ __forceinline__ uint64_t evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ void bulk_load(const void* from, void* to, Barrier* barrier,
                                          uint32_t bytes, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], %2, [%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}
// Brings memory to the L2 cache; `from` and `bytes` are multiples of 16.
__device__ __forceinline__ void prefetch(const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
// Stores one box from shared memory; rows outside the tensor are not written.
__device__ __forceinline__ void tma_store(const CUtensorMap* map, const void* from, int column,
                                          int time, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
      "r"(shared_address(from)), "r"(column), "r"(time), "r"(batch)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until the shared memory of this thread's earlier stores may be written again.
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
// Makes earlier plain writes to shared memory visible to later TMA and wgmma instructions.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- registers ----------------------------------------------------------------------------------

template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- wgmma --------------------------------------------------------------------------------------
// A warpgroup's accumulator of (64, N): thread t of 128 holds in d[4j + 2h + c] the element of
// row 16 (t / 32) + (t % 32) / 4 + 8h and column 8j + 2 (t % 4) + c.

// Descriptor of a slab in the 128-byte swizzle. `leading` is the distance between slabs, used where
// N runs over several of them (transposed operands). 8 rows are 1024 bytes.
__device__ __forceinline__ uint64_t slab_descriptor(const void* slab, uint32_t leading = 16) {
  const uint64_t address = (shared_address(slab) & 0x3FFFF) >> 4;
  return address | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | 1ull << 62;
}
constexpr uint64_t kNext16Columns =
    32 >> 4;  // added to a descriptor to move by 16 columns in one row
constexpr uint64_t kNext16Rows = 2048 >> 4;  // added to move by 16 rows

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of an accumulator across a wait.
template <int kCount>
__device__ __forceinline__ void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin(uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

#define LF_D8(i)                                                                              \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define LF_D32(i) LF_D8(i), LF_D8(i + 8), LF_D8(i + 16), LF_D8(i + 24)
#define LF_ACCUMULATOR_64 LF_D32(0)
#define LF_ACCUMULATOR_96 LF_D32(0), LF_D8(32), LF_D8(40)
#define LF_ACCUMULATOR_128 LF_D32(0), LF_D32(32)
#define LF_NAMES_64                                                                              \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%" \
  "25,%26,%27,%28,%29,%"                                                                         \
  "30,"                                                                                          \
  "%31"
#define LF_NAMES_96 LF_NAMES_64 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define LF_NAMES_128 LF_NAMES_96 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// d += a · b, one step of 16 along K. a: (64,16) rows in a slab, or in registers. b: (N,16) rows in
// a slab, or with kTransposeB (16,N). `add` = 0 starts from zero. P0 to P6 are the numbers of the
// operands after the accumulator.
template <int N>
struct Wgmma;

#define LF_WGMMA(N, P0, P1, P2, P3, P4, P5, P6)                                                \
  template <>                                                                                  \
  struct Wgmma<N> {                                                                            \
    template <int kTransposeB>                                                                 \
    static __device__ __forceinline__ void multiply(float (&d)[N / 2], uint64_t a, uint64_t b, \
                                                    int add) {                                 \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P2                                      \
                   ", 0;\n"                                                                    \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 " LF_NAMES_##N    \
                   "}, " P0 ", " P1 ", p, 1, 1, 0, " P3 ";\n}\n"                               \
                   : LF_ACCUMULATOR_##N                                                        \
                   : "l"(a), "l"(b), "r"(add), "n"(kTransposeB));                              \
    }                                                                                          \
    template <int kTransposeB>                                                                 \
    static __device__ __forceinline__ void multiply(float (&d)[N / 2], const uint32_t* a,      \
                                                    uint64_t b, int add) {                     \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P5                                      \
                   ", 0;\n"                                                                    \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 " LF_NAMES_##N    \
                   "}, {" P0 ", " P1 ", " P2 ", " P3 "}, " P4 ", p, 1, 1, " P6 ";\n}\n"        \
                   : LF_ACCUMULATOR_##N                                                        \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add),             \
                     "n"(kTransposeB));                                                        \
    }                                                                                          \
  };
LF_WGMMA(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
LF_WGMMA(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
LF_WGMMA(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")

// Two f32 as one word of bf16, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
// exp2 by the special function unit, 16 per clock and multiprocessor. `volatile` keeps it before a
// later wait for products.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Rounds the 16 columns 16s.. of a (64, N) accumulator to bf16, as the A operand of the next
// product.
template <int N>
__device__ __forceinline__ void as_operand(const float (&d)[N], uint32_t (&a)[N / 2]) {
#pragma unroll
  for (int i = 0; i < N / 2; ++i) a[i] = pack_bf16(d[2 * i], d[2 * i + 1]);
}

// Loads 16 columns, number `step`, of a warpgroup's 64 rows in a slab as the A operand in
// registers.
__device__ __forceinline__ void load_operand(const bfloat16 (&slab)[64 * 64], int step,
                                             uint32_t* a) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
  const uint32_t address =
      shared_address(slab) + row * 128 + (((step * 2 + lane / 16) ^ row % 8) * 16);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(address));
}

}  // namespace llamaforge::cuda::hopper
