// grad_weight where the channels of x, grad_y and the weights are neighbours and a group has few of them: the lanes of a vector
// are the taps of a row of the window.
//
// Taps are neighbours in the result, and those of one row read neighbours of a transposed map. So x alone is transposed, while
// the other kernel (reduce.h), whose lanes are pixels, wants grad_y and the K * K maps of the result transposed as well: with
// 16 channels and K = 7 that takes about as long as its products. A vector of 16 lanes has two pixels, whose windows begin 8
// columns apart: their 7 taps each are 16 neighbours of the map but for the last of each half. So with a stride of 2 the second
// pixel is the fourth from the first.
#pragma once
#include "task.h"

namespace lgld {
namespace {

// Lanes of a row of taps: for K of 5 and 7.
constexpr int kRowLanes = 8;
// Pixels of a vector: 1 or 2; 0 where a row of taps does not fit one.
template <class T>
constexpr int kVectorPixels = Vec<T>::kLanes / kRowLanes;
// Rows of results of a tile. With stride 1 it reads R + K - 1 vectors of the map for R * K multiply-adds. K = 7, R = 3, 64-byte
// vectors: 21 multiply-adds and 3 blends for two units; 9 loads of two cache lines each and 6 numbers of grad_y, 24 lines, for
// two others.
constexpr int kSumRows = kVectorRegisters >= 32 ? 3 : 2;

// Lanes [0, 8) all `low`, [8, 16) all `high`; or one pixel's alone.
template <class T>
LGLD_INLINE Vec<T> each_half(const T* const (&at)[kVectorPixels<T>], int64_t c) {
  if constexpr (kVectorPixels<T> == 2) {
    return Vec<T>::halves(at[0][c], at[1][c]);
  } else {
    return Vec<T>::broadcast(at[0][c]);
  }
}

// The first `taps` lanes of each half to the pixel's results.
template <class T, int kTaps, class S>
LGLD_INLINE void store_halves(Vec<T> sums, S* const (&out)[kVectorPixels<T>], int64_t at) {
  if constexpr (kVectorPixels<T> == 2) {
    sums.template store_half<0>(out[0] + at, kTaps);
    if (out[1] != nullptr) sums.template store_half<1>(out[1] + at, kTaps);
  } else if constexpr (kTaps == kRowLanes) {
    sums.store(out[0] + at);
  } else {
    sums.store_partial(out[0] + at, kTaps);
  }
}

// A vector's pixels in kRows rows below each other: all K * K taps, `channels` products each. `map` is what the first pixel's
// first tap reads; a second pixel may be missing (null `out`), but its grad is read. Most loads of the map cross a cache line
// and count as two; shifting two aligned ones would take the two and a unit that multiplies and adds.
template <class T, class S, int K, int kStride, int kRows>
__attribute__((noinline)) void sum_tap_rows(const T* map, int64_t row_pitch, int64_t plane_pitch,
                                            const T* const (&grad)[kSumRows][kVectorPixels<T>], int64_t channels,
                                            S* const (&out)[kSumRows][kVectorPixels<T>]) {
  using V = Vec<T>;
  V acc[kRows][K];
  unroll<kRows * K>([&](auto k) LGLD_INLINE_LAMBDA { acc[k / K][k % K] = V::zero(); });
  for (int64_t c = 0; c < channels; ++c, map += plane_pitch) {
    V g[kRows];
    unroll<kRows>([&](auto i) LGLD_INLINE_LAMBDA { g[i] = each_half<T>(grad[i], c); });
    const T* at = map;
    unroll<(kRows - 1) * kStride + K>([&](auto r) LGLD_INLINE_LAMBDA {
      const V x = V::load(at);
      at += row_pitch;
      hide_origin(at);
      unroll<kRows>([&](auto i) LGLD_INLINE_LAMBDA {
        constexpr int u = r.value - kStride * i.value;
        if constexpr (u >= 0 && u < K) acc[i][u] = V::fma(x, g[i], acc[i][u]);
      });
    });
  }
  // In order: a row of taps overwrites the lanes that the one before had too many.
  unroll<kRows * K>([&](auto k) LGLD_INLINE_LAMBDA {
    constexpr int u = k.value % K;
    store_halves<T, u * K + kRowLanes <= K * K ? kRowLanes : K>(acc[k / K][u], out[k / K], u * K);
  });
}

// Results whose taps are not neighbours are computed here first.
template <class S, int K>
struct Scattered {
  S taps[kSumRows][2][K * K];
};

// All taps of a task's pixels. `map`: strips of all channels of the group; `grad` addresses grad_y by its own rows and columns.
template <class T, class S, int K, int kStride>
void sum_tap_tile(const Involution2dPlan& p, const T* map, const Strided<const T>& grad, const Strided<S>& result,
                  const Task& t) {
  constexpr int kPixels = kVectorPixels<T>, kApart = kRowLanes / kStride;
  const int64_t channels = p.shape.group_channels();
  const bool in_place = result.channel == 1;
  Scattered<S, K> scattered;
  S* const tile_result = corner_of(result, t, t.group * p.shape.taps());
  const T* const tile_grad = grad.data + t.row * grad.row + t.col * grad.column;
  for (int64_t i = 0; i < t.rows; i += kSumRows) {
    const int rows = static_cast<int>(t.rows - i < kSumRows ? t.rows - i : kSumRows);
    const auto run = rows == 1   ? sum_tap_rows<T, S, K, kStride, 1>
                     : rows == 2 ? sum_tap_rows<T, S, K, kStride, 2>
                                 : sum_tap_rows<T, S, K, kStride, kSumRows>;
    for (int64_t start = 0; start < t.cols; start += kPixels * kApart) {
      const T* g[kSumRows][kPixels] = {};
      S *corner[kSumRows][kPixels] = {}, *out[kSumRows][kPixels] = {};
      const auto each = [&](int count, auto run) LGLD_INLINE_LAMBDA {
        for (int m = 0; m < rows; ++m)
          for (int q = 0; q < count; ++q) run(m, q);
      };
      each(kPixels, [&](int m, int q) LGLD_INLINE_LAMBDA {
        const int64_t row = i + m, column = start + q * kApart;
        g[m][q] = tile_grad + row * grad.row + column * grad.column;
        corner[m][q] = tile_result + row * result.row + column * result.column;
      });
      for (int64_t j = start; j < start + kApart && j < t.cols; ++j) {
        const int pixels = j + (kPixels - 1) * kApart < t.cols ? kPixels : 1;
        each(kPixels, [&](int m, int q) LGLD_INLINE_LAMBDA {
          const bool exists = q < pixels;
          if (!exists) g[m][q] = g[m][0];
          out[m][q] = !exists ? nullptr : in_place ? corner[m][q] : scattered.taps[m][q];
        });
        each(pixels, [&](int m, int q) LGLD_INLINE_LAMBDA { prefetch<true>(corner[m][q] + result.column, K * K); });
        run(map + kStride * (i * p.map.row_pitch + j), p.map.row_pitch, p.map.plane_pitch, g, channels, out);
        if (!in_place)
          each(pixels, [&](int m, int q) LGLD_INLINE_LAMBDA {
            for (int k = 0; k < K * K; ++k) corner[m][q][k * result.channel] = out[m][q][k];
          });
        each(kPixels, [&](int m, int q) LGLD_INLINE_LAMBDA { g[m][q] += grad.column, corner[m][q] += result.column; });
      }
    }
  }
}

}  // namespace
}  // namespace lgld
