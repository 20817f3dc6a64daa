// Launching a kernel over any number of blocks.
#pragma once
#include <cuda_runtime_api.h>

#include "index.h"

namespace lgld::cuda {

// What a block calls its own number, of all launches together.
__device__ __forceinline__ int64_t block_number(int64_t first) { return first + static_cast<int64_t>(blockIdx.x); }

// threadIdx.x as a value that the compiler can't know to be the same: what follows from it is computed anew, not kept.
__device__ __forceinline__ int hidden_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// launch(first, blocks) for pieces of at most `most` of all blocks, in order; the first error ends it. Nothing to do is no
// error.
template <class F>
cudaError_t launch_in_pieces(int64_t blocks, F launch, int64_t most = kMostBlocks) {
  for (int64_t first = 0; first < blocks; first += most) {
    launch(first, static_cast<unsigned>(min64(blocks - first, most)));
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace lgld::cuda
