// Copies of parts of a tensor for the kernels whose vectors are channels (pixels.h).
#pragma once
#include "pack.h"

namespace lgld {
namespace {

// What a copy of rows [row, row + rows) and columns [col, col + cols) of planes consists of. Of those outside the planes it has
// nothing, or zeros: columns where `pads`, those on the right of one row being those on the left of the next, and rows where
// `pads_rows`.
struct Region {
  int64_t top, height, left, existing;  // rows and columns of the planes
  int64_t before, after, width;         // columns of zeros on either side, and from one row to the next
  int64_t above, below;                 // rows of zeros
  int64_t top0, left0;                  // the planes' row and column that the copy begins with

  template <class S>
  Region(const Planes<S>& src, int64_t row, int64_t rows, int64_t col, int64_t cols, bool pads, bool pads_rows) {
    top = clamp(row, 0, src.height), height = clamp(row + rows, top, src.height) - top;
    left = clamp(col, 0, src.width), existing = clamp(col + cols, left, src.width) - left;
    // A region beside the planes is columns of zeros.
    before = !pads ? 0 : existing > 0 ? left - col : cols, after = pads ? cols - before - existing : 0;
    width = existing + (before > after ? before : after), left0 = pads ? col : left;
    above = !pads_rows ? 0 : height > 0 ? top - row : rows, below = pads_rows ? rows - above - height : 0;
    top0 = pads_rows ? row : top;
  }

  // The zeros of a copy with `pixel` elements from one column to the next.
  template <class T>
  void clear_surroundings(T* plane, int64_t pixel) const {
    using V = Vec<T>;
    const auto clear = [](T* at, int64_t n) {
      int64_t k = 0;
      for (; k + V::kLanes <= n; k += V::kLanes) V::zero().store(at + k);
      if (k < n) V::zero().store_partial(at + k, static_cast<int>(n - k));
    };
    // The last row's zeros on its right have no next row to be on the left of.
    const int64_t last = before < after ? before : after, row = width * pixel;
    if (above > 0) clear(plane, above * row + (height + below == 0 ? last * pixel : 0));
    T* const rest = plane + (above + height) * row;
    if (below > 0) clear(rest, below * row + last * pixel);
    if (height == 0 || before + after == 0) return;
    T* const first = plane + above * row;
    clear(first, before * pixel);
    for (int64_t i = 1; i < height; ++i) clear(first + (i - 1) * row + (before + existing) * pixel, row - existing * pixel);
    clear(rest - row + (before + existing) * pixel, after * pixel);
  }

  // Whether rows follow each other with nothing between them, so that all are one.
  template <class S>
  bool joined(const Planes<S>& src) const {
    return existing == src.row;
  }

  // A copy whose channels are neighbours, addressed by the planes' own rows and columns.
  template <class T>
  Strided<const T> pixels(const T* copy, int64_t channels) const {
    return {copy - (top0 * width + left0) * channels, 0, 1, width * channels, channels};
  }
};

// A region of src, `channels` of them, widened to dst: pixel by pixel where channels are neighbours, else plane by plane. What
// is returned addresses the copy by src's own rows and columns.
template <class T, class S>
Strided<const T> copy_region(const Planes<S>& src, const Region& r, int64_t channels, T* dst) {
  using V = Vec<T>;
  const auto copy = [](T* to, const S* from, int64_t step, int64_t n) {
    int64_t k = 0;
    if (step == 1) {
      for (; k + V::kLanes <= n; k += V::kLanes) V::load(from + k).store(to + k);
      const int rest = static_cast<int>(n - k);
      if (rest > 0) V::load_partial(from + k, rest).store_partial(to + k, rest);
      return;
    }
    for (; k < n; ++k) to[k] = widened<T>(from[k * step]);
  };
  if (src.channel == 1) {
    r.clear_surroundings(dst, channels);
    for (int64_t i = 0; i < r.height; ++i)
      for (int64_t j = 0; j < r.existing; ++j)
        copy(dst + (i * r.width + r.before + j) * channels, src.data + (r.top + i) * src.row + (r.left + j) * src.column, 1,
             channels);
    return r.pixels<T>(dst, channels);
  }
  const int64_t plane = r.height * r.width + (r.before < r.after ? r.before : r.after);
  const Strided<const T> copied{dst - r.top * r.width - r.left0, 0, plane, r.width, 1};
  const S* from = src.data + r.top * src.row + r.left * src.column;
  const int64_t touched = r.before + r.existing + r.after;
  const bool joined = src.column == 1 && r.joined(src) && touched == r.existing;
  if (joined && src.channel == plane) {
    copy(dst, from, 1, channels * plane);
    return copied;
  }
  if constexpr (kMaskedWindows) {
    if (src.column == 1 && !joined && touched <= 2 * V::kLanes) {
      // What a row's last vector has too much is the next row's, which is written later, or slack.
      const StripLayout layout{r.height, 1, 0, r.width, r.width, plane};
      const auto run = touched <= V::kLanes ? pack_short_rows<1, T, S> : pack_short_rows<2, T, S>;
      run(dst, layout, r.before, from, r.existing, src.row, src.channel, r.height, channels);
      return copied;
    }
  }
  for (int64_t c = 0; c < channels; ++c, from += src.channel) {
    T* const to = dst + c * plane;
    r.clear_surroundings(to, 1);
    if (joined) {
      copy(to, from, 1, plane);
      continue;
    }
    for (int64_t i = 0; i < r.height; ++i) copy(to + i * r.width + r.before, from + i * src.row, src.column, r.existing);
  }
  return copied;
}

// The same of planes to pixels whose channels are neighbours.
template <class T, class S>
Strided<const T> transpose_region(const Planes<S>& src, const Region& r, int64_t channels, T* dst) {
  r.clear_surroundings(dst, channels);
  T* to = dst + (r.above * r.width + r.before) * channels;
  if (src.column != 1) {
    for (int64_t i = 0; i < r.height; ++i)
      for (int64_t j = 0; j < r.existing; ++j) {
        const S* const from = src.data + (r.top + i) * src.row + (r.left + j) * src.column;
        for (int64_t c = 0; c < channels; ++c) to[(i * r.width + j) * channels + c] = widened<T>(from[c * src.channel]);
      }
    return r.pixels<T>(dst, channels);
  }
  const bool joined = r.joined(src);
  const int64_t rows = joined ? r.height != 0 : r.height, pixels = joined ? r.height * r.existing : r.existing;
  const S* from = src.data + r.top * src.row + r.left;
  for (int64_t i = 0; i < rows; ++i, from += src.row, to += r.width * channels)
    transpose_to(from, src.channel, channels, pixels,
                 RowCursor<T>{to, channels, r.existing, (r.width - r.existing) * channels, r.existing});
  return r.pixels<T>(dst, channels);
}

}  // namespace
}  // namespace lgld
