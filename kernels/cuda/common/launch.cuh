// Launching a kernel over any number of blocks.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

#include "index.h"

namespace lgld::cuda {

// What a block calls its own number, of all launches together.
__device__ __forceinline__ int64_t block_number(int64_t first) { return first + static_cast<int64_t>(blockIdx.x); }

// threadIdx.x as a value that the compiler can't know to be the same: what follows from it is computed anew, not kept.
__device__ __forceinline__ int hidden_thread() {
#ifdef __CUDACC__
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#else
  return static_cast<int>(threadIdx.x);
#endif
}

// The block's dynamic shared memory, 16-byte aligned.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char lgld_shared[];
  return reinterpret_cast<T*>(lgld_shared);
#else
  return static_cast<T*>(::emulation::shared_memory());
#endif
}

// kernel<<<blocks, threads, shared, stream>>>(arguments...), in words that a compiler for the host knows too. The error is the
// caller's: the runtime forgets it, so that no later launch is blamed for it.
template <class... Parameter, class... Argument>
cudaError_t launch(void (*kernel)(Parameter...), int64_t blocks, int threads, size_t shared, cudaStream_t stream,
                   const Argument&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

// launch(first, blocks) for pieces of at most `most` of all blocks, in order; the first error ends it. Nothing to do is no
// error.
template <class F>
cudaError_t launch_in_pieces(int64_t blocks, F launch, int64_t most = kMostBlocks) {
  for (int64_t first = 0; first < blocks; first += most) {
    const cudaError_t error = launch(first, static_cast<unsigned>(min64(blocks - first, most)));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace lgld::cuda
