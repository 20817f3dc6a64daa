// What the mixer's kernels share on the device: elements, vectors of them, sums over a warp, the activation.
//
// Compiled without nvcc these are plain functions for tests that run the kernels' threads on the host; only the intrinsics
// differ, and each of those is named beside what it stands for.
#pragma once
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ffm.h"
#include "index.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace lgld::cuda {

// 16-bit storage; no arithmetic is done in these types.
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

template <class E>
struct Arithmetic {
  using Type = float;
};
template <>
struct Arithmetic<double> {
  using Type = double;
};

#ifdef __CUDACC__
__device__ __forceinline__ float widen(Half h) { return __half2float(__ushort_as_half(h.bits)); }
__device__ __forceinline__ float widen(Brain b) { return __uint_as_float(static_cast<unsigned>(b.bits) << 16); }
__device__ __forceinline__ uint32_t narrow_two(float a, float b, Half) {
  const __half2 both = __floats2half2_rn(a, b);
  uint32_t bits;
  memcpy(&bits, &both, sizeof bits);
  return bits;
}
__device__ __forceinline__ uint32_t narrow_two(float a, float b, Brain) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
  uint32_t bits;
  memcpy(&bits, &both, sizeof bits);
  return bits;
}
__device__ __forceinline__ float exp2_approximate(float t) {  // 2 ulp; ex2.approx.ftz
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(t));
  return result;
}
__device__ __forceinline__ float divide_approximate(float a, float b) { return __fdividef(a, b); }  // 2 ulp; 0 for b > 2^126
#else
inline float widen(Half h) { return emulation::widen_half(h.bits); }
inline float widen(Brain b) { return emulation::widen_brain(b.bits); }
inline uint32_t narrow_two(float a, float b, Half) {
  return emulation::narrow_half(a) | static_cast<uint32_t>(emulation::narrow_half(b)) << 16;
}
inline uint32_t narrow_two(float a, float b, Brain) {
  return emulation::narrow_brain(a) | static_cast<uint32_t>(emulation::narrow_brain(b)) << 16;
}
inline float exp2_approximate(float t) { return std::exp2(t); }
inline float divide_approximate(float a, float b) { return a / b; }
#endif

__device__ __forceinline__ float arithmetic(float v) { return v; }
__device__ __forceinline__ double arithmetic(double v) { return v; }
__device__ __forceinline__ float arithmetic(Half v) { return widen(v); }
__device__ __forceinline__ float arithmetic(Brain v) { return widen(v); }

__device__ __forceinline__ void store_one(float* p, float v) { *p = v; }
__device__ __forceinline__ void store_one(double* p, double v) { *p = v; }
__device__ __forceinline__ void store_one(Half* p, float v) { p->bits = static_cast<uint16_t>(narrow_two(v, 0.f, Half{})); }
__device__ __forceinline__ void store_one(Brain* p, float v) { p->bits = static_cast<uint16_t>(narrow_two(v, 0.f, Brain{})); }

// --- vectors of elements in one access --------------------------------------------------------------------------------

template <int kBytes>
struct Word;
template <>
struct Word<16> {
  using Type = uint4;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<4> {
  using Type = uint32_t;
};
template <>
struct Word<2> {
  using Type = uint16_t;
};

// The bits of kLanes elements, as they were loaded.
template <class E, int kLanes>
struct Packet {
  typename Word<sizeof(E) * kLanes>::Type bits;

  __device__ __forceinline__ static Packet load(const E* p) {
    return {*reinterpret_cast<const decltype(bits)*>(p)};
  }
  template <class T>
  __device__ __forceinline__ void unpack(T (&values)[kLanes]) const {
    E lanes[kLanes];
    memcpy(lanes, &bits, sizeof lanes);
#pragma unroll
    for (int v = 0; v < kLanes; ++v) values[v] = arithmetic(lanes[v]);
  }
};

template <class E, int kLanes, class T>
__device__ __forceinline__ void store_lanes(E* p, const T (&values)[kLanes]) {
  using Bits = typename Word<sizeof(E) * kLanes>::Type;
  if constexpr (sizeof(E) > 2) {
    Bits bits;
    memcpy(&bits, values, sizeof bits);
    *reinterpret_cast<Bits*>(p) = bits;
  } else if constexpr (kLanes == 1) {
    store_one(p, values[0]);
  } else {
    uint32_t pairs[kLanes / 2];
#pragma unroll
    for (int v = 0; v < kLanes / 2; ++v) pairs[v] = narrow_two(values[2 * v], values[2 * v + 1], E{});
    Bits bits;
    memcpy(&bits, pairs, sizeof bits);
    *reinterpret_cast<Bits*>(p) = bits;
  }
}

// --- sums over a warp -------------------------------------------------------------------------------------------------

constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(kAllLanes, v, distance);
  return v;
}

// Sums eight values over a warp with 9 shuffles in place of 40: at each of three steps a lane gives away half of the values
// that it holds. Afterwards lane l holds the sum of value l / 4.
template <class T>
__device__ __forceinline__ T warp_sum_of_eight(T (&v)[8]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int half = 4, distance = 16; half > 0; half /= 2, distance /= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < half) {
        const T give = upper ? v[i] : v[i + half], keep = upper ? v[i + half] : v[i];
        v[i] = keep + __shfl_xor_sync(kAllLanes, give, distance);
      }
  }
  T sum = v[0];
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  return sum + __shfl_xor_sync(kAllLanes, sum, 1);
}

// --- SiLU -------------------------------------------------------------------------------------------------------------

// 1 / (1 + exp(-u)) of kLanes values. For 16-bit results a special-function operation less: two reciprocals come from that of
// the product, and exp(-u) from one ex2. It is capped at 2^60 so that the product stays finite: where u < -41.6, SiLU(u) is
// u 2^-60, at most 1e-15 off. Otherwise a relative error of about 4e-7 + 6e-8 |u|.
template <class E, int kLanes, class T>
__device__ __forceinline__ void sigmoids(const T (&u)[kLanes], T (&s)[kLanes]) {
  if constexpr (sizeof(E) > 2 || kLanes == 1) {
#pragma unroll
    for (int v = 0; v < kLanes; ++v) {
      if constexpr (std::is_same_v<T, double>) {
        s[v] = 1.0 / (1.0 + exp(-u[v]));
      } else {
        s[v] = divide_approximate(1.0f, 1.0f + expf(-u[v]));
      }
    }
  } else {
    static_assert(kLanes % 2 == 0);
    constexpr float kLog2E = 1.44269504f;
#pragma unroll
    for (int v = 0; v < kLanes; v += 2) {
      const float a = 1.0f + exp2_approximate(fminf(-kLog2E * u[v], 60.0f));
      const float b = 1.0f + exp2_approximate(fminf(-kLog2E * u[v + 1], 60.0f));
      const float both = divide_approximate(1.0f, a * b);
      s[v] = both * b;
      s[v + 1] = both * a;
    }
  }
}

// --- parameters -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ double parameter(const void* data, Dtype type, int64_t at) {
  switch (type) {
    case Dtype::kFloat64:
      return static_cast<const double*>(data)[at];
    case Dtype::kFloat16:
      return widen(static_cast<const Half*>(data)[at]);
    case Dtype::kBFloat16:
      return widen(static_cast<const Brain*>(data)[at]);
    default:
      return static_cast<const float*>(data)[at];
  }
}

__device__ __forceinline__ double element(const FfmVector& v, int64_t i) { return parameter(v.data, v.type, i * v.step); }
__device__ __forceinline__ double element_or(const FfmVector& v, int64_t i, double otherwise) {
  return v.data == nullptr ? otherwise : element(v, i);
}

__device__ __forceinline__ void store_parameter(void* data, Dtype type, int64_t at, double v) {
  switch (type) {
    case Dtype::kFloat64:
      static_cast<double*>(data)[at] = v;
      break;
    case Dtype::kFloat16:
      store_one(static_cast<Half*>(data) + at, static_cast<float>(v));
      break;
    case Dtype::kBFloat16:
      store_one(static_cast<Brain*>(data) + at, static_cast<float>(v));
      break;
    default:
      static_cast<float*>(data)[at] = static_cast<float>(v);
  }
}

// A map's element, and its address.
template <class E>
__device__ __forceinline__ E* address(const FfmMap& m, int64_t image, int64_t channel, int64_t row, int64_t column) {
  return static_cast<E*>(m.data) + image * m.batch + channel * m.channel + row * m.row + column * m.column;
}

// Dynamic shared memory.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char lgld_ffm_shared[];
  return reinterpret_cast<T*>(lgld_ffm_shared);
#else
  return static_cast<T*>(emulation::shared_memory());
#endif
}

}  // namespace lgld::cuda
