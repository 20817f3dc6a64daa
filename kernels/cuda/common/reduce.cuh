// Sums over threads in a fixed order: the same bits on every run.
#pragma once
#include <cuda_runtime_api.h>

namespace lgld::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;

// Sum over aligned groups of kLanesInGroup lanes, in every lane, pairs first. All 32 lanes must come here.
template <int kLanesInGroup, class T>
__device__ __forceinline__ T group_sum(T v) {
#pragma unroll
  for (int step = 1; step < kLanesInGroup; step *= 2) v += __shfl_xor_sync(kWholeWarp, v, step);
  return v;
}

// Sums of kCount values each over aligned groups of kLanesInGroup lanes, every one in one lane: write(index, sum) is called for
// those that this lane ends up with. Each step halves the values with a lane's neighbour, a third of the shuffles that
// group_sum takes for all of them. All 32 lanes must come here. Call it with kStep, `base` and `limit` left out.
template <int kLanesInGroup, int kStep = 1, int kCount, class T, class F>
__device__ __forceinline__ void scatter_sums(const T (&v)[kCount], F write, int base = 0, int limit = kCount) {
  if constexpr (kStep == kLanesInGroup) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (base + i < limit) write(base + i, v[i]);
  } else {
    constexpr int kHalf = (kCount + 1) / 2;
    const bool upper = (threadIdx.x & kStep) != 0;
    T mine[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const T low = v[i], high = i + kHalf < kCount ? v[i + kHalf < kCount ? i + kHalf : i] : T(0);
      const T received = __shfl_xor_sync(kWholeWarp, upper ? low : high, kStep);
      // The lower lane's value first in both: a sum doesn't depend on who keeps it.
      mine[i] = upper ? received + high : low + received;
    }
    const int middle = base + kHalf;
    scatter_sums<kLanesInGroup, kStep * 2>(mine, write, upper ? middle : base, upper || limit < middle ? limit : middle);
  }
}

// Sum over the block's threads, valid in thread 0. `shared` has room for a value a warp; the block's size is a multiple of 32.
// Warps are added in their order. Ends with a barrier, so that `shared` may be used again.
template <class T>
__device__ __forceinline__ T block_sum(T v, T* shared) {
  v = group_sum<32>(v);
  const unsigned thread = threadIdx.x, warps = blockDim.x / 32;
  if (thread % 32 == 0) shared[thread / 32] = v;
  __syncthreads();
  T sum{};
  if (thread == 0)
    for (unsigned w = 0; w < warps; ++w) sum += shared[w];
  __syncthreads();
  return sum;
}

}  // namespace lgld::cuda
