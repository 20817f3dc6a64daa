// LFA: both depthwise convolutions from one read of the map, the pointwise ones and the projection as products of matrices over
// a strip of pixels that stays in the first-level cache.
#pragma once
#include "activation.h"

namespace lgld {
namespace {

// Pixels of a depthwise register tile: two sums each and a row of the window.
constexpr int kPixelBlock = kVectorRegisters >= 32 ? 6 : 3;

// dw3 and dw5 of kPixelBlock neighbouring pixels; `map` is the 5x5 window's first pixel.
LGLD_NOINLINE void depthwise_tile(const float* map, int64_t map_row, int64_t columns, const float* weight3,
                                  const float* weight5, float* out3, float* out5) {
  constexpr int kPixels = kPixelBlock;
  for (int64_t c = 0; c < columns; c += F::kLanes) {
    F three[kPixels], five[kPixels];
    unroll<kPixels>([&](auto k) LGLD_INLINE_LAMBDA { three[k] = five[k] = F::zero(); });
    const float *row = map + c, *w3 = weight3 + c, *w5 = weight5 + c;
    unroll<5>([&](auto u) LGLD_INLINE_LAMBDA {
      F x[kPixels + 4];
      const float* at = row;
      unroll<kPixels + 4>([&](auto k) LGLD_INLINE_LAMBDA { x[k] = F::load(at), at += columns; });
      unroll<5>([&](auto t) LGLD_INLINE_LAMBDA {
        const F w = F::load(w5);
        w5 += columns;
        unroll<kPixels>([&](auto k) LGLD_INLINE_LAMBDA { five[k] = F::fma(x[k.value + t.value], w, five[k]); });
        if constexpr (u.value >= 1 && u.value <= 3 && t.value >= 1 && t.value <= 3) {
          const F v = F::load(w3);
          w3 += columns;
          unroll<kPixels>([&](auto k) LGLD_INLINE_LAMBDA { three[k] = F::fma(x[k.value + t.value], v, three[k]); });
        }
      });
      row += map_row;
    });
    float *to3 = out3 + c, *to5 = out5 + c;
    unroll<kPixels>([&](auto k) LGLD_INLINE_LAMBDA {
      three[k].store(to3), five[k].store(to5);
      to3 += columns, to5 += columns;
    });
  }
}

// y = SiLU(y) over `pixels` rows, adding each channel to `sums`. The strip is summed by itself first: a task's sum is then
// rounded once a strip, not once a pixel.
LGLD_INLINE void silu_and_sum(const float* from, int64_t pixels, int64_t columns, float* to, float* sums) {
  for (int64_t c = 0; c < columns; c += F::kLanes) {
    F sum[4] = {F::zero(), F::zero(), F::zero(), F::zero()};
    int64_t j = 0;
    const auto one = [&](int64_t pixel) LGLD_INLINE_LAMBDA {
      const F y = silu(F::load(from + pixel * columns + c));
      if (to != nullptr) y.store(to + pixel * columns + c);
      return y;
    };
    for (; j + 4 <= pixels; j += 4) unroll<4>([&](auto k) LGLD_INLINE_LAMBDA { sum[k] = sum[k] + one(j + k); });
    for (; j < pixels; ++j) sum[0] = sum[0] + one(j);
    (F::load(sums + c) + ((sum[0] + sum[1]) + (sum[2] + sum[3]))).store(sums + c);
  }
}

void local_features(const LgldnetCall& call, int64_t task, float* scratch) {
  const LgldnetPlan& p = *call.plan;
  const LgldnetPacked& at = p.packed;
  const float* w = call.packed;
  const int64_t columns = p.padded, channels = p.geometry.channels, map_row = p.stem_row;
  float *three = scratch, *five = three + p.strip * columns, *both = five + p.strip * columns;
  float* sums = call.workspace + p.local_sums + task * columns;
  zero_floats(sums, columns);
  const RowRange range = rows_of(task, p.local_rows, p.height);
  for (int64_t i = range.begin; i < range.end; ++i) {
    for (int64_t j = 0; j < p.width; j += p.strip) {
      const int64_t pixels = smaller(p.strip, p.width - j);
      const float* map = call.workspace + p.stem_map + i * map_row + j * columns;
      // The last tile computes up to kPixelBlock - 1 pixels too many; nobody reads them.
      for (int64_t k = 0; k < pixels; k += kPixelBlock)
        depthwise_tile(map + k * columns, map_row, columns, w + at.dw3, w + at.dw5, three + k * columns, five + k * columns);
      gemm({three, columns, 1, channels, 0}, pixels, w + at.pw3, columns, w + at.pw3_bias, 0, both, 2 * columns);
      gemm({five, columns, 1, channels, 0}, pixels, w + at.pw5, columns, w + at.pw5_bias, 0, both + columns, 2 * columns);
      silu_rows(both, pixels * 2 * columns);
      const float* centre = map + 2 * map_row + 2 * columns;
      gemm({both, 2 * columns, 2, channels, columns}, pixels, w + at.project, columns, centre, columns, three, columns);
      silu_and_sum(three, pixels, columns, call.workspace + p.local_map + (i * p.width + j) * columns, sums);
    }
  }
}

}  // namespace
}  // namespace lgld
