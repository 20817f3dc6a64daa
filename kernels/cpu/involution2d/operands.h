// What a dense tile reads: windows of the map, and weights, a vector at a time.
#pragma once
#include "involution2d.h"
#include "pack.h"

namespace lgld {
namespace {

// Rows and channels of a dense tile (correlate.h). 16 registers: 2 x 4 accumulators; 32 registers: 4 x 4. Two rows share the
// loads of the K - 1 strip rows they have in common, all channels share the loads of the weights: with K = 3 and a 2 x 4 tile,
// (18 + 48) loads for 72 multiply-adds.
constexpr int kRowBlock = kVectorRegisters >= 32 ? 4 : 2;
constexpr int kChannelBlock = 4;

// What a dense tile reads of the map: planes of rows, from the element under the first tap of its first output. A packed strip
// has every element that is read. The caller's own tensor (kMaskedWindows only) has rows [first_row, last_row) of those, and
// columns [first_column, last_column) of each window. M, W and S are the stored types of map, weights and result, all computed
// in T.
template <class M>
struct DenseMap {
  const M* data;
  int64_t row_pitch, plane_pitch;
  int first_row, last_row, first_column, last_column;
  unsigned before, after;  // kAligned: masks of what is inside the map on either side of the middle vectors

  // Whether the map has all of the rows or columns that are read. Of comparisons joined by && the compiler makes one load of
  // neighbours that were just stored one by one, which waits for every store before it, the last tile's results, too.
  LGLD_INLINE bool has_rows(int rows) const { return (first_row | (last_row ^ rows)) == 0; }
  LGLD_INLINE bool has_columns(int columns) const { return (first_column | (last_column ^ columns)) == 0; }
};

// Stands for a row outside the map.
template <class M>
alignas(64) const M kZeroRow[2 * Vec<Compute<M>>::kLanes] = {};

// How a tile reads its columns. kEdge: it has fewer than a vector or leaves the map. kAligned: those under its middle taps are
// an aligned vector inside the map.
// kNarrow: like kEdge, and the columns under the middle taps are all that the map has.
enum class Columns { kInside, kEdge, kAligned, kNarrow };
constexpr bool leaves_map(Columns columns) { return columns == Columns::kEdge || columns == Columns::kNarrow; }

// A Window from three aligned loads, each of one cache line, where a Window's own two would be of two lines each.
template <class T, int K>
struct AlignedWindow {
  static constexpr int kLanes = Vec<T>::kLanes, kMiddle = K / 2;
  const T* middle_at;
  unsigned after;
  Vec<T> before, middle;
  static LGLD_INLINE AlignedWindow load(const T* p, const DenseMap<T>& map) {
    const T* at = p + kMiddle;
    return {at, map.after, Vec<T>::load_masked(at - kLanes, map.before), Vec<T>::load(at)};
  }
  template <int kShift>
  LGLD_INLINE Vec<T> at() const {
    if constexpr (kShift < kMiddle) return Window<T>{before, middle}.template at<kLanes - kMiddle + kShift>();
    if constexpr (kShift == kMiddle) return middle;
    if constexpr (kShift > kMiddle)
      return Window<T>{middle, Vec<T>::load_masked(middle_at + kLanes, after)}.template at<kShift - kMiddle>();
  }
};

// A Window of which nothing but its middle vector can be inside the map: one load of `columns` elements.
template <class T, int K>
struct NarrowWindow {
  static constexpr int kLanes = Vec<T>::kLanes, kMiddle = K / 2;
  Vec<T> middle;
  template <class M>
  static LGLD_INLINE NarrowWindow load(const M* p, int columns) {
    return {Vec<T>::load_partial(p + kMiddle, columns)};
  }
  template <int kShift>
  LGLD_INLINE Vec<T> at() const {
    if constexpr (kShift < kMiddle) return Window<T>{Vec<T>::zero(), middle}.template at<kLanes - kMiddle + kShift>();
    if constexpr (kShift == kMiddle) return middle;
    if constexpr (kShift > kMiddle) return Window<T>{middle, Vec<T>::zero()}.template at<kShift - kMiddle>();
  }
};

// The three taps of a row of 16-bit elements, each widened as it is loaded: three operations of the unit that shuffles, where
// a Window's two parts and the two taps that it shifts take four.
template <class T, class S>
struct WidenedTaps {
  const S* p;
  static LGLD_INLINE WidenedTaps load(const S* p) { return {p}; }
  template <int kShift>
  LGLD_INLINE Vec<T> at() const {
    return Vec<T>::load(p + kShift);
  }
};

// With K = 3 windows are few.
template <int K>
constexpr bool kNarrowWindows = K > 3;

template <class T, int K, Columns kColumns, class M>
using WindowOf =
    std::conditional_t<kColumns == Columns::kAligned, AlignedWindow<T, K>,
                       std::conditional_t<kColumns == Columns::kNarrow, NarrowWindow<T, K>,
                                          std::conditional_t<kColumns == Columns::kInside && K == 3 && !std::is_same_v<M, T>,
                                                             WidenedTaps<T, M>, Window<T, M>>>>;

// The weights of a tile, a vector at a time as dense_tile wants them: `next` is that of output row m.
//
// In memory as the caller has them; row m's pointer moves on by `tap` a tap.
template <class T, class W>
struct WeightRows {
  const W* row[kRowBlock];
  int64_t tap;
  int lanes;
  template <bool kEdge>
  LGLD_INLINE Vec<T> next(int m) {
    const Vec<T> v = kEdge ? Vec<T>::load_partial(row[m], lanes) : Vec<T>::load(row[m]);
    row[m] += tap;
    hide_origin(row[m]);
    return v;
  }
};

// The same, each vector also widened to `kept` for the channels that follow.
template <class T, class W>
struct KeepingWeights {
  WeightRows<T, W> rows;
  T* kept;
  template <bool kEdge>
  LGLD_INLINE Vec<T> next(int m) {
    const Vec<T> v = rows.template next<kEdge>(m);
    v.store(kept);
    kept += Vec<T>::kLanes;
    hide_origin(kept);  // or the compiler compares the addresses of all stores and loads for minutes
    return v;
  }
};

// What KeepingWeights wrote.
template <class T>
struct KeptWeights {
  const T* kept;
  template <bool kEdge>
  LGLD_INLINE Vec<T> next(int) {
    const Vec<T> v = Vec<T>::load(kept);
    kept += Vec<T>::kLanes;
    return v;
  }
};

}  // namespace
}  // namespace lgld
