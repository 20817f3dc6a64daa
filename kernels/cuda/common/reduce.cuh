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
