// Copies rows of a plane into a zero-padded strip (see StripLayout).
#pragma once
#include "involution2d.h"

namespace lgld {
namespace {

LGLD_INLINE int64_t clamp(int64_t value, int64_t low, int64_t high) { return value < low ? low : value > high ? high : value; }

template <class T>
struct Plane {
  const T* data;
  int64_t row_stride, col_stride, height, width;
};

// dst[0, n) = 0 in whole vectors; up to kLanes - 1 elements behind are overwritten, too.
template <class T>
LGLD_INLINE void zero_vectors(T* dst, int64_t n) {
  for (int64_t i = 0; i < n; i += Vec<T>::kLanes) Vec<T>::zero().store(dst + i);
}

// dst[k] = src[k * step] for k in [0, n).
template <class T>
LGLD_INLINE void copy_strided(T* dst, const T* src, int64_t step, int64_t n) {
  for (int64_t k = 0; k < n; ++k) dst[k] = src[k * step];
}

// p[0, 2 * kLanes), zero outside [first, last), which alone is read.
template <class T>
LGLD_INLINE void load_two_within(const T* p, int first, int last, Vec<T>& low, Vec<T>& high) {
  constexpr int kLanes = Vec<T>::kLanes;
  if constexpr (kMaskedWindows) {
    const Window<T> both = Window<T>::load_within(p, first, last);
    low = both.low, high = both.high;
  } else if (first == 0 && last == 2 * kLanes) {
    low = Vec<T>::load(p), high = Vec<T>::load(p + kLanes);
  } else {
    T both[2 * kLanes] = {};
    for (int k = first; k < last; ++k) both[k] = p[k];
    low = Vec<T>::load(both), high = Vec<T>::load(both + kLanes);
  }
}

// A strip row of two phases: columns col0, col0 + 2, ... of src, and a pitch further columns col0 + 1, col0 + 3, ...
template <class T>
LGLD_INLINE void pack_row_by_two(T* dst, const StripLayout& layout, const T* src, int64_t col0, int64_t width) {
  using V = Vec<T>;
  constexpr int64_t kBoth = 2 * V::kLanes;
  for (int64_t k = 0; k < layout.filled; k += V::kLanes) {
    const int64_t column = col0 + 2 * k;
    const int first = static_cast<int>(clamp(-column, 0, kBoth));
    const int last = static_cast<int>(clamp(width - column, first, kBoth));
    V low, high;
    load_two_within(src + column, first, last, low, high);
    V::even(low, high).store(dst + k);
    V::odd(low, high).store(dst + layout.pitch + k);
  }
}

// One strip row: `left` zeros, src[0, n), zeros up to `end`. Stores are aligned but for the first element's vector: half of
// an unaligned row's stores would cross a cache line, and stores are what packing is bound by.
template <class T>
LGLD_INLINE void pack_row(T* dst, int64_t end, int64_t left, const T* src, int64_t n) {
  using V = Vec<T>;
  constexpr int64_t kLanes = V::kLanes;
  int64_t k = left / kLanes * kLanes;
  // Up to the end of the row where it lies in the padding altogether; then the vector that the first element begins in.
  for (int64_t i = 0; i < k; i += kLanes) V::zero().store(dst + i);
  if (k < end) V::zero().store(dst + k);
  if (n < kLanes) {
    // `left + n` may still reach into the next vector.
    if (k + kLanes < end) V::zero().store(dst + k + kLanes);
    if (n > 0) V::load_partial(src, static_cast<int>(n)).store_partial(dst + left, static_cast<int>(n));
    k += 2 * kLanes;
  } else {
    V::load(src).store(dst + left);
    k += kLanes;
    for (; k + kLanes <= left + n; k += kLanes) V::load(src + (k - left)).store(dst + k);
    // src may end a page.
    if (k < left + n) {
      V::load_partial(src + (k - left), static_cast<int>(left + n - k)).store(dst + k);
      k += kLanes;
    }
  }
  for (; k < end; k += kLanes) V::zero().store(dst + k);
}

// Strip element (r, phase, k) holds plane element (row0 + r, col0 + phase + k * col_step), or 0 outside the plane.
template <class T>
void pack_plane(const Plane<T>& src, int64_t row0, int64_t col0, int64_t col_step, const StripLayout& layout, T* dst) {
  const int64_t top = clamp(-row0, 0, layout.rows), bottom = clamp(src.height - row0, top, layout.rows);
  zero_vectors(dst, top * layout.row_pitch);
  zero_vectors(dst + bottom * layout.row_pitch, (layout.rows - bottom) * layout.row_pitch);
  if (col_step == 2 && src.col_stride == 1 && layout.phases == 2) {
    for (int64_t r = top; r < bottom; ++r)
      pack_row_by_two(dst + r * layout.row_pitch, layout, src.data + (row0 + r) * src.row_stride, col0, src.width);
    return;
  }
  const int64_t step = col_step * src.col_stride;
  for (int64_t phase = 0; phase < layout.phases; ++phase) {
    const int64_t first = col0 + phase;
    const int64_t left = clamp(ceil_div(-first, col_step), 0, layout.filled);
    const int64_t right = clamp(ceil_div(src.width - first, col_step), left, layout.filled);
    const int64_t behind = right / Vec<T>::kLanes * Vec<T>::kLanes;
    const T* in = src.data + (row0 + top) * src.row_stride + (first + left * col_step) * src.col_stride;
    T* out = dst + top * layout.row_pitch + phase * layout.pitch;
    for (int64_t r = top; r < bottom; ++r, in += src.row_stride, out += layout.row_pitch) {
      if (step == 1) {
        pack_row(out, layout.filled, left, in, right - left);
        continue;
      }
      zero_vectors(out, left);
      // What is filled is a whole number of vectors, so the zeros on the right can go in first, as such.
      zero_vectors(out + behind, layout.filled - behind);
      copy_strided(out + left, in, step, right - left);
    }
  }
}

}  // namespace
}  // namespace lgld
