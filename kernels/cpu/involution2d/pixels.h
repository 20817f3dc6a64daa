// Involution where channels are neighbours in memory, or in a copy: vectors of channels, weights broadcast. Taps outside the
// map are left out where it is not copied with zeros there.
#pragma once
#include "pack.h"
#include "pixel_plane.h"

namespace lgld {
namespace {

// Distances from one pixel of a run to the next: elements of map and weight, bytes of the result.
struct PixelSteps {
  int64_t map, weight, out;
};

// Results of any dtype that T is rounded to: `run` is called with an element of it.
template <class T, class Run>
LGLD_INLINE void with_stored(Dtype dtype, const Run& run) {
  if constexpr (std::is_same_v<T, double>) {
    run(double{});
  } else {
    switch (dtype) {
      case Dtype::kFloat16: return run(Float16{});
      case Dtype::kBFloat16: return run(BFloat16{});
      default: return run(float{});
    }
  }
}

template <class T>
LGLD_INLINE int64_t stored_bytes(Dtype dtype) {
  return std::is_same_v<T, float> && dtype != Dtype::kFloat32 ? 2 : sizeof(T);
}

// kPixels pixels of a run, kVectors vectors of channels, `last` lanes in the last of them.
template <class T, int kPixels, int kVectors>
__attribute__((noinline)) void pixel_tile(const T* map, const T* weight, char* out, Dtype dtype, const PixelSteps& step,
                                          const PixelTap* taps, int64_t count, int last) {
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
    with_stored<T>(dtype, [&](auto element) LGLD_INLINE_LAMBDA {
      unroll<kPixels>([&](auto p) LGLD_INLINE_LAMBDA {
        auto* const pixel = reinterpret_cast<decltype(element)*>(out + p * step.out);
        unroll<kVectors>([&](auto v) LGLD_INLINE_LAMBDA {
          if (partial && v.value == kVectors - 1) {
            acc[p][v].store_partial(pixel + v * V::kLanes, last);
          } else {
            acc[p][v].store(pixel + v * V::kLanes);
          }
        });
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
template <class T, int K, int P, Neighbours kNeighbours>
__attribute__((noinline)) void row_tile(const T* map, const T* weight, char* out, Dtype dtype, const PixelSteps& step,
                                        int64_t tap, const PixelTap* taps, int64_t count, int lanes) {
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
    with_stored<T>(dtype, [&](auto element) LGLD_INLINE_LAMBDA {
      unroll<P>([&](auto p) LGLD_INLINE_LAMBDA {
        auto* const pixel = reinterpret_cast<decltype(element)*>(out + p * step.out);
        if (partial) {
          acc[p].store_partial(pixel, lanes);
        } else {
          acc[p].store(pixel);
        }
      });
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
  Dtype dtype;  // of the results
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
template <class T, int kVectors>
void pixel_tiles(const T* map, const T* weight, char* out, const PixelRun& run, int64_t p, int64_t end, int last) {
  const PixelSteps& step = run.step;
  constexpr int kLeast = kVectors == 1 ? 1 : kTilePixels / 2 + 1;
  const auto tiles_of = [&](auto pixels) LGLD_INLINE_LAMBDA {
    p = cover<pixels.value>(p, end, kLeast, [&](int64_t q) LGLD_INLINE_LAMBDA {
      pixel_tile<T, pixels.value, kVectors>(map + q * step.map, weight + q * step.weight, out + q * step.out, run.dtype, step,
                                            run.taps, run.tap_count, last);
    });
  };
  tiles_of(Int<kTilePixels>{});
  tiles_of(Int<1>{});
}

// The tile for rows of k taps, if there is one.
template <class T, int P, Neighbours kNeighbours>
auto row_tile_of(int64_t k) {
  return k == 3   ? row_tile<T, 3, P, kNeighbours>
         : k == 4 ? row_tile<T, 4, P, kNeighbours>
         : k == 5 ? row_tile<T, 5, P, kNeighbours>
         : k == 7 ? row_tile<T, 7, P, kNeighbours>
                  : nullptr;
}

// Pixels [p, end) of a run, P at a time, where its taps are rows of 3, 4, 5 or 7; returns the first pixel left.
template <class T, int P>
int64_t row_tiles(const T* map, const T* weight, char* out, const PixelRun& run, int64_t p, int64_t end, int lanes) {
  const int64_t k = run.row_taps;
  const auto tile = run.tap == 1           ? row_tile_of<T, P, Neighbours::kTaps>(k)
                    : run.step.weight == 1 ? row_tile_of<T, P, Neighbours::kPixels>(k)
                                           : row_tile_of<T, P, Neighbours::kNone>(k);
  if (tile == nullptr) return p;
  return cover<P>(p, end, 1, [&](int64_t q) LGLD_INLINE_LAMBDA {
    tile(map + q * run.step.map, weight + q * run.step.weight, out + q * run.step.out, run.dtype, run.step, run.tap, run.taps,
         run.tap_count / k, lanes);
  });
}

// All groups of a few pixels before the next pixels: what is contiguous in memory is read in one go.
template <class T>
void pixel_run(const T* map, const T* weight, char* out, const PixelRun& run, const PixelGroups& groups) {
  constexpr int kLanes = Vec<T>::kLanes;
  const int64_t bytes = stored_bytes<T>(run.dtype);
  const int64_t pixels = groups.channels < kTileVectors * kLanes ? row_pixels(run.count) : 2 * kTilePixels;
  const auto whole_rows = pixels == 7 ? row_tiles<T, 7> : row_tiles<T, 8>;
  for (int64_t p = 0; p < run.count; p += pixels) {
    const int64_t end = p + pixels < run.count ? p + pixels : run.count;
    for (int64_t g = 0; g < groups.count; ++g) {
      const T *x = map + g * groups.channels, *w = weight + g * groups.weight;
      char* const y = out + g * groups.channels * bytes;
      int64_t c = 0;
      for (; c + kTileVectors * kLanes <= groups.channels; c += kTileVectors * kLanes)
        pixel_tiles<T, kTileVectors>(x + c, w, y + c * bytes, run, p, end, kLanes);
      for (; c < groups.channels; c += kLanes) {
        const int lanes = static_cast<int>(groups.channels - c < kLanes ? groups.channels - c : kLanes);
        const int64_t q = whole_rows(x + c, w, y + c * bytes, run, p, end, lanes);
        pixel_tiles<T, 1>(x + c, w, y + c * bytes, run, q, end, lanes);
      }
    }
  }
}

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

// Every pixel of rows x columns, all channels of `groups`: rectangles of pixels that see the same taps, in runs along their
// longer side.
template <class T>
void pixel_plane(const Axis& rows, const Axis& columns, int64_t kernel_w, const Strided<const T>& map,
                 const Strided<const T>& weight, const PixelResult& out, const PixelGroups& groups, PixelTap* taps) {
  const int64_t bytes = stored_bytes<T>(out.dtype);
  const int64_t out_row = out.row * bytes, out_column = out.column * bytes;
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
      const PixelSteps down{rows.advance * map.row, weight.row, rows.step * out_row};
      const PixelSteps along{columns.advance * map.column, weight.column, columns.step * out_column};
      const int64_t height = r.end - r.begin, width = c.end - c.begin;
      const bool wide = width >= height;
      const PixelSteps& line = wide ? down : along;
      PixelRun run{wide ? along : down, wide ? width : height, list, count, 0, 0, out.dtype};
      if (wide && count > 0 && row_taps > 1 && taps[1].map - taps[0].map == along.map) {
        run.row_taps = row_taps;
        run.tap = taps[1].weight - taps[0].weight;
      }
      const T* x = map.data + r.begin * down.map;
      const T* w = weight.data + r.begin * down.weight;
      char* y = static_cast<char*>(out.data) + (rows.first + r.begin * rows.step) * out_row +
                (columns.first + c.begin * columns.step) * out_column;
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

}  // namespace
}  // namespace lgld
