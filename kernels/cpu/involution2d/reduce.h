// Register tiles of grad_weight: taps x lanes of accumulators, summed over the channels of a group.
#pragma once
#include "correlate.h"

namespace lgld {
namespace {

// Rows of taps in one dense tile, so that 9, 10 or 14 accumulators hide the latency of the multiply-add and still fit 16
// registers beside the shared load of grad_y.
template <int K>
constexpr int kTapRows = K == 3 ? 3 : 2;
constexpr int kSparseTaps = 8;

// One vector of outputs: acc[tap] += sum_c grad[c] * map[c][tap], for kRows rows of K taps from row `first_tap_row` on. What
// has been summed before the first channel is in `out`, unless they are the first; 16-bit results are summed in one go.
template <class T, int K, int kRows, bool kEdge, class M, class E>
LGLD_INLINE void dense_taps(const DenseMap<M>& map, int first_tap_row, const M* grad, int64_t grad_plane, int64_t channels,
                            bool first, E* out, int64_t tap_stride, int lanes) {
  using V = Vec<T>;
  V acc[kRows * K];
  out += first_tap_row * K * tap_stride;
  unroll<kRows * K>([&](auto t) LGLD_INLINE_LAMBDA {
    acc[t] = V::zero();
    if constexpr (std::is_same_v<T, E>) {
      if (!first) acc[t] = kEdge ? V::load_partial(out + t * tap_stride, lanes) : V::load(out + t * tap_stride);
    }
  });
  const M* row[kRows];
  int64_t step[kRows];
  unroll<kRows>([&](auto u) LGLD_INLINE_LAMBDA {
    const int r = first_tap_row + u.value;
    const bool outside = kEdge && (r < map.first_row || r >= map.last_row);
    row[u] = outside ? kZeroRow<M> : map.data + r * map.row_pitch;
    step[u] = outside ? 0 : map.plane_pitch;
  });
  for (int64_t c = 0; c < channels; ++c, grad += grad_plane) {
    const V g = kEdge ? V::load_partial(grad, lanes) : V::load(grad);
    unroll<kRows>([&](auto u) LGLD_INLINE_LAMBDA {
      const Window<T, M> x =
          kEdge ? Window<T, M>::load_within(row[u], map.first_column, map.last_column) : Window<T, M>::load(row[u]);
      row[u] += step[u];
      unroll<K>([&](auto v) LGLD_INLINE_LAMBDA { acc[u * K + v] = V::fma(x.template at<v.value>(), g, acc[u * K + v]); });
    });
  }
  if (kEdge) {
    unroll<kRows * K>([&](auto t) LGLD_INLINE_LAMBDA { acc[t].store_partial(out + t * tap_stride, lanes); });
  } else {
    unroll<kRows * K>([&](auto t) LGLD_INLINE_LAMBDA { acc[t].store(out + t * tap_stride); });
  }
}

// All K * K taps of one vector of outputs.
template <int K, bool kEdge, class T, class M, class E>
__attribute__((noinline)) void dense_tap_rows(const DenseMap<M>& map, const M* grad, int64_t grad_plane, int64_t channels,
                                              bool first, E* out, int64_t tap_stride, int lanes) {
  constexpr int kRows = kTapRows<K>, kRest = K % kRows;
  for (int u = 0; u + kRows <= K; u += kRows)
    dense_taps<T, K, kRows, kEdge>(map, u, grad, grad_plane, channels, first, out, tap_stride, lanes);
  if constexpr (kRest != 0)
    dense_taps<T, K, kRest, kEdge>(map, K - kRest, grad, grad_plane, channels, first, out, tap_stride, lanes);
}

// The same for any taps; `offset[t]` is tap t's distance from `map`. Taps behind the last repeat it and are not stored.
template <class T>
LGLD_INLINE void sparse_taps(const T* map, int64_t plane_pitch, const int64_t* offset, int64_t tap_count, const T* grad,
                             int64_t grad_plane, int64_t channels, bool first, T* out, int64_t tap_stride, int lanes) {
  using V = Vec<T>;
  V acc[kSparseTaps];
  const T* x[kSparseTaps];
  unroll<kSparseTaps>([&](auto t) LGLD_INLINE_LAMBDA {
    x[t] = map + offset[t < tap_count ? t.value : tap_count - 1];
    acc[t] = first || t >= tap_count ? V::zero() : V::load_partial(out + t * tap_stride, lanes);
  });
  for (int64_t c = 0; c < channels; ++c, grad += grad_plane) {
    const V g = V::load_partial(grad, lanes);
    unroll<kSparseTaps>([&](auto t) LGLD_INLINE_LAMBDA { acc[t] = V::fma(V::load(x[t] + c * plane_pitch), g, acc[t]); });
  }
  unroll<kSparseTaps>([&](auto t) LGLD_INLINE_LAMBDA {
    if (t < tap_count) store_lanes(acc[t], out + t * tap_stride, lanes);
  });
}

}  // namespace
}  // namespace lgld
