// Register tiles of grad_weight: taps x lanes of accumulators, summed over the channels of a group.
#pragma once
#include "correlate.h"

namespace lgld {
namespace {

// A row of the map is read by K rows of results, each with another row of its taps. So many of them share the shifted windows
// of the row. K = 7, 3 rows: 6 shifts for 21 multiply-adds, and 21 accumulators; 16 registers hold 14.
template <int K>
constexpr int kSharedRows = K == 3 || kVectorRegisters >= 32 ? 3 : 2;
constexpr int kSparseTaps = 8;

// K taps for a vector of each of kRows rows of results that read the same row of the map, the next row of results with the row
// of taps above: acc[row][tap] += sum_c grad[row][c] * map[c][tap]. `out`: tap 0 of the first row of results, `out_step` from
// there to the next row's. What has been summed before the first channel is in `out`, unless they are the first; 16-bit results
// are summed in one go. kEdge: the window leaves the map, or a whole vector of grad cannot be read; masked loads take the
// multiply-adds' unit, too.
template <class T, int K, int kRows, bool kEdge, class M, class E>
__attribute__((noinline)) void dense_taps(const DenseMap<M>& map, const M* grad, int64_t grad_row, int64_t grad_plane,
                                          int64_t channels, bool first, E* out, int64_t out_step, int64_t tap_stride,
                                          int lanes) {
  using V = Vec<T>;
  V acc[kRows][K];
  const auto each_tap = [&](auto run) LGLD_INLINE_LAMBDA {
    unroll<kRows * K>([&](auto k) LGLD_INLINE_LAMBDA {
      constexpr int m = k.value / K, v = k.value % K;
      run(acc[m][v], out + m * out_step + v * tap_stride);
    });
  };
  const bool whole = lanes == V::kLanes;
  each_tap([&](V& sum, E* at) LGLD_INLINE_LAMBDA {
    sum = V::zero();
    if constexpr (std::is_same_v<T, E>) {
      if (!first) sum = whole ? V::load(at) : V::load_partial(at, lanes);
    }
  });
  const M* row = map.data;
  for (int64_t c = 0; c < channels; ++c, row += map.plane_pitch, grad += grad_plane) {
    V g[kRows];
    unroll<kRows>([&](auto m) LGLD_INLINE_LAMBDA {
      const M* at = grad + m * grad_row;
      g[m] = kEdge ? V::load_partial(at, lanes) : V::load(at);
    });
    const Window<T, M> x = kEdge ? Window<T, M>::load_within(row, map.first_column, map.last_column) : Window<T, M>::load(row);
    unroll<K>([&](auto v) LGLD_INLINE_LAMBDA {
      const V shifted = x.template at<v.value>();
      unroll<kRows>([&](auto m) LGLD_INLINE_LAMBDA { acc[m][v] = V::fma(shifted, g[m], acc[m][v]); });
    });
  }
  // Every accumulator is used on both sides, as in store_tile.
  if (whole) {
    each_tap([&](const V& sum, E* at) LGLD_INLINE_LAMBDA { sum.store(at); });
  } else {
    each_tap([&](const V& sum, E* at) LGLD_INLINE_LAMBDA { sum.store_partial(at, lanes); });
  }
}

// What a task's results are a function of: grad_y under them, and where they go.
template <class M, class E>
struct TapSums {
  const M* grad;
  int64_t grad_row, grad_plane, channels;
  bool first;
  E* out;
  int64_t out_row, tap_stride;
  int lanes;
};

// The results of rows [0, rows) that read row r of the map are those of [first_reader, last_reader).
template <int K>
LGLD_INLINE int64_t first_reader(int64_t r) {
  return r < K ? 0 : r - K + 1;
}
LGLD_INLINE int64_t last_reader(int64_t r, int64_t rows) { return r < rows ? r + 1 : rows; }

// Results that read a row outside the map: for all K taps the sum of zeros, or NaN where grad_y is infinite or NaN.
template <int K, class T, class M, class E>
__attribute__((noinline)) void outside_tap_rows(const TapSums<M, E>& sums, int64_t r, int64_t rows) {
  using V = Vec<T>;
  for (int64_t i = first_reader<K>(r); i < last_reader(r, rows); ++i) {
    V nothing = V::zero();
    const M* grad = sums.grad + i * sums.grad_row;
    for (int64_t c = 0; c < sums.channels; ++c, grad += sums.grad_plane)
      nothing = V::fma(V::zero(), V::load_partial(grad, sums.lanes), nothing);
    E* out = sums.out + (r - i) * K * sums.tap_stride + i * sums.out_row;
    for (int v = 0; v < K; ++v, out += sums.tap_stride) {
      V sum = nothing;
      if constexpr (std::is_same_v<T, E>) {
        if (!sums.first) sum = sum + V::load_partial(out, sums.lanes);
      }
      sum.store_partial(out, sums.lanes);
    }
  }
}

// The results of rows [0, rows) that read row r of the map, for one vector of columns.
template <int K, bool kEdge, class T, class M, class E>
void dense_tap_rows(const DenseMap<M>& map, const TapSums<M, E>& sums, int64_t r, int64_t rows) {
  constexpr int kMost = kSharedRows<K>;
  const int64_t last = last_reader(r, rows);
  int64_t i = first_reader<K>(r);
  while (i < last) {
    const int64_t n = last - i < kMost ? last - i : kMost;
    const auto run = n == 1   ? dense_taps<T, K, 1, kEdge, M, E>
                     : n == 2 ? dense_taps<T, K, 2, kEdge, M, E>
                              : dense_taps<T, K, kMost, kEdge, M, E>;
    run(map, sums.grad + i * sums.grad_row, sums.grad_row, sums.grad_plane, sums.channels, sums.first,
        sums.out + (r - i) * K * sums.tap_stride + i * sums.out_row, sums.out_row - K * sums.tap_stride, sums.tap_stride,
        sums.lanes);
    i += n;
  }
}

// The same for any taps; `offset[t]` is tap t's distance from `map`. Taps behind the last repeat it and are not stored.
template <class T, class E>
LGLD_INLINE void sparse_taps(const T* map, int64_t plane_pitch, const int64_t* offset, int64_t tap_count, const T* grad,
                             int64_t grad_plane, int64_t channels, bool first, E* out, int64_t tap_stride, int lanes) {
  using V = Vec<T>;
  V acc[kSparseTaps];
  const T* x[kSparseTaps];
  unroll<kSparseTaps>([&](auto t) LGLD_INLINE_LAMBDA {
    x[t] = map + offset[t < tap_count ? t.value : tap_count - 1];
    acc[t] = V::zero();
    if constexpr (std::is_same_v<T, E>) {
      if (!first && t < tap_count) acc[t] = V::load_partial(out + t * tap_stride, lanes);
    }
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
