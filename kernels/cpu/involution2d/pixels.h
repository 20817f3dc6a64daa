// Involution where channels are neighbours in memory: vectors of channels, weights broadcast. Taps outside the map are left
// out, but for those beside its rows where it is copied with zeros there.
#pragma once
#include "pack.h"

namespace lgld {
namespace {

// 16 registers: 4 x 2 accumulators; 32 registers: 4 x 4. Every multiply-add loads a vector of the map; a weight is loaded once
// for all vectors of a tile.
constexpr int kTilePixels = 4;
constexpr int kTileVectors = kVectorRegisters >= 32 ? 4 : 2;

// What a pixel adds up: map and weight elements this far from the tile's first pixel's.
struct PixelTap {
  int64_t map, weight;
};
static_assert(sizeof(PixelTap) == kPixelTapBytes, "plan.cpp sizes the list of taps by it");

// Distances from one pixel of a run to the next.
struct PixelSteps {
  int64_t map, weight, out;
};

// kPixels pixels of a run, kVectors vectors of channels, `last` lanes in the last of them.
template <class T, class S, int kPixels, int kVectors>
__attribute__((noinline)) void pixel_tile(const T* map, const T* weight, S* out, const PixelSteps& step, const PixelTap* taps,
                                          int64_t count, int last) {
  using V = Vec<T>;
  V acc[kPixels][kVectors];
  unroll<kPixels * kVectors>([&](auto k) LGLD_INLINE_LAMBDA { acc[k / kVectors][k % kVectors] = V::zero(); });
  const bool whole = last == V::kLanes;
  // Lanes behind the last channel belong to the next pixel, or to nobody.
  const auto run = [&](auto partial) LGLD_INLINE_LAMBDA {
    for (const PixelTap* tap = taps; tap < taps + count; ++tap) {
      const T *x = map + tap->map, *w = weight + tap->weight;
      unroll<kPixels>([&](auto p) LGLD_INLINE_LAMBDA {
        const V each = V::broadcast(*w);
        unroll<kVectors>([&](auto v) LGLD_INLINE_LAMBDA {
          const T* at = x + v * V::kLanes;
          const bool cut = partial && v.value == kVectors - 1;
          acc[p][v] = V::fma(cut ? V::load_partial(at, last) : V::load(at), each, acc[p][v]);
        });
        x += step.map;
        w += step.weight;
      });
    }
    unroll<kPixels>([&](auto p) LGLD_INLINE_LAMBDA {
      unroll<kVectors>([&](auto v) LGLD_INLINE_LAMBDA {
        S* at = out + p * step.out + v * V::kLanes;
        if (partial && v.value == kVectors - 1) {
          acc[p][v].store_partial(at, last);
        } else {
          acc[p][v].store(at);
        }
      });
    });
  };
  if (whole) {
    run(Int<0>{});
  } else {
    run(Int<1>{});
  }
}

// Rows of K taps that stand side by side: pixel p's tap v reads map pixel p + v, so a row of P pixels loads
// P + K - 1 vectors for its P * K multiply-adds. What a tile of one vector of channels needs, which has no
// second vector to share its weights with: 8 pixels of 7 taps load (14 + 56) for 56, pixel_tile would load 112.
//
// Pixels of a tile: 8, or 7 where they cover a run in no more tiles. A tile of P pixels has P chains of dependent
// multiply-adds, of which up to 8 take no longer than one, so that fewer than a tile's at the end of a run are best computed by
// a whole one, some of them again. Maps of 7, 14 and 28 columns are common.
LGLD_INLINE int64_t row_pixels(int64_t run) { return ceil_div(run, 7) <= ceil_div(run, 8) ? 7 : 8; }

// Whose weights stand side by side: those of a pixel's taps, those of the pixels for one tap, or neither.
enum class Neighbours { kTaps, kPixels, kNone };

// P neighbouring pixels of a run, `lanes` channels; `tap` is the weights' step from one tap of a row to the next, `taps` has
// the first tap of each of `count` rows.
template <class T, class S, int K, int P, Neighbours kNeighbours>
__attribute__((noinline)) void row_tile(const T* map, const T* weight, S* out, const PixelSteps& step, int64_t tap,
                                        const PixelTap* taps, int64_t count, int lanes) {
  using V = Vec<T>;
  // Pointers from which an address is a step or a constant away: a pixel's, or that of three taps. One for each pixel and tap
  // would not fit the registers.
  constexpr bool kByPixel = kNeighbours != Neighbours::kPixels;
  constexpr int kPointers = kByPixel ? P : (K + 2) / 3;
  V acc[P];
  unroll<P>([&](auto p) LGLD_INLINE_LAMBDA { acc[p] = V::zero(); });
  const auto run = [&](auto partial) LGLD_INLINE_LAMBDA {
    for (const PixelTap* row = taps; row < taps + count * K; row += K) {
      const T* x = map + row->map;
      const T* w[kPointers];
      unroll<kPointers>([&](auto n) LGLD_INLINE_LAMBDA {
        w[n] = weight + row->weight + n * (kByPixel ? step.weight : 3 * tap);
        hide_origin(w[n]);
      });
      unroll<P + K - 1>([&](auto q) LGLD_INLINE_LAMBDA {
        const V pixel = partial ? V::load_partial(x, lanes) : V::load(x);
        x += step.map;
        hide_origin(x);
        unroll<P>([&](auto p) LGLD_INLINE_LAMBDA {
          constexpr int v = q.value - p.value;
          if constexpr (v >= 0 && v < K) {
            constexpr int n = kByPixel ? p.value : v / 3;
            const int64_t at = kNeighbours == Neighbours::kTaps ? v : kByPixel ? 0 : v % 3 * tap + p;
            acc[p] = V::fma(pixel, V::broadcast(w[n][at]), acc[p]);
            if constexpr (kNeighbours == Neighbours::kNone) w[n] += tap;
          }
        });
      });
    }
    unroll<P>([&](auto p) LGLD_INLINE_LAMBDA {
      if (partial) {
        acc[p].store_partial(out + p * step.out, lanes);
      } else {
        acc[p].store(out + p * step.out);
      }
    });
  };
  if (lanes == V::kLanes) {
    run(Int<0>{});
  } else {
    run(Int<1>{});
  }
}

// A run of pixels and the taps that they all have. row_taps: so many taps at a time are rows of neighbours along the run, one
// pixel of the map and `tap` elements of the weights apart; 0: none are.
struct PixelRun {
  PixelSteps step;
  int64_t count;
  const PixelTap* taps;
  int64_t tap_count, row_taps, tap;
};

// Groups of channels that a run computes, and elements of weight from one's to the next's.
struct PixelGroups {
  int64_t count, channels, weight;
  bool fetch;  // the next line's weights while one is computed
};

// Calls tile(p) for tiles of P pixels from pixel p of a run on, and returns the first pixel left. Where `least` pixels or more
// are left at the end, a last one begins earlier and computes some pixels again.
template <int P, class Tile>
LGLD_INLINE int64_t cover(int64_t p, int64_t end, int64_t least, const Tile& tile) {
  for (; p + P <= end; p += P) tile(p);
  if (end - p < least || end < P) return p;
  tile(end - P);
  return end;
}

// Pixels [p, end) of a run, kVectors vectors of channels.
template <class T, class S, int kVectors>
void pixel_tiles(const T* map, const T* weight, S* out, const PixelRun& run, int64_t p, int64_t end, int last) {
  const PixelSteps& step = run.step;
  constexpr int kLeast = kVectors == 1 ? 1 : kTilePixels / 2 + 1;
  const auto tiles_of = [&](auto pixels) LGLD_INLINE_LAMBDA {
    p = cover<pixels.value>(p, end, kLeast, [&](int64_t q) LGLD_INLINE_LAMBDA {
      pixel_tile<T, S, pixels.value, kVectors>(map + q * step.map, weight + q * step.weight, out + q * step.out, step, run.taps,
                                               run.tap_count, last);
    });
  };
  tiles_of(Int<kTilePixels>{});
  tiles_of(Int<1>{});
}

// The tile for rows of k taps, if there is one.
template <class T, class S, int P, Neighbours kNeighbours>
auto row_tile_of(int64_t k) {
  return k == 3   ? row_tile<T, S, 3, P, kNeighbours>
         : k == 4 ? row_tile<T, S, 4, P, kNeighbours>
         : k == 5 ? row_tile<T, S, 5, P, kNeighbours>
         : k == 7 ? row_tile<T, S, 7, P, kNeighbours>
                  : nullptr;
}

// Pixels [p, end) of a run, P at a time, where its taps are rows of 3, 4, 5 or 7; returns the first pixel left.
template <class T, class S, int P>
int64_t row_tiles(const T* map, const T* weight, S* out, const PixelRun& run, int64_t p, int64_t end, int lanes) {
  const int64_t k = run.row_taps;
  const auto tile = run.tap == 1           ? row_tile_of<T, S, P, Neighbours::kTaps>(k)
                    : run.step.weight == 1 ? row_tile_of<T, S, P, Neighbours::kPixels>(k)
                                           : row_tile_of<T, S, P, Neighbours::kNone>(k);
  if (tile == nullptr) return p;
  return cover<P>(p, end, 1, [&](int64_t q) LGLD_INLINE_LAMBDA {
    tile(map + q * run.step.map, weight + q * run.step.weight, out + q * run.step.out, run.step, run.tap, run.taps,
         run.tap_count / k, lanes);
  });
}

// All groups of a few pixels before the next pixels: what is contiguous in memory is read in one go.
template <class T, class S>
void pixel_run(const T* map, const T* weight, S* out, const PixelRun& run, const PixelGroups& groups) {
  constexpr int kLanes = Vec<T>::kLanes;
  const int64_t pixels = row_pixels(run.count);
  const auto whole_rows = pixels == 7 ? row_tiles<T, S, 7> : row_tiles<T, S, 8>;
  for (int64_t p = 0; p < run.count; p += pixels) {
    const int64_t end = p + pixels < run.count ? p + pixels : run.count;
    for (int64_t g = 0; g < groups.count; ++g) {
      const T *x = map + g * groups.channels, *w = weight + g * groups.weight;
      S* y = out + g * groups.channels;
      int64_t c = 0;
      for (; c + kTileVectors * kLanes <= groups.channels; c += kTileVectors * kLanes)
        pixel_tiles<T, S, kTileVectors>(x + c, w, y + c, run, p, end, kLanes);
      for (; c < groups.channels; c += kLanes) {
        const int lanes = static_cast<int>(groups.channels - c < kLanes ? groups.channels - c : kLanes);
        const int64_t q = whole_rows(x + c, w, y + c, run, p, end, lanes);
        pixel_tiles<T, S, 1>(x + c, w, y + c, run, q, end, lanes);
      }
    }
  }
}

// One tap along one axis: the row (or column) of the map and of the weights that position 0 reads. Both move on with the
// position, the map by the axis' `advance`, the weights by 1.
struct AxisTap {
  int64_t tap, map, weight;
};
static_assert(sizeof(AxisTap) == kAxisTapBytes, "plan.cpp sizes the lists by it");

// Rows (or columns) of the map that exist: those of the tensor, or more columns in a copy with zeros beside it.
struct Extent {
  int64_t begin, end;
};

// Result rows (or columns) first, first + step, ... of a task, and their taps in order of what they read of the map.
struct Axis {
  int64_t count, first, step, advance;
  Extent map;
  int64_t tap_count;
  const AxisTap* taps;
};

// Positions [begin, end) read inside the map with taps [first, last) and no others.
struct Segment {
  int64_t begin, end, first, last;
};

LGLD_INLINE Segment segment_at(const Axis& axis, int64_t position) {
  const auto taps_at = [&](int64_t q) LGLD_INLINE_LAMBDA {
    Segment s{q, q + 1, 0, axis.tap_count};
    while (s.first < s.last && axis.taps[s.first].map + q * axis.advance < axis.map.begin) ++s.first;
    while (s.first < s.last && axis.taps[s.last - 1].map + q * axis.advance >= axis.map.end) --s.last;
    return s;
  };
  Segment s = taps_at(position);
  for (; s.end < axis.count; ++s.end) {
    const Segment next = taps_at(s.end);
    if (next.first != s.first || next.last != s.last) break;
  }
  return s;
}

// Forward: row i of the result reads rows i * stride - pad + k * dilation of the map and row i of the weights.
inline Axis forward_axis(AxisTap* taps, int64_t first, int64_t count, int64_t kernel, int64_t stride, int64_t pad,
                         int64_t dilation, Extent map) {
  for (int64_t k = 0; k < kernel; ++k) taps[k] = {k, first * stride - pad + k * dilation, first};
  return {count, first, 1, stride, map, kernel, taps};
}

// grad_x: rows i of one phase (i mod stride) read row (i + pad - k * dilation) / stride of grad_y and of the weights where that
// is whole.
inline Axis grad_x_axis(AxisTap* taps, int64_t first, int64_t count, int64_t phase, int64_t kernel, int64_t stride, int64_t pad,
                        int64_t dilation, Extent map) {
  const int64_t start = first + phase;
  int64_t found = 0;
  for (int64_t k = kernel - 1; k >= 0; --k) {
    const int64_t at = start + pad - k * dilation;
    if (at % stride == 0) taps[found++] = {k, at / stride, at / stride};
  }
  return {ceil_div(count - phase, stride), start, stride, 1, map, found, taps};
}

// Every pixel of rows x columns, all channels of `groups`: rectangles of pixels that see the same taps, in runs along their
// longer side.
template <class T, class S>
void pixel_plane(const Axis& rows, const Axis& columns, int64_t kernel_w, const Strided<const T>& map,
                 const Strided<const T>& weight, const Strided<S>& out, const PixelGroups& groups, PixelTap* taps) {
  Segment r, c;
  for (int64_t j = 0; j < columns.count; j = c.end) {
    c = segment_at(columns, j);
    const int64_t row_taps = c.last - c.first;
    // Every row's, as row 0 would read them: rectangles further down take some of the list.
    PixelTap* next = taps;
    for (int64_t u = 0; u < rows.tap_count; ++u) {
      const AxisTap& a = rows.taps[u];
      const int64_t m = a.map * map.row + c.begin * columns.advance * map.column;
      const int64_t w = a.tap * kernel_w * weight.channel + a.weight * weight.row + c.begin * weight.column;
      for (const AxisTap* b = columns.taps + c.first; b < columns.taps + c.last; ++b, ++next) {
        next->map = m + b->map * map.column;
        next->weight = w + b->tap * weight.channel + b->weight * weight.column;
      }
    }
    for (int64_t i = 0; i < rows.count; i = r.end) {
      r = segment_at(rows, i);
      const PixelTap* const list = taps + r.first * row_taps;
      const int64_t count = (r.last - r.first) * row_taps;
      const PixelSteps down{rows.advance * map.row, weight.row, rows.step * out.row};
      const PixelSteps along{columns.advance * map.column, weight.column, columns.step * out.column};
      const int64_t height = r.end - r.begin, width = c.end - c.begin;
      const bool wide = width >= height;
      const PixelSteps& line = wide ? down : along;
      PixelRun run{wide ? along : down, wide ? width : height, list, count, 0, 0};
      if (wide && count > 0 && row_taps > 1 && taps[1].map - taps[0].map == along.map) {
        run.row_taps = row_taps;
        run.tap = taps[1].weight - taps[0].weight;
      }
      const T* x = map.data + r.begin * down.map;
      const T* w = weight.data + r.begin * down.weight;
      S* y = out.data + (rows.first + r.begin * rows.step) * out.row + (columns.first + c.begin * columns.step) * out.column;
      for (int64_t k = 0; k < (wide ? height : width); ++k) {
        if (groups.fetch && count > 0)
          for (int64_t q = 0; q < run.count; ++q)
            prefetch<false>(w + list[0].weight + line.weight + q * run.step.weight, groups.weight);
        pixel_run(x, w, y, run, groups);
        x += line.map, w += line.weight, y += line.out;
      }
    }
  }
}

// What a copy of rows [row, row + rows) and columns [col, col + cols) of planes consists of. Rows outside the planes are left
// out, and columns, too, unless `pads`, which has zeros in their place; those on the right of one row are those on the left of
// the next.
struct Region {
  int64_t top, height, left, existing;  // rows and columns of the planes
  int64_t before, after, width;         // columns of zeros on either side, and from one row to the next
  int64_t left0;                        // the planes' column that the copy begins with

  template <class S>
  Region(const Planes<S>& src, int64_t row, int64_t rows, int64_t col, int64_t cols, bool pads) {
    top = clamp(row, 0, src.height), height = clamp(row + rows, top, src.height) - top;
    left = clamp(col, 0, src.width), existing = clamp(col + cols, left, src.width) - left;
    // A region beside the planes is columns of zeros.
    before = !pads ? 0 : existing > 0 ? left - col : cols, after = pads ? cols - before - existing : 0;
    width = existing + (before > after ? before : after), left0 = pads ? col : left;
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
    if (height == 0 || before + after == 0) return;
    clear(plane, before * pixel);
    for (int64_t i = 1; i < height; ++i)
      clear(plane + (before + existing + (i - 1) * width) * pixel, (width - existing) * pixel);
    clear(plane + (before + existing + (height - 1) * width) * pixel, after * pixel);
  }

  // Whether rows follow each other with nothing between them, so that all are one.
  template <class S>
  bool joined(const Planes<S>& src) const {
    return existing == src.row;
  }

  // A copy whose channels are neighbours, addressed by the planes' own rows and columns.
  template <class T>
  Strided<const T> pixels(const T* copy, int64_t channels) const {
    return {copy - (top * width + left0) * channels, 0, 1, width * channels, channels};
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
  const S* from = src.data + r.top * src.row + r.left * src.column;
  const int64_t touched = r.before + r.existing + r.after;
  const bool surrounded = r.before + r.after > 0, joined = src.column == 1 && r.joined(src) && !surrounded;
  const auto copy_planes = [&]() LGLD_INLINE_LAMBDA {
    if (joined && src.channel == plane) {
      copy(dst, from, 1, channels * plane);
      return;
    }
    if constexpr (kMaskedWindows) {
      if (src.column == 1 && !joined && touched <= 2 * V::kLanes) {
        // A row's last vector may be of the next one's elements, too, which are written later.
        const StripLayout layout{r.height, 1, 0, r.width, r.width, plane};
        const auto run = touched <= V::kLanes ? pack_short_rows<1, T, S> : pack_short_rows<2, T, S>;
        run(dst, layout, r.before, from, r.existing, src.row, src.channel, r.height, channels);
        return;
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
  };
  copy_planes();
  return {dst - r.top * r.width - r.left0, 0, plane, r.width, 1};
}

// The same of planes whose columns are neighbours to pixels whose channels are.
template <class T, class S>
Strided<const T> transpose_region(const Planes<S>& src, const Region& r, int64_t channels, T* dst) {
  r.clear_surroundings(dst, channels);
  const bool joined = r.joined(src);
  const int64_t rows = joined ? r.height != 0 : r.height, pixels = joined ? r.height * r.existing : r.existing;
  const S* from = src.data + r.top * src.row + r.left;
  T* to = dst + r.before * channels;
  for (int64_t i = 0; i < rows; ++i, from += src.row, to += r.width * channels)
    transpose_to(from, src.channel, channels, pixels,
                 RowCursor<T>{to, channels, r.existing, (r.width - r.existing) * channels, r.existing});
  return r.pixels<T>(dst, channels);
}

}  // namespace
}  // namespace lgld
