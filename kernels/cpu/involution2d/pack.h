// Copies rows of a plane into a zero-padded strip (see StripLayout).
#pragma once
#include "involution2d.h"

namespace lgld {
namespace {

template <class T>
struct Plane {
  const T* data;
  int64_t row_stride, col_stride, height, width;
};

template <class T>
LGLD_INLINE void zero_fill(T* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = T(0);
}

// dst[i] = src[i] for i in [0, n). The strip has slack behind every row, but src may end a page: whole vectors, then a part.
template <class T>
LGLD_INLINE void copy_contiguous(T* dst, const T* src, int64_t n) {
  using V = Vec<T>;
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::load(src + i).store(dst + i);
  if (i < n) V::load_partial(src + i, static_cast<int>(n - i)).store_partial(dst + i, static_cast<int>(n - i));
}

// Strip element (r, phase, k) holds plane element (row0 + r, col0 + phase + k * col_step), or 0 outside the plane.
template <class T>
void pack_plane(const Plane<T>& src, int64_t row0, int64_t col0, int64_t col_step, const StripLayout& layout, T* dst) {
  for (int64_t r = 0; r < layout.rows; ++r, dst += layout.row_pitch) {
    const int64_t row = row0 + r;
    if (row < 0 || row >= src.height) {
      zero_fill(dst, layout.row_pitch);
      continue;
    }
    const T* line = src.data + row * src.row_stride;
    for (int64_t phase = 0; phase < layout.phases; ++phase) {
      T* out = dst + phase * layout.pitch;
      const int64_t first = col0 + phase;
      int64_t lo = ceil_div(-first, col_step);
      lo = lo < 0 ? 0 : (lo > layout.pitch ? layout.pitch : lo);
      int64_t hi = ceil_div(src.width - first, col_step);
      hi = hi < lo ? lo : (hi > layout.pitch ? layout.pitch : hi);
      zero_fill(out, lo);
      const int64_t step = col_step * src.col_stride;
      const T* in = line + (first + lo * col_step) * src.col_stride;
      if (step == 1) {
        copy_contiguous(out + lo, in, hi - lo);
      } else {
        for (int64_t k = lo; k < hi; ++k, in += step) out[k] = *in;
      }
      zero_fill(out + hi, layout.pitch - hi);
    }
  }
}

}  // namespace
}  // namespace lgld
