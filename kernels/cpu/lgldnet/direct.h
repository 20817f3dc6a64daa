// The dilated convolutions of GCE tap by tap, for small maps: a task is a row of the map, whose pixels lie in up to four grids.
#pragma once
#include "context.h"
#include "maps.h"

namespace lgld {
namespace {

// f(j, count) for the pixels j, j + 4, ... of a row, which are neighbours in their grid: `count` of them.
template <class Function>
LGLD_INLINE void each_grid(const LgldnetPlan& p, Function f) {
  for (int64_t j = 0; j < smaller(p.width, 4); ++j) f(j, (p.width - j + 3) / 4);
}

// Dilations 4 and 8, as wide_context.
void wide_taps(const LgldnetCall& call, int64_t i, float*) {
  const LgldnetPlan& p = *call.plan;
  const int64_t columns = p.padded, channels = p.geometry.channels;
  each_grid(p, [&](int64_t j, int64_t pixels) {
    float* out = call.workspace + context_pixel(p, i, j);
    for (int u = 0; u < 5; ++u) {
      const LgldnetTaps& taps = kWideTaps[u];
      const float* from = call.workspace + mixer_pixel(p, i + 4 * (u - 2), j + 4 * taps.first);
      gemm({from, columns, taps.count, channels, taps.step * columns}, pixels, call.packed + p.packed.wide_taps[u], columns,
           u == 0 ? zeros_of(call) : out, u == 0 ? 0 : columns, out, columns);
    }
  });
}

// Dilation 2, bias, SiLU and the channels' sums, as near_context.
void near_taps(const LgldnetCall& call, int64_t i, float*) {
  const LgldnetPlan& p = *call.plan;
  const int64_t columns = p.padded, channels = p.geometry.channels;
  float* sums = call.workspace + p.context_sums + i * columns;
  zero_floats(sums, columns);
  each_grid(p, [&](int64_t j, int64_t pixels) {
    float* out = call.workspace + context_pixel(p, i, j);
    for (int64_t t = 0; t < 9; ++t) {
      const float* from = call.workspace + mixer_pixel(p, i + 2 * (t / 3 - 1), j + 2 * (t % 3 - 1));
      gemm({from, columns, 1, channels, 0}, pixels, call.packed + p.packed.near_taps + t * channels * columns, columns, out,
           columns, out, columns);
    }
    for (int64_t c = 0; c < columns; c += F::kLanes) {
      const F bias = F::load(call.packed + p.packed.context_bias + c);
      F sum = F::load(sums + c);
      for (int64_t k = 0; k < pixels; ++k) {
        const F y = silu(F::load(out + k * columns + c) + bias);
        y.store(out + k * columns + c);
        sum = sum + y;
      }
      sum.store(sums + c);
    }
  });
}

}  // namespace
}  // namespace lgld
