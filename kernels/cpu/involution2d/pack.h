// Copies rows of planes into zero-padded strips (see StripLayout), widening 16-bit elements, and results out of strips.
#pragma once
#include "../simd/transpose.h"
#include "involution2d.h"

namespace lgld {
namespace {

LGLD_INLINE int64_t clamp(int64_t value, int64_t low, int64_t high) { return value < low ? low : value > high ? high : value; }

// Rows and columns of one image of a tensor, from its channel 0 on.
template <class S>
struct Planes {
  const S* data;
  int64_t channel, row, column;  // strides
  int64_t height, width;
};

// The element (row0, col0) of a tensor that a strip begins with, and the columns from one element of a phase to the next.
struct StripOrigin {
  int64_t row, col, col_step;
};

template <class T, class S>
LGLD_INLINE T widened(S value) {
  if constexpr (std::is_same_v<S, T>) {
    return value;
  } else {
    return widen(value);
  }
}

template <class S>
LGLD_INLINE S narrowed(Compute<S> value) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    return value;
  } else {
    return narrow(value, S{});
  }
}

// The same of an element that may be an S already.
template <class S, class E>
LGLD_INLINE S as_stored(E value) {
  if constexpr (std::is_same_v<S, E>) {
    return value;
  } else {
    return narrowed<S>(value);
  }
}

// Asks for the cache lines of p[0, n), to be written where kWrite. The taps of one group are 196 bytes of each pixel's
// thousands, which no hardware foresees.
template <bool kWrite, class S>
LGLD_INLINE void prefetch(const S* p, int64_t n) {
  const char* const bytes = reinterpret_cast<const char*>(p);
  for (int64_t at = 0; at < n * static_cast<int64_t>(sizeof(S)); at += 64) __builtin_prefetch(bytes + at, kWrite);
}

// dst[0, n) = 0 in whole vectors; up to kLanes - 1 elements behind are overwritten, too.
template <class T>
LGLD_INLINE void zero_vectors(T* dst, int64_t n) {
  for (int64_t i = 0; i < n; i += Vec<T>::kLanes) Vec<T>::zero().store(dst + i);
}

// p[0, 2 * kLanes), zero outside [first, last), which alone is read.
template <class T, class S>
LGLD_INLINE void load_two_within(const S* p, int first, int last, Vec<T>& low, Vec<T>& high) {
  constexpr int kLanes = Vec<T>::kLanes;
  if constexpr (kMaskedWindows) {
    const Window<T, S> both = Window<T, S>::load_within(p, first, last);
    low = both.template at<0>(), high = both.template at<kLanes>();
  } else if (first == 0 && last == 2 * kLanes) {
    low = Vec<T>::load(p), high = Vec<T>::load(p + kLanes);
  } else {
    S both[2 * kLanes] = {};
    for (int k = first; k < last; ++k) both[k] = p[k];
    low = Vec<T>::load(both), high = Vec<T>::load(both + kLanes);
  }
}

// A strip row of two phases: columns col0, col0 + 2, ... of src, and a pitch further columns col0 + 1, col0 + 3, ...
template <class T, class S>
LGLD_INLINE void pack_row_by_two(T* dst, const StripLayout& layout, const S* src, int64_t col0, int64_t width) {
  using V = Vec<T>;
  constexpr int64_t kBoth = 2 * V::kLanes;
  for (int64_t k = 0; k < layout.filled; k += V::kLanes) {
    const int64_t column = col0 + 2 * k;
    const int first = static_cast<int>(clamp(-column, 0, kBoth));
    const int last = static_cast<int>(clamp(width - column, first, kBoth));
    V low, high;
    load_two_within<T>(src + column, first, last, low, high);
    V::even(low, high).store(dst + k);
    V::odd(low, high).store(dst + layout.pitch + k);
  }
}

// One strip row: `left` zeros, src[0, n), zeros up to `end`. Stores are aligned but for the first element's vector: half of
// an unaligned row's stores would cross a cache line, and stores are what packing is bound by.
template <class T, class S>
LGLD_INLINE void pack_row(T* dst, int64_t end, int64_t left, const S* src, int64_t n) {
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

// `rows` rows of each of `count` planes, of kVectors vectors that each have their zeros from a masked load. Masks are the same
// for all rows.
template <int kVectors, class T, class S>
__attribute__((noinline)) void pack_short_rows(T* dst, const StripLayout& layout, int64_t left, const S* src, int64_t n,
                                               int64_t row_stride, int64_t channel_stride, int64_t rows, int64_t count) {
  using V = Vec<T>;
  unsigned inside[kVectors];
  unroll<kVectors>([&](auto k) LGLD_INLINE_LAMBDA {
    const auto within = [&](int64_t at) { return static_cast<int>(clamp(at - k * V::kLanes, 0, V::kLanes)); };
    inside[k] = bits_within(within(left), within(left + n));
  });
  const int64_t row_pitch = layout.row_pitch, plane_pitch = layout.plane_pitch;
  for (int64_t c = 0; c < count; ++c, src += channel_stride, dst += plane_pitch) {
    const S* in = src - left;
    T* out = dst;
    for (int64_t r = 0; r < rows; ++r, in += row_stride, out += row_pitch)
      unroll<kVectors>([&](auto k)
                           LGLD_INLINE_LAMBDA { V::load_masked(in + k * V::kLanes, inside[k]).store(out + k * V::kLanes); });
  }
}

// Elements [left, right) of the `filled` ones of a strip's row stand for columns of the tensor, first + k * step, that exist.
struct Existing {
  int64_t left, right;
  Existing(int64_t width, int64_t first, int64_t step, int64_t filled) {
    // Two divisions take longer than packing a short row.
    const auto position = [&](int64_t column) { return step == 1 ? column - first : ceil_div(column - first, step); };
    left = clamp(position(0), 0, filled);
    right = clamp(position(width), left, filled);
  }
};

// Rows [top, bottom) of `count` planes' strips, which lie inside the tensor.
template <class T, class S>
void pack_rows(const Planes<S>& src, int64_t count, const StripOrigin& at, int64_t top, int64_t bottom,
               const StripLayout& layout, T* dst) {
  if (at.col_step == 2 && src.column == 1 && layout.phases == 2) {
    for (int64_t c = 0; c < count; ++c)
      for (int64_t r = top; r < bottom; ++r)
        pack_row_by_two(dst + c * layout.plane_pitch + r * layout.row_pitch, layout,
                        src.data + c * src.channel + (at.row + r) * src.row, at.col, src.width);
    return;
  }
  const int64_t step = at.col_step * src.column;
  // Copies: the compiler would read the layout again behind each store of a vector.
  const int64_t filled = layout.filled, row_pitch = layout.row_pitch, src_row = src.row;
  for (int64_t phase = 0; phase < layout.phases; ++phase) {
    const int64_t first = at.col + phase;
    const Existing columns(src.width, first, at.col_step, filled);
    const int64_t left = columns.left, right = columns.right;
    const int64_t behind = right / Vec<T>::kLanes * Vec<T>::kLanes;
    if constexpr (kMaskedWindows) {
      if (step == 1 && filled <= 4 * Vec<T>::kLanes) {
        const auto run = filled <= Vec<T>::kLanes       ? pack_short_rows<1, T, S>
                         : filled <= 2 * Vec<T>::kLanes ? pack_short_rows<2, T, S>
                         : filled <= 3 * Vec<T>::kLanes ? pack_short_rows<3, T, S>
                                                        : pack_short_rows<4, T, S>;
        run(dst + top * row_pitch + phase * layout.pitch, layout, left,
            src.data + (at.row + top) * src_row + (first + left) * src.column, right - left, src_row, src.channel, bottom - top,
            count);
        continue;
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      const S* in = src.data + c * src.channel + (at.row + top) * src_row + (first + left * at.col_step) * src.column;
      T* out = dst + c * layout.plane_pitch + top * row_pitch + phase * layout.pitch;
      for (int64_t r = top; r < bottom; ++r, in += src_row, out += row_pitch) {
        if (step == 1) {
          pack_row(out, filled, left, in, right - left);
          continue;
        }
        zero_vectors(out, left);
        // What is filled is a whole number of vectors, so the zeros on the right can go in first, as such.
        zero_vectors(out + behind, filled - behind);
        for (int64_t k = left; k < right; ++k) out[k] = widened<T>(in[(k - left) * step]);
      }
    }
  }
}

// The first `lanes` elements of the first `rows` vectors.
template <class T, class S>
LGLD_INLINE void store_rows(const Vec<T> (&block)[Vec<T>::kLanes], S* out, int64_t pitch, int rows, int lanes) {
  using V = Vec<T>;
  if (lanes == V::kLanes) {
    unroll<V::kLanes>([&](auto m) LGLD_INLINE_LAMBDA {
      if (m < rows) block[m].store(out + m * pitch);
    });
  } else {
    unroll<V::kLanes>([&](auto m) LGLD_INLINE_LAMBDA {
      if (m < rows) block[m].store_partial(out + m * pitch, lanes);
    });
  }
}

// Where the columns of a matrix go as rows: `step` apart, and `gap` more after every `width` of them, of which `left` are left.
template <class S>
struct RowCursor {
  S* at;
  int64_t step, width, gap, left;
  LGLD_INLINE S* next() {
    S* const row = at;
    at += step;
    if (--left == 0) at += gap, left = width;
    return row;
  }
};

// Element (i, j) of a matrix of `rows` x `columns` to element i of the cursor's row j. 7 x 7 taps or pixels are three vectors
// and one more: for one or two, of which a transposed block is mostly nothing, rows are widened or rounded as they are.
template <class E, class S>
void transpose_to(const E* src, int64_t pitch, int64_t rows, int64_t columns, RowCursor<S> out) {
  using V = Vec<Compute<S>>;
  constexpr int64_t kLanes = V::kLanes;
  constexpr int kFew = kLanes / 8;
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int width = static_cast<int>(columns - j < kLanes ? columns - j : kLanes);
    RowCursor<S> next = out;
    for (int64_t i = 0; i < rows; i += kLanes) {
      const int height = static_cast<int>(rows - i < kLanes ? rows - i : kLanes);
      const E* const in = src + i * pitch + j;
      next = out;
      if (width <= kFew) {
        for (int n = 0; n < width; ++n) {
          E column[kLanes];
          for (int m = 0; m < height; ++m) column[m] = in[m * pitch + n];
          V::load_partial(column, height).store_partial(next.next() + i, height);
        }
        continue;
      }
      if (height <= kFew) {
        S row[kFew > 0 ? kFew : 1][kLanes];
        for (int m = 0; m < height; ++m) V::load_partial(in + m * pitch, width).store_partial(row[m], width);
        for (int n = 0; n < width; ++n) {
          S* const to = next.next() + i;
          for (int m = 0; m < height; ++m) to[m] = row[m][n];
        }
        continue;
      }
      V block[kLanes];
      unroll<kLanes>([&](auto m) LGLD_INLINE_LAMBDA {
        const E* const row = in + (m < height ? m.value : height - 1) * pitch;
        block[m] = width == kLanes ? V::load(row) : V::load_partial(row, width);
      });
      transpose(block);
      unroll<kLanes>([&](auto n) LGLD_INLINE_LAMBDA {
        if (n >= width) return;
        if (height == kLanes) {
          block[n].store(next.next() + i);
        } else {
          block[n].store_partial(next.next() + i, height);
        }
      });
    }
    out = next;
  }
}

// Where the blocks of a row begin and end that its elements [left, right) are transposed in: at whole vectors, whose zeros come
// with them, unless fewer blocks from the first element on do.
template <class T>
struct RowBlocks {
  static constexpr int64_t kLanes = Vec<T>::kLanes;
  int64_t begin, end;
  explicit RowBlocks(const Existing& columns) {
    const int64_t extent = ceil_div(columns.right - columns.left, kLanes) * kLanes;
    begin = columns.left / kLanes * kLanes;
    if (columns.right > begin + extent) begin = columns.left;
    end = begin + extent;
  }
};

// Rows [top, bottom) of `count` planes' strips where channels are neighbours: blocks of pixels x channels, transposed.
template <class T, class S>
void pack_pixel_rows(const Planes<S>& src, int64_t count, const StripOrigin& at, int64_t top, int64_t bottom,
                     const StripLayout& layout, T* dst) {
  using V = Vec<T>;
  constexpr int64_t kLanes = V::kLanes;
  const int64_t step = at.col_step * src.column;
  for (int64_t phase = 0; phase < layout.phases; ++phase) {
    const Existing columns(src.width, at.col + phase, at.col_step, layout.filled);
    const RowBlocks<T> blocks(columns);
    const int64_t behind = blocks.end / kLanes * kLanes;
    for (int64_t r = top; r < bottom; ++r) {
      T* const row = dst + r * layout.row_pitch + phase * layout.pitch;
      const S* const first = src.data + (at.row + r) * src.row + (at.col + phase) * src.column;
      for (int64_t c = 0; c < count; ++c) {
        zero_vectors(row + c * layout.plane_pitch, blocks.begin);
        zero_vectors(row + c * layout.plane_pitch + behind, layout.filled - behind);
      }
      for (int64_t k = blocks.begin; k < blocks.end; k += kLanes) {
        const int before = static_cast<int>(clamp(columns.left - k, 0, kLanes));
        const int pixels = static_cast<int>(clamp(columns.right - k, 0, kLanes));
        const int lanes = static_cast<int>(clamp(layout.filled - k, 0, kLanes));
        for (int64_t c = 0; c < count; c += kLanes) {
          const S* pixel = first + k * step + c;
          const int channels = static_cast<int>(count - c < kLanes ? count - c : kLanes);
          V block[kLanes];
          if (before == 0 && pixels == kLanes && channels == kLanes) {
            unroll<kLanes>([&](auto m) LGLD_INLINE_LAMBDA {
              block[m] = V::load(pixel);
              pixel += step;
            });
          } else {
            unroll<kLanes>([&](auto m) LGLD_INLINE_LAMBDA {
              block[m] = m >= before && m < pixels ? V::load_partial(pixel, channels) : V::zero();
              pixel += step;
            });
          }
          transpose(block);
          store_rows(block, row + c * layout.plane_pitch + k, layout.plane_pitch, channels, lanes);
        }
      }
    }
  }
}

// Element (r, phase, k) of plane c's strip = element (row + r, col + phase + k * col_step) of plane c of src, 0 outside. Rows
// that lie outside altogether are left as they are unless kZeroRows.
template <bool kZeroRows = true, class T, class S>
void pack_planes(const Planes<S>& src, int64_t count, const StripOrigin& at, const StripLayout& layout, T* dst) {
  const int64_t top = clamp(-at.row, 0, layout.rows), bottom = clamp(src.height - at.row, top, layout.rows);
  for (int64_t c = 0; kZeroRows && c < count; ++c) {
    zero_vectors(dst + c * layout.plane_pitch, top * layout.row_pitch);
    zero_vectors(dst + c * layout.plane_pitch + bottom * layout.row_pitch, (layout.rows - bottom) * layout.row_pitch);
  }
  if (src.channel == 1 && src.column != 1 && count > 1) {
    pack_pixel_rows(src, count, at, top, bottom, layout, dst);
    return;
  }
  pack_rows(src, count, at, top, bottom, layout, dst);
}

// Rows of a strip of two phases to those of a plane: columns 0, 2, ... from the one, columns 1, 3, ... from the other.
template <class T, class S>
void unpack_plane_by_two(const T* src, const StripLayout& layout, int64_t rows, int64_t cols, S* dst, int64_t row_stride) {
  using V = Vec<T>;
  constexpr int64_t kBoth = 2 * V::kLanes;
  const int64_t row_pitch = layout.row_pitch, pitch = layout.pitch;
  for (int64_t i = 0; i < rows; ++i, src += row_pitch, dst += row_stride)
    for (int64_t j = 0; j < cols; j += kBoth) {
      // Of the other phase's column behind the last nothing was computed.
      const V even = V::load(src + j / 2), odd = cols - j > 1 ? V::load(src + pitch + j / 2) : V::zero();
      const V low = V::zip_low(even, odd), high = V::zip_high(even, odd);
      if (cols - j >= kBoth) {
        low.store(dst + j), high.store(dst + j + V::kLanes);
        continue;
      }
      const int left = static_cast<int>(cols - j);
      low.store_partial(dst + j, left < V::kLanes ? left : V::kLanes);
      if (left > V::kLanes) high.store_partial(dst + j + V::kLanes, left - V::kLanes);
    }
}

// Rows and columns of a strip of one phase to a plane of a tensor.
template <class E, class S>
void unpack_plane(const E* src, int64_t row_pitch, int64_t rows, int64_t cols, S* dst, int64_t row_stride, int64_t col_stride) {
  using V = Vec<Compute<S>>;
  for (int64_t i = 0; i < rows; ++i, src += row_pitch, dst += row_stride) {
    if (col_stride != 1) {
      for (int64_t j = 0; j < cols; ++j) dst[j * col_stride] = as_stored<S>(src[j]);
      continue;
    }
    int64_t j = 0;
    for (; j + V::kLanes <= cols; j += V::kLanes) V::load(src + j).store(dst + j);
    const int rest = static_cast<int>(cols - j);
    if (rest > 0) V::load_partial(src + j, rest).store_partial(dst + j, rest);
  }
}

// The same for `count` planes; where channels are neighbours, blocks of pixels x channels are transposed.
template <class E, class S>
void unpack_planes(const E* src, const StripLayout& layout, int64_t count, int64_t rows, int64_t cols, const Strided<S>& dst,
                   S* corner) {
  if constexpr (std::is_same_v<E, Compute<S>>) {
    if (layout.phases == 2) {
      for (int64_t c = 0; c < count; ++c)
        unpack_plane_by_two(src + c * layout.plane_pitch, layout, rows, cols, corner + c * dst.channel, dst.row);
      return;
    }
  }
  if (dst.channel != 1 || dst.column == 1) {
    for (int64_t c = 0; c < count; ++c)
      unpack_plane(src + c * layout.plane_pitch, layout.row_pitch, rows, cols, corner + c * dst.channel, dst.row, dst.column);
    return;
  }
  for (int64_t i = 0; i < rows; ++i)
    transpose_to(src + i * layout.row_pitch, layout.plane_pitch, count, cols,
                 RowCursor<S>{corner + i * dst.row, dst.column, cols, 0, cols});
}

}  // namespace
}  // namespace lgld
