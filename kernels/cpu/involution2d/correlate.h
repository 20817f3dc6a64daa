// Register tiles of the forward pass and of grad_x: rows x channels of accumulators, fed by weight vectors that every channel
// of the tile shares.
#pragma once
#include "involution2d.h"

namespace lgld {
namespace {

// 16 registers: 2 x 4 accumulators; 32 registers: 4 x 4. Two rows share the loads of the K - 1 strip rows they have in
// common, all channels share the loads of the weights: with K = 3 and a 2 x 4 tile, (18 + 48) loads for 72 multiply-adds.
constexpr int kRowBlock = kVectorRegisters >= 32 ? 4 : 2;
constexpr int kChannelBlock = 4;
// Where nothing is known of the taps only weights can be shared, so more channels and one row.
constexpr int kSparseChannelBlock = 8;

// acc[m][c] = sum over a dense K x K window at stride 1. `map` points to the strip's element under the window's first tap of
// output row 0. Forward: weight (u, v) of row m stands at weight[m] + (u*K + v) * tap_stride. Transposed (grad_x): the window
// is mirrored and the weights move with it: weight[m] + (K*K - 1 - u*K - v) * tap_stride + u * row_pitch + v.
template <class T, int K, bool kTransposed, bool kPartial>
LGLD_INLINE void dense_tile(const T* map, int64_t row_pitch, int64_t plane_pitch, const T* const (&weight)[kRowBlock],
                            int64_t tap_stride, int lanes, Vec<T> (&acc)[kRowBlock][kChannelBlock]) {
  using V = Vec<T>;
  unroll<K + kRowBlock - 1>([&](auto r) LGLD_INLINE_LAMBDA {
    const T* row = map + r * row_pitch;
    unroll<K>([&](auto v) LGLD_INLINE_LAMBDA {
      V w[kRowBlock];
      unroll<kRowBlock>([&](auto m) LGLD_INLINE_LAMBDA {
        constexpr int u = r.value - m.value;
        if constexpr (u >= 0 && u < K) {
          constexpr int tap = kTransposed ? K * K - 1 - u * K - v.value : u * K + v.value;
          const T* p = weight[m] + tap * tap_stride + (kTransposed ? u * row_pitch + v.value : 0);
          w[m] = kPartial ? V::load_partial(p, lanes) : V::load(p);
        }
      });
      unroll<kChannelBlock>([&](auto c) LGLD_INLINE_LAMBDA {
        const V x = V::load(row + c * plane_pitch + v.value);
        unroll<kRowBlock>([&](auto m) LGLD_INLINE_LAMBDA {
          constexpr int u = r.value - m.value;
          if constexpr (u >= 0 && u < K) acc[m][c] = V::fma(x, w[m], acc[m][c]);
        });
      });
    });
  });
}

struct TapOffset {
  int64_t weight, map;
};

// acc[c] = sum over any list of taps.
template <class T, bool kPartial>
LGLD_INLINE void sparse_tile(const T* map, int64_t plane_pitch, const T* weight, const TapOffset* taps, int64_t tap_count,
                             int lanes, Vec<T> (&acc)[kSparseChannelBlock]) {
  using V = Vec<T>;
  for (int64_t t = 0; t < tap_count; ++t) {
    const T* p = weight + taps[t].weight;
    const V w = kPartial ? V::load_partial(p, lanes) : V::load(p);
    const T* x = map + taps[t].map;
    unroll<kSparseChannelBlock>(
        [&](auto c) LGLD_INLINE_LAMBDA { acc[c] = V::fma(V::load(x + c * plane_pitch), w, acc[c]); });
  }
}

template <class T>
LGLD_INLINE void store_lanes(Vec<T> value, T* p, int lanes) {
  if (lanes == Vec<T>::kLanes) {
    value.store(p);
  } else {
    value.store_partial(p, lanes);
  }
}

template <class T>
LGLD_INLINE int lanes_left(int64_t columns) {
  return static_cast<int>(columns < Vec<T>::kLanes ? columns : Vec<T>::kLanes);
}

// Columns [0, cols) of rows [0, rows) of `channels` <= kChannelBlock result planes.
template <class T, int K, bool kTransposed>
void dense_rows(const T* map, int64_t row_pitch, int64_t plane_pitch, const T* weight, int64_t weight_row, int64_t tap_stride,
                T* out, int64_t out_row, int64_t out_plane, int64_t rows, int64_t cols, int64_t channels) {
  using V = Vec<T>;
  for (int64_t i = 0; i < rows; i += kRowBlock) {
    const int64_t tile_rows = rows - i < kRowBlock ? rows - i : kRowBlock;
    for (int64_t j = 0; j < cols; j += V::kLanes) {
      const int lanes = lanes_left<T>(cols - j);
      const T* w[kRowBlock];
      // Rows behind the last repeat it, so that they read memory that exists; they are not stored.
      unroll<kRowBlock>(
          [&](auto m) LGLD_INLINE_LAMBDA { w[m] = weight + (m < tile_rows ? i + m : rows - 1) * weight_row + j; });
      V acc[kRowBlock][kChannelBlock];
      unroll<kRowBlock * kChannelBlock>(
          [&](auto k) LGLD_INLINE_LAMBDA { acc[k / kChannelBlock][k % kChannelBlock] = V::zero(); });
      const T* window = map + i * row_pitch + j;
      // A packed weight strip has slack behind its rows; the caller's own weights end with the row.
      if (kTransposed || lanes == V::kLanes) {
        dense_tile<T, K, kTransposed, false>(window, row_pitch, plane_pitch, w, tap_stride, lanes, acc);
      } else {
        dense_tile<T, K, kTransposed, true>(window, row_pitch, plane_pitch, w, tap_stride, lanes, acc);
      }
      unroll<kRowBlock>([&](auto m) LGLD_INLINE_LAMBDA {
        unroll<kChannelBlock>([&](auto c) LGLD_INLINE_LAMBDA {
          if (m < tile_rows && c < channels) store_lanes(acc[m][c], out + (i + m) * out_row + c * out_plane + j, lanes);
        });
      });
    }
  }
}

}  // namespace
}  // namespace lgld
