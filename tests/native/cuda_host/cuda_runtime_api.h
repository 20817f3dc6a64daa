// CUDA's language on the host, as much as the kernels use: every thread of a block is a fiber, run in turn up to its next
// barrier or shuffle. In place of the toolkit's header of this name.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

enum cudaError_t { cudaSuccess = 0 };
using cudaStream_t = void*;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace lgld::cuda_host {

struct Index {
  unsigned x;
};
extern Index thread, block, block_size;

// Runs `kernel` for every thread of every block; shared memory is all ones, a NaN in every format, at the start of each block.
void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel);
unsigned char* shared_memory();
void barrier();
// What lane `lane ^ mask` of the warp passes in the same call.
uint64_t exchange(uint64_t value, int mask);

// Threads run in the order of their numbers, or the last first: what a missing barrier lets through in one, it doesn't in the
// other.
extern bool last_first;
// Barriers that some threads of a block came to and others, having ended, did not.
extern int64_t divergent;

}  // namespace lgld::cuda_host

#define threadIdx ::lgld::cuda_host::thread
#define blockIdx ::lgld::cuda_host::block
#define blockDim ::lgld::cuda_host::block_size

inline void __syncthreads() { ::lgld::cuda_host::barrier(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = ::lgld::cuda_host::exchange(bits, mask);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

#define LGLD_DYNAMIC_SHARED(name) unsigned char* const name = ::lgld::cuda_host::shared_memory()
#define LGLD_LAUNCH(kernel, blocks, threads, bytes, stream, ...)                                                    \
  (static_cast<void>(stream), ::lgld::cuda_host::run(static_cast<unsigned>(blocks), static_cast<unsigned>(threads), \
                                                     static_cast<size_t>(bytes), [&] { kernel(__VA_ARGS__); }))
