// What the mixer's kernels share on the device: elements of any type, sums over a warp, the activation.
#pragma once
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../common/dtype.cuh"
#include "../common/launch.cuh"
#include "../common/reduce.cuh"
#include "ffm.h"
#include "index.h"

namespace lgld::cuda {

// --- sums over a warp -------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ T warp_sum(T v) {
  return group_sum<kWarp>(v);
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
        v[i] = keep + __shfl_xor_sync(kWholeWarp, give, distance);
      }
  }
  T sum = v[0];
  sum += __shfl_xor_sync(kWholeWarp, sum, 2);
  return sum + __shfl_xor_sync(kWholeWarp, sum, 1);
}

// --- SiLU -------------------------------------------------------------------------------------------------------------

// 2^t within 2 ulp, one operation.
__device__ __forceinline__ float exp2_approximate(float t) {
#ifdef __CUDACC__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(t));
  return result;
#else
  return std::exp2(t);
#endif
}

// 1 / (1 + exp(-u)) of kCount values. For 16-bit results a special-function operation less: two reciprocals come from that of
// the product, and exp(-u) from one ex2. It is capped at 2^60 so that the product stays finite: where u < -41.6, SiLU(u) is
// u 2^-60, at most 1e-15 off. Otherwise a relative error of about 4e-7 + 6e-8 |u|.
template <class E, int kCount, class T>
__device__ __forceinline__ void sigmoids(const T (&u)[kCount], T (&s)[kCount]) {
  if constexpr (sizeof(E) > 2 || kCount == 1) {
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      if constexpr (std::is_same_v<T, double>) {
        s[v] = 1.0 / (1.0 + exp(-u[v]));
      } else {
        s[v] = __fdividef(1.0f, 1.0f + expf(-u[v]));
      }
    }
  } else {
    static_assert(kCount % 2 == 0);
    constexpr float kLog2E = 1.44269504f;
#pragma unroll
    for (int v = 0; v < kCount; v += 2) {
      const float a = 1.0f + exp2_approximate(fminf(-kLog2E * u[v], 60.0f));
      const float b = 1.0f + exp2_approximate(fminf(-kLog2E * u[v + 1], 60.0f));
      const float both = __fdividef(1.0f, a * b);
      s[v] = both * b;
      s[v + 1] = both * a;
    }
  }
}

// SiLU(u), of which s is the sigmoid. Below -1000 it is 0 to every format's rounding, where s may be capped and -inf * 0 is
// NaN.
template <class T>
__device__ __forceinline__ T silu_of(T u, T s) {
  return u < T(-1000) ? T(0) : u * s;
}

// Its derivative; beyond 1000 in size, where 1 - s and s are 0 to rounding and u need not be finite, as at 1000.
template <class T>
__device__ __forceinline__ T silu_slope(T u, T s) {
  const T w = u > T(1000) ? T(1000) : u < T(-1000) ? T(-1000) : u;
  return s * fma(w, 1 - s, T(1));
}

// --- parameters -------------------------------------------------------------------------------------------------------

// f(E{}) with the element type that `dtype` names.
template <class F>
__device__ __forceinline__ auto on_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat64: return f(double{});
    case Dtype::kFloat16: return f(__half{});
    case Dtype::kBFloat16: return f(__nv_bfloat16{});
    default: return f(float{});
  }
}

__device__ __forceinline__ double parameter(const void* data, Dtype type, int64_t at) {
  return on_dtype(type, [&](auto e) { return static_cast<double>(widen(static_cast<const decltype(e)*>(data)[at])); });
}

__device__ __forceinline__ double element(const FfmVector& v, int64_t i) { return parameter(v.data, v.type, i * v.step); }
__device__ __forceinline__ double element_or(const FfmVector& v, int64_t i, double otherwise) {
  return v.data == nullptr ? otherwise : element(v, i);
}

__device__ __forceinline__ void store_parameter(void* data, Dtype type, int64_t at, double v) {
  on_dtype(type, [&](auto e) {
    using E = decltype(e);
    static_cast<E*>(data)[at] = narrow<E>(static_cast<Compute<E>>(v));
  });
}

// A map's element, and its address.
template <class E>
__device__ __forceinline__ E* address(const FfmMap& m, int64_t image, int64_t channel, int64_t row, int64_t column) {
  return static_cast<E*>(m.data) + image * m.batch + channel * m.channel + row * m.row + column * m.column;
}

}  // namespace lgld::cuda
