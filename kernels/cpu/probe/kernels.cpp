#include LGLD_SIMD_HEADER

#include "probe.h"

namespace lgld {
namespace {

// Two units of latency 4 to 5 need 8 to 10 chains in flight.
constexpr int kChains = 12;

template <class T>
int64_t multiply_adds(int64_t rounds, T* sink) {
  using V = Vec<T>;
  const V scale = V::broadcast(T(0.999)), shift = V::broadcast(T(0.001));
  V acc[kChains];
  unroll<kChains>([&](auto k) LGLD_INLINE_LAMBDA { acc[k] = V::broadcast(T(k.value)); });
  for (int64_t i = 0; i < rounds; ++i)
    unroll<kChains>([&](auto k) LGLD_INLINE_LAMBDA { acc[k] = V::fma(acc[k], scale, shift); });
  T lanes[V::kLanes], sum = 0;
  unroll<kChains>([&](auto k) LGLD_INLINE_LAMBDA {
    acc[k].store(lanes);
    for (T lane : lanes) sum += lane;
  });
  *sink = sum;
  return rounds * kChains * V::kLanes;
}

}  // namespace

#define LGLD_CONCAT_(a, b) a##b
#define LGLD_CONCAT(a, b) LGLD_CONCAT_(a, b)

extern const ProbeKernels LGLD_CONCAT(probe_, LGLD_VARIANT);
const ProbeKernels LGLD_CONCAT(probe_, LGLD_VARIANT) = {multiply_adds<float>, multiply_adds<double>};

}  // namespace lgld
