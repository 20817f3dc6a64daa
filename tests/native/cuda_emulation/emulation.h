// CUDA kernels on the host, one thread of a block after the other: the same source, compiled as C++ against the headers of this
// folder in place of CUDA's. A thread runs until it waits for others (a barrier of the block, a shuffle of its warp), then the
// next one runs, in an order that a test chooses: results that depend on it show a missing barrier. Shared memory starts as NaN
// in each block and ends at a forbidden page; asynchronous copies arrive only when they are waited for; a barrier that some
// threads never reach ends the program.
//
// Not shown here: the memory model between blocks, alignment of accesses (the build traps those), intrinsics' rounding.
#pragma once
#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

struct uint3 {
  unsigned x, y, z;
};

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 : uint3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

namespace emulation {

enum class Order { kForward, kBackward, kShuffled };

void set_order(Order order);
// Fewer blocks at a time than a kernel is launched with, so that each takes several units of its work; 0: as launched.
void set_most_blocks(unsigned blocks);
// Launches since the start.
int64_t launches();

void* shared_memory();
void wait_for_block();
void wait_for_warp();
// The value that lane `from` of this thread's warp gives; 8 bytes at most.
void exchange(const void* give, void* take, size_t bytes, unsigned from);
// Copies that arrive when their group is waited for and no sooner; zeros where not `real`.
void copy_later(void* to, const void* from, size_t bytes, bool real);
void close_group();
void wait_groups(size_t open);
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

float widen_half(uint16_t bits);
float widen_brain(uint16_t bits);
uint16_t narrow_half(float value);
uint16_t narrow_brain(float value);

}  // namespace emulation

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;

inline void __syncthreads() { ::emulation::wait_for_block(); }
inline void __syncwarp(unsigned = 0xffffffffu) { ::emulation::wait_for_warp(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  T result{};
  ::emulation::exchange(&value, &result, sizeof(T), threadIdx.x % 32 ^ static_cast<unsigned>(mask));
  return result;
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  T result{};
  ::emulation::exchange(&value, &result, sizeof(T), static_cast<unsigned>(lane) % 32);
  return result;
}

template <class T>
void __stwb(T* p, T value) {
  *p = value;
}
inline float __fdividef(float a, float b) { return a / b; }
inline void sincospi(double x, double* sine, double* cosine) {
  *sine = std::sin(std::acos(-1.0) * x), *cosine = std::cos(std::acos(-1.0) * x);
}

// --- the runtime ------------------------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline cudaError_t emulated_error = cudaSuccess;
inline cudaError_t cudaGetLastError() { return std::exchange(emulated_error, cudaSuccess); }

template <class... Parameter, class... Argument>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameter...), const Argument&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  if (grid.x < 1 || grid.x > 0x7fffffffu || block.x < 1 || block.x > 1024 || config->dynamicSmemBytes > 48 * 1024)
    return emulated_error = cudaErrorInvalidConfiguration;
  ::emulation::run(grid, block, config->dynamicSmemBytes, [&] { kernel(static_cast<Parameter>(arguments)...); });
  return cudaSuccess;
}
