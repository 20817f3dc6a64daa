// grad_weight where the channels of x and grad_y are neighbours: vectors of channels, multiplied and added lane by lane, and
// one sum over the lanes for each tap.
//
// A sum over the lanes costs some three operations, whatever the number of channels: for groups of several vectors that is less
// than transposing both operands and the result, as the other kernel (reduce.h) needs it.
#pragma once
#include "task.h"

namespace lgld {
namespace {

// Lane k: the sum of all lanes of v[k]. Neighbouring lanes are added until one is left.
template <class T>
LGLD_INLINE Vec<T> lane_sums(Vec<T> (&v)[Vec<T>::kLanes]) {
  using V = Vec<T>;
  for (int count = V::kLanes / 2; count > 0; count /= 2)
    unroll<V::kLanes / 2>([&](auto i) LGLD_INLINE_LAMBDA {
      if (i < count) v[i] = V::even(v[2 * i], v[2 * i + 1]) + V::odd(v[2 * i], v[2 * i + 1]);
    });
  return v[0];
}

// Pixels of a tile, whose K taps of one row of the window are summed together: 32 registers hold 14 or 15 sums, the pixels'
// gradients and a vector of the map; 16 registers 7 to 10 sums.
template <int K>
constexpr int kSumPixels = kVectorRegisters >= 32 ? 16 / K
                           : K == 3               ? 3
                           : K == 5               ? 2
                                                  : 1;

// Gradients of pixel p's tap v of one row of the window to sums[p * K + v], for kPixels neighbours. `map` is what the first
// pixel's first tap reads; steps are from one pixel to the next. `sums` has room for whole vectors.
template <class T, class S, int K, int kPixels>
__attribute__((noinline)) void sum_taps(const S* map, int64_t map_step, const S* grad, int64_t grad_step, int64_t channels,
                                        T* sums) {
  using V = Vec<T>;
  constexpr int kVectors = (kPixels * K + V::kLanes - 1) / V::kLanes;
  V acc[kVectors * V::kLanes];
  unroll<kVectors * V::kLanes>([&](auto k) LGLD_INLINE_LAMBDA { acc[k] = V::zero(); });
  const auto add = [&](const S* x, const S* g, auto load) LGLD_INLINE_LAMBDA {
    V gradient[kPixels];
    unroll<kPixels>([&](auto p) LGLD_INLINE_LAMBDA { gradient[p] = load(g + p * grad_step); });
    unroll<kPixels + K - 1>([&](auto q) LGLD_INLINE_LAMBDA {
      const V pixel = load(x);
      x += map_step;
      hide_origin(x);
      unroll<kPixels>([&](auto p) LGLD_INLINE_LAMBDA {
        if constexpr (q.value >= p.value && q.value - p.value < K)
          acc[p * K + q - p] = V::fma(gradient[p], pixel, acc[p * K + q - p]);
      });
    });
  };
  int64_t c = 0;
  for (; c + V::kLanes <= channels; c += V::kLanes)
    add(map + c, grad + c, [](const S* p) LGLD_INLINE_LAMBDA { return V::load(p); });
  if (c < channels) {
    const int rest = static_cast<int>(channels - c);
    add(map + c, grad + c, [rest](const S* p) LGLD_INLINE_LAMBDA { return V::load_partial(p, rest); });
  }
  unroll<kVectors>([&](auto n) LGLD_INLINE_LAMBDA {
    V part[V::kLanes];
    unroll<V::kLanes>([&](auto k) LGLD_INLINE_LAMBDA { part[k] = acc[n * V::kLanes + k]; });
    lane_sums<T>(part).store(sums + n * V::kLanes);
  });
}

// One pixel's row of taps, of which [first, last) read the map. The others' products with zero are NaN where the gradient is
// infinite or NaN.
template <class T, class S, int K>
void sum_edge_taps(const S* map, int64_t map_step, const S* grad, int64_t channels, int64_t first, int64_t last, T* sums) {
  using V = Vec<T>;
  V nothing = V::zero();
  for (int64_t c = 0; c < channels; c += V::kLanes) {
    const int64_t left = channels - c;
    const V g = left < V::kLanes ? V::load_partial(grad + c, static_cast<int>(left)) : V::load(grad + c);
    nothing = V::fma(V::zero(), g, nothing);
  }
  const T outside = horizontal_sum(nothing);
  for (int64_t v = 0; v < K; ++v) sums[v] = outside;
  T one[V::kLanes];
  for (int64_t v = first; v < last; ++v) {
    sum_taps<T, S, 1, 1>(map + v * map_step, map_step, grad, 0, channels, one);
    sums[v] = one[0];
  }
}

// All taps of a task's pixels. x and grad_y begin at the group's first channel of the task's image.
template <int K, class S>
void sum_pixels(const Involution2dPlan& p, const Planes<S>& x, const Planes<S>& grad_y, const Strided<S>& result,
                const Task& t) {
  using T = Compute<S>;
  constexpr int kPixels = kSumPixels<K>;
  const int64_t channels = p.shape.group_channels();
  T sums[kPixels * K + Vec<T>::kLanes];
  for (int64_t i = t.row; i < t.row + t.rows; ++i)
    for (int64_t u = 0; u < K; ++u) {
      const int64_t row = i - p.shape.pad_h + u;
      const bool inside = row >= 0 && row < x.height;
      const int64_t end = t.col + t.cols;
      for (int64_t j = t.col, pixels; j < end; j += pixels) {
        const int64_t column = j - p.shape.pad_w;
        const S* map = x.data + row * x.row + column * x.column;
        const S* grad = grad_y.data + i * grad_y.row + j * grad_y.column;
        const bool whole = inside && column >= 0 && column + kPixels + K - 1 <= x.width && j + kPixels <= end;
        pixels = whole ? kPixels : 1;
        if (whole) {
          sum_taps<T, S, K, kPixels>(map, x.column, grad, grad_y.column, channels, sums);
        } else {
          const int64_t last = inside ? clamp(x.width - column, 0, K) : 0;
          sum_edge_taps<T, S, K>(map, x.column, grad, channels, clamp(-column, 0, K), last, sums);
        }
        S* out = result.data + t.image * result.batch + (t.group * p.shape.taps() + u * K) * result.channel + i * result.row +
                 j * result.column;
        for (int64_t q = 0; q < pixels; ++q)
          for (int64_t v = 0; v < K; ++v) out[q * result.column + v * result.channel] = narrowed<S>(sums[q * K + v]);
      }
    }
}

template <class S>
void grad_weight_pixels(const Involution2dPlan& p, const Strided<const S>& grad_y, const Strided<const S>& x,
                        const Strided<S>& result, int64_t begin, int64_t end) {
  const Involution2dShape& s = p.shape;
  const auto run = s.kernel_h == 3 ? sum_pixels<3, S> : s.kernel_h == 5 ? sum_pixels<5, S> : sum_pixels<7, S>;
  for (int64_t index = begin; index < end; ++index) {
    const Task t = make_task(p, index, s.out_height, s.out_width);
    const int64_t channel = t.group * s.group_channels();
    run(p, planes_of(x, t.image, channel, s.height, s.width), planes_of(grad_y, t.image, channel, s.out_height, s.out_width),
        result, t);
  }
}

}  // namespace
}  // namespace lgld
