// Copies from device memory to shared memory that threads don't wait for, where the GPU has them (compute capability 8.0).
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace lgld::cuda {

// kBytes (4, 8 or 16) from `from` to `to`, both multiples of kBytes; zeros where `real` is false, and `from` is then not read.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool real) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifndef __CUDACC__
  ::emulation::copy_later(to, from, kBytes, real);
#elif __CUDA_ARCH__ >= 800
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int read = real ? kBytes : 0;
  if constexpr (kBytes == 16)  // past the first-level cache, which only 16 bytes can do
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(read) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(at), "l"(from), "r"(read), "n"(kBytes) : "memory");
#else
  struct alignas(kBytes) Bytes {
    uint32_t word[kBytes / 4];
  };
  *static_cast<Bytes*>(to) = real ? *static_cast<const Bytes*>(from) : Bytes{};
#endif
}

// Closes the group of this thread's copies since the last call; an empty group counts too.
__device__ __forceinline__ void close_group() {
#ifndef __CUDACC__
  ::emulation::close_group();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kOpen of this thread's latest groups are under way. What other threads copied needs a barrier behind it.
template <int kOpen>
__device__ __forceinline__ void wait_groups() {
#ifndef __CUDACC__
  ::emulation::wait_groups(kOpen);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
#endif
}

}  // namespace lgld::cuda
