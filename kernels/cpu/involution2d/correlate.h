// Register tiles of the forward pass and of grad_x: rows x channels of accumulators, fed by weight vectors that every channel
// of the tile shares.
#pragma once
#include "operands.h"

namespace lgld {
namespace {

// Where nothing is known of the taps only weights can be shared, so more channels and one row.
constexpr int kSparseChannelBlock = 8;

// Row r of the map under a block of output rows: the taps of window row r - m for the output rows m in [kFirst, kLast).
template <class T, int K, int kFirst, int kLast, Columns kColumns, class M, class Weights>
LGLD_INLINE void dense_tap_row(const DenseMap<M>& map, const M* row, int64_t plane_pitch, Weights& weights,
                               Vec<T> (&acc)[kRowBlock][kChannelBlock]) {
  using V = Vec<T>;
  constexpr bool kEdge = leaves_map(kColumns);
  using X = WindowOf<T, K, kColumns, M>;
  X x[kChannelBlock];
  unroll<kChannelBlock>([&](auto c) LGLD_INLINE_LAMBDA {
    const M* p = row + c * plane_pitch;
    if constexpr (kColumns == Columns::kInside) x[c] = X::load(p);
    if constexpr (kColumns == Columns::kEdge) x[c] = X::load_within(p, map.first_column, map.last_column);
    if constexpr (kColumns == Columns::kAligned) x[c] = X::load(p, map);
    if constexpr (kColumns == Columns::kNarrow) x[c] = X::load(p, map.last_column - K / 2);
  });
  unroll<K>([&](auto v) LGLD_INLINE_LAMBDA {
    V w[kRowBlock];
    unroll<kLast - kFirst>([&](auto k) LGLD_INLINE_LAMBDA {
      constexpr int m = kFirst + k.value;
      w[m] = weights.template next<kEdge>(m);
    });
    unroll<kChannelBlock>([&](auto c) LGLD_INLINE_LAMBDA {
      const V shifted = x[c].template at<v.value>();
      unroll<kLast - kFirst>([&](auto k) LGLD_INLINE_LAMBDA {
        constexpr int m = kFirst + k.value;
        acc[m][c] = V::fma(shifted, w[m], acc[m][c]);
      });
    });
  });
}

// acc[m][c] = sum over a dense K x K window at stride 1.
template <class T, int K, Columns kColumns, class M, class Weights>
LGLD_INLINE void dense_tile(const DenseMap<M>& map, Weights& weights, Vec<T> (&acc)[kRowBlock][kChannelBlock]) {
  constexpr int kSteady = K >= kRowBlock ? K - kRowBlock + 1 : 0;  // map rows that all output rows of the block share
  const M* at = map.data;
  int index = 0;
  const auto row = [&](auto r) LGLD_INLINE_LAMBDA {
    constexpr int first = r.value >= K ? r.value - K + 1 : 0;
    constexpr int last = r.value < kRowBlock ? r.value + 1 : kRowBlock;
    const bool outside = leaves_map(kColumns) && (index < map.first_row || index >= map.last_row);
    dense_tap_row<T, K, first, last, kColumns>(map, outside ? kZeroRow<M> : at, outside ? 0 : map.plane_pitch, weights, acc);
    at += map.row_pitch;
    ++index;
    hide_origin(at);
  };
  if constexpr (kSteady > 1) {
    unroll<kRowBlock - 1>(row);
    for (int r = 0; r < kSteady; ++r) row(Int<kRowBlock - 1>{});
    unroll<kRowBlock - 1>([&](auto r) LGLD_INLINE_LAMBDA { row(Int<K + r.value>{}); });
  } else {
    unroll<K + kRowBlock - 1>(row);
  }
}

// Up to kRunTaps taps that read neighbouring elements of the map: tap k reads map + k and weighs with weight + k * weight_step.
struct TapRun {
  int64_t map, weight, weight_step, count;
};
static_assert(sizeof(TapRun) == kTapRunBytes, "plan.cpp sizes the list of runs by it");
constexpr int kRunTaps = 4;

// Appends a tap to a list of `count` runs, to the last of them where it fits, and returns the new count.
LGLD_INLINE int64_t append_tap(TapRun* runs, int64_t count, int64_t map, int64_t weight) {
  if (count > 0) {
    TapRun& last = runs[count - 1];
    const bool next = last.count < kRunTaps && map == last.map + last.count;
    if (next && last.count == 1) last.weight_step = weight - last.weight;
    if (next && weight == last.weight + last.count * last.weight_step) {
      ++last.count;
      return count;
    }
  }
  runs[count] = {map, weight, 0, 1};
  return count + 1;
}

template <class T, int kTaps, bool kPartial, class W>
LGLD_INLINE void sparse_run(const T* map, int64_t plane_pitch, const W* weight, int64_t weight_step, int lanes,
                            Vec<T> (&acc)[kSparseChannelBlock]) {
  using V = Vec<T>;
  V w[kTaps];
  unroll<kTaps>([&](auto k) LGLD_INLINE_LAMBDA {
    w[k] = kPartial ? V::load_partial(weight, lanes) : V::load(weight);
    weight += weight_step;
  });
  unroll<kSparseChannelBlock>([&](auto c) LGLD_INLINE_LAMBDA {
    if constexpr (kTaps == 1) {
      acc[c] = V::fma(V::load(map + c * plane_pitch), w[0], acc[c]);
    } else {
      const Window<T> x = Window<T>::load(map + c * plane_pitch);
      unroll<kTaps>([&](auto k) LGLD_INLINE_LAMBDA { acc[c] = V::fma(x.template at<k.value>(), w[k], acc[c]); });
    }
  });
}

// acc[c] = sum over any list of taps.
template <class T, bool kPartial, class W>
LGLD_INLINE void sparse_tile(const T* map, int64_t plane_pitch, const W* weight, const TapRun* runs, int64_t count, int lanes,
                             Vec<T> (&acc)[kSparseChannelBlock]) {
  for (const TapRun* run = runs; run < runs + count; ++run) {
    const T* x = map + run->map;
    const W* w = weight + run->weight;
    switch (run->count) {
      case 4: sparse_run<T, 4, kPartial>(x, plane_pitch, w, run->weight_step, lanes, acc); break;
      case 3: sparse_run<T, 3, kPartial>(x, plane_pitch, w, run->weight_step, lanes, acc); break;
      case 2: sparse_run<T, 2, kPartial>(x, plane_pitch, w, run->weight_step, lanes, acc); break;
      default: sparse_run<T, 1, kPartial>(x, plane_pitch, w, run->weight_step, lanes, acc);
    }
  }
}

template <class T, class S>
LGLD_INLINE void store_lanes(Vec<T> value, S* p, int lanes) {
  if (lanes == Vec<T>::kLanes) {
    value.store(p);
  } else {
    value.store_partial(p, lanes);
  }
}

// One vector of outputs of `channels` <= kSparseChannelBlock planes to out + c * out_plane + k * out_step, k in [0, lanes).
template <class T, bool kPartial, class W, class S>
__attribute__((noinline)) void sparse_vector(const T* map, int64_t plane_pitch, const W* weight, const TapRun* runs,
                                             int64_t count, S* out, int64_t out_plane, int64_t out_step, int64_t channels,
                                             int lanes) {
  using V = Vec<T>;
  V acc[kSparseChannelBlock];
  unroll<kSparseChannelBlock>([&](auto c) LGLD_INLINE_LAMBDA { acc[c] = V::zero(); });
  sparse_tile<T, kPartial>(map, plane_pitch, weight, runs, count, lanes, acc);
  // As in dense_tiles, both sides use every accumulator.
  if (channels == kSparseChannelBlock && lanes == V::kLanes && out_step == 1) {
    unroll<kSparseChannelBlock>([&](auto c) LGLD_INLINE_LAMBDA { acc[c].store(out + c * out_plane); });
    return;
  }
  alignas(64) T tile[kSparseChannelBlock][V::kLanes];
  unroll<kSparseChannelBlock>([&](auto c) LGLD_INLINE_LAMBDA { acc[c].store(tile[c]); });
  for (int64_t c = 0; c < channels; ++c, out += out_plane) {
    if (out_step == 1) {
      store_lanes(V::load(tile[c]), out, lanes);
    } else {
      for (int k = 0; k < lanes; ++k) out[k * out_step] = narrowed<S>(tile[c][k]);
    }
  }
}

template <class T>
LGLD_INLINE int lanes_left(int64_t columns) {
  return static_cast<int>(columns < Vec<T>::kLanes ? columns : Vec<T>::kLanes);
}

// The corner of the result that a register tile covers.
template <class S>
struct Corner {
  S* data;
  int64_t row, plane;  // strides
  int rows, channels, lanes;
};

// One tile of results. Every accumulator is used on both sides of the branch. Were each store guarded by itself, the compiler
// would sink the multiply-adds into the guards, behind all of the loads, and spill those.
template <class T, class S>
LGLD_INLINE void store_tile(const Vec<T> (&acc)[kRowBlock][kChannelBlock], const Corner<S>& out, S* at) {
  using V = Vec<T>;
  if (out.rows == kRowBlock && out.channels == kChannelBlock && out.lanes == V::kLanes) {
    unroll<kRowBlock>([&](auto m) LGLD_INLINE_LAMBDA {
      unroll<kChannelBlock>([&](auto c) LGLD_INLINE_LAMBDA { acc[m][c].store(at + m * out.row + c * out.plane); });
    });
    return;
  }
  T tile[kRowBlock][kChannelBlock][V::kLanes];
  unroll<kRowBlock>([&](auto m) LGLD_INLINE_LAMBDA {
    unroll<kChannelBlock>([&](auto c) LGLD_INLINE_LAMBDA { acc[m][c].store(tile[m][c]); });
  });
  for (int m = 0; m < out.rows; ++m)
    for (int c = 0; c < out.channels; ++c) {
      store_lanes(V::load(tile[m][c]), at + m * out.row + c * out.plane, out.lanes);
    }
}

template <class T>
LGLD_INLINE void clear(Vec<T> (&acc)[kRowBlock][kChannelBlock]) {
  unroll<kRowBlock * kChannelBlock>([&](auto k)
                                        LGLD_INLINE_LAMBDA { acc[k / kChannelBlock][k % kChannelBlock] = Vec<T>::zero(); });
}

// `tiles` tiles side by side, each of a whole vector of columns where there are several. Not inlined: a tile needs every
// general register for its own addresses.
template <int K, Columns kColumns, class M, class W, class S>
__attribute__((noinline)) void dense_tiles(const DenseMap<M>& map, const W* const* weights, int64_t tap_stride,
                                           const Corner<S>& out, int64_t tiles) {
  using T = Compute<S>;
  using V = Vec<T>;
  constexpr unsigned kAll = (1u << (V::kLanes - 1) << 1) - 1;
  for (int64_t n = 0, j = 0; n < tiles; ++n, j += V::kLanes) {
    DenseMap<M> window = map;
    window.data += j;
    if (n > 0) window.before = kAll;
    if (n + 1 < tiles) window.after = kAll;
    WeightRows<T, W> w{{}, tap_stride, out.lanes};
    unroll<kRowBlock>([&](auto m) LGLD_INLINE_LAMBDA { w.row[m] = weights[m] + j; });
    V acc[kRowBlock][kChannelBlock];
    clear(acc);
    dense_tile<T, K, kColumns>(window, w, acc);
    store_tile(acc, out, out.data + j);
  }
}

// A tile that leaves its widened weights in `kept`, or one of other channels that reads them there.
template <int K, Columns kColumns, bool kKept, class S>
__attribute__((noinline)) void dense_tile_keeping(const DenseMap<S>& map, const S* const* weights, int64_t tap_stride,
                                                  const Corner<S>& out, Compute<S>* kept) {
  using T = Compute<S>;
  Vec<T> acc[kRowBlock][kChannelBlock];
  clear(acc);
  if constexpr (kKept) {
    KeptWeights<T> w{kept};
    dense_tile<T, K, kColumns>(map, w, acc);
  } else {
    KeepingWeights<T, S> w{{{}, tap_stride, out.lanes}, kept};
    unroll<kRowBlock>([&](auto m) LGLD_INLINE_LAMBDA { w.rows.row[m] = weights[m]; });
    dense_tile<T, K, kColumns>(map, w, acc);
  }
  store_tile(acc, out, out.data);
}

// Weight maps as a dense tile reads them: tap t of output (i, j) at data[t * tap + i * row + j]. `slack`: rows may be read up
// to a whole vector behind the last column, as in a packed strip.
template <class W>
struct WeightMaps {
  const W* data;
  int64_t tap, row;
  bool slack;
};

// The map as a task's tiles see it. data: the element under the first tap of the task's first output, wherever that is. What
// can be read are rows [first_row, last_row) and columns [first_column, last_column) from there: the tensor's own, or a
// strip's.
template <class M>
struct MapView {
  const M* data;
  int64_t row_pitch, plane_pitch;
  int64_t first_row, last_row, first_column, last_column;
};

template <class M>
LGLD_INLINE DenseMap<M> tile_at(const MapView<M>& map, int64_t i, int64_t j, int rows) {
  constexpr int kWidth = 2 * Vec<Compute<M>>::kLanes;
  const auto within = [](int64_t value, int limit) LGLD_INLINE_LAMBDA { return static_cast<int>(clamp(value, 0, limit)); };
  return {map.data + i * map.row_pitch + j,
          map.row_pitch,
          map.plane_pitch,
          within(map.first_row - i, rows),
          within(map.last_row - i, rows),
          within(map.first_column - j, kWidth),
          within(map.last_column - j, kWidth),
          0,
          0};
}

template <int K, class M>
LGLD_INLINE bool is_narrow(const DenseMap<M>& tile, int lanes) {
  return tile.first_column == K / 2 && tile.last_column - K / 2 <= lanes;
}

template <class T>
LGLD_INLINE bool is_aligned(const T* p, int64_t row_pitch, int64_t plane_pitch) {
  constexpr int64_t kLine = 64;
  return reinterpret_cast<uintptr_t>(p) % kLine == 0 && (row_pitch | plane_pitch) * sizeof(T) % kLine == 0;
}

// Columns [0, cols) of rows [0, rows) of `channels` <= kChannelBlock result planes.
template <int K, class M, class W, class S>
void dense_rows(const MapView<M>& map, const WeightMaps<W>& weight, S* out, int64_t out_row, int64_t out_plane, int64_t rows,
                int64_t cols, int64_t channels) {
  using T = Compute<S>;
  constexpr int kLanes = Vec<T>::kLanes, kMapRows = K + kRowBlock - 1;
  const int block = static_cast<int>(channels);
  // How many tiles from column j on are of whole vectors and read only columns of the map, `reach` of them from their first on.
  // The last one may have fewer results where its weights can be read all the same.
  const auto whole_tiles = [&](int64_t j, int64_t reach) LGLD_INLINE_LAMBDA {
    const int64_t results = cols - j;
    const int64_t wanted = results >= kLanes ? results / kLanes : weight.slack;
    return clamp(floor_div(map.last_column - j - reach, kLanes) + 1, 0, wanted);
  };
  for (int64_t i = 0; i < rows; i += kRowBlock) {
    const int tile_rows = static_cast<int>(rows - i < kRowBlock ? rows - i : kRowBlock);
    for (int64_t j = 0, tiles; j < cols; j += tiles * kLanes) {
      // Rows behind the last repeat it, so that they read memory that exists; they are not stored.
      const W* w[kRowBlock];
      for (int m = 0; m < kRowBlock; ++m) w[m] = weight.data + (m < tile_rows ? i + m : rows - 1) * weight.row + j;
      DenseMap<M> tile = tile_at(map, i, j, kMapRows);
      const bool rows_inside = tile.has_rows(kMapRows);
      auto run = dense_tiles<K, Columns::kInside, M, W, S>;
      tiles = rows_inside && tile.first_column == 0 ? whole_tiles(j, 2 * kLanes) : 0;
      // With K = 3 a tile loads (48 unaligned + 36) vectors, 132 cache lines, for 144 multiply-adds; with larger windows
      // there are more multiply-adds to hide the loads.
      if constexpr (kMaskedWindows && K == 3 && std::is_same_v<M, T>) {
        const int64_t before = j + 1 - map.first_column;
        if (rows_inside && before >= 0 && is_aligned(tile.data + 1, tile.row_pitch, tile.plane_pitch)) {
          const int64_t aligned = whole_tiles(j, 1 + kLanes);
          if (aligned > 0) {
            constexpr unsigned kAll = (1u << kLanes) - 1;
            const int64_t after = map.last_column - (j + aligned * kLanes + 1);
            tile.before = kAll & ~(kAll >> clamp(before, 0, kLanes));
            tile.after = kAll & ((1u << clamp(after, 0, kLanes)) - 1);
            run = dense_tiles<K, Columns::kAligned, M, W, S>;
            tiles = aligned;
          }
        }
      }
      if (tiles == 0) {
        run = dense_tiles<K, Columns::kEdge, M, W, S>;
        if constexpr (kMaskedWindows && kNarrowWindows<K>) {
          if (is_narrow<K>(tile, kLanes)) run = dense_tiles<K, Columns::kNarrow, M, W, S>;
        }
        tiles = 1;
      }
      const int lanes = lanes_left<T>(cols - j);
      run(tile, w, weight.tap, {out + i * out_row + j, out_row, out_plane, tile_rows, block, lanes}, tiles);
    }
  }
}

// Columns [0, cols) of rows [0, rows) of all `channels` >= kChannelBlock of a group, 16-bit elements in place. The first block
// of channels widens a tile's weights for the others. The last begins earlier where it is not whole.
template <int K, class S>
void dense_rows_keeping(const MapView<S>& map, const WeightMaps<S>& weight, S* out, int64_t out_row, int64_t out_plane,
                        int64_t rows, int64_t cols, int64_t channels) {
  using T = Compute<S>;
  constexpr int kLanes = Vec<T>::kLanes, kMapRows = K + kRowBlock - 1;
  alignas(64) T kept[K * K * kRowBlock * kLanes];
  for (int64_t i = 0; i < rows; i += kRowBlock)
    for (int64_t j = 0; j < cols; j += kLanes) {
      const int tile_rows = static_cast<int>(rows - i < kRowBlock ? rows - i : kRowBlock);
      const int lanes = lanes_left<T>(cols - j);
      const S* w[kRowBlock];
      for (int m = 0; m < kRowBlock; ++m) w[m] = weight.data + (m < tile_rows ? i + m : rows - 1) * weight.row + j;
      const DenseMap<S> tile = tile_at(map, i, j, kMapRows);
      const bool inside = tile.has_rows(kMapRows) && tile.has_columns(2 * kLanes) && lanes == kLanes;
      for (int64_t c = 0; c < channels; c += kChannelBlock) {
        const int64_t channel = c + kChannelBlock <= channels ? c : channels - kChannelBlock;
        DenseMap<S> block = tile;
        block.data += channel * tile.plane_pitch;
        auto* run = c == 0 ? dense_tile_keeping<K, Columns::kEdge, false, S> : dense_tile_keeping<K, Columns::kEdge, true, S>;
        if (inside)
          run = c == 0 ? dense_tile_keeping<K, Columns::kInside, false, S> : dense_tile_keeping<K, Columns::kInside, true, S>;
        if constexpr (kNarrowWindows<K>) {
          if (is_narrow<K>(tile, kLanes))
            run = c == 0 ? dense_tile_keeping<K, Columns::kNarrow, false, S> : dense_tile_keeping<K, Columns::kNarrow, true, S>;
        }
        run(block, w, weight.tap,
            {out + i * out_row + j + channel * out_plane, out_row, out_plane, tile_rows, kChannelBlock, lanes}, kept);
      }
    }
}

}  // namespace
}  // namespace lgld
