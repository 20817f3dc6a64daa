// Elements in memory and what they are computed in.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../dtype.h"

namespace lgld::cuda {

// What a stored type is computed in.
template <class E>
using Compute = std::conditional_t<std::is_same_v<E, double>, double, float>;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

// Rounds once, to nearest even.
template <class E>
__device__ __forceinline__ E narrow(Compute<E> v) {
  if constexpr (std::is_same_v<E, __half>)
    return __float2half_rn(v);
  else if constexpr (std::is_same_v<E, __nv_bfloat16>)
    return __float2bfloat16_rn(v);
  else
    return v;
}

// N neighbouring elements that move as one access; the address must be a multiple of its size.
template <class E, int N>
struct alignas(sizeof(E) * N) Pack {
  static_assert((N & (N - 1)) == 0 && sizeof(E) * N <= 16);
  E element[N];
};

// Elements of a 16-byte access.
template <class E>
constexpr int kLanes = 16 / static_cast<int>(sizeof(E));

template <class E, int N>
__device__ __forceinline__ void load(const E* p, Compute<E> (&to)[N]) {
  const auto pack = *reinterpret_cast<const Pack<E, N>*>(p);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = widen(pack.element[i]);
}

// Type of one access.
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

// In one access whatever the compiler thinks: a plain store of a vector was seen split into its elements.
template <class E, int N>
__device__ __forceinline__ void store(E* p, const Compute<E> (&from)[N]) {
  using Bits = typename Word<sizeof(E) * N>::Type;
  E pack[N];
#pragma unroll
  for (int i = 0; i < N; ++i) pack[i] = narrow<E>(from[i]);
  Bits bits;
  memcpy(&bits, pack, sizeof bits);
  __stwb(reinterpret_cast<Bits*>(p), bits);
}

// f(E{}) with the element type that `dtype` names.
template <class F>
auto with_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat64: return f(double{});
    case Dtype::kFloat16: return f(__half{});
    case Dtype::kBFloat16: return f(__nv_bfloat16{});
    default: return f(float{});
  }
}

}  // namespace lgld::cuda
