// The kernel whose vectors are channels, as the passes of all dtypes call it: 16-bit maps and weights are widened beforehand,
// and results rounded as they are stored. So it is compiled once for float and once for double.
#pragma once
#include "involution2d.h"

namespace lgld {

// 16 registers: 4 x 2 accumulators; 32 registers: 4 x 4. Every multiply-add loads a vector of the map; a weight is loaded once
// for all vectors of a tile.
constexpr int kTilePixels = 4;
constexpr int kTileVectors = kVectorRegisters >= 32 ? 4 : 2;

// What a pixel adds up: map and weight elements this far from the tile's first pixel's.
struct PixelTap {
  int64_t map, weight;
};
static_assert(sizeof(PixelTap) == kPixelTapBytes, "plan.cpp sizes the list of taps by it");

// One tap along one axis: the row (or column) of the map and of the weights that position 0 reads. Both move on with the
// position, the map by the axis' `advance`, the weights by 1.
struct AxisTap {
  int64_t tap, map, weight;
};
static_assert(sizeof(AxisTap) == kAxisTapBytes, "plan.cpp sizes the lists by it");

// Rows (or columns) of the map that can be read: those of the tensor, or any in a copy with zeros around it.
struct Extent {
  int64_t begin, end;
};
constexpr Extent kAnywhere{-(int64_t{1} << 40), int64_t{1} << 40};

// Result rows (or columns) first, first + step, ... of a task, and their taps in order of what they read of the map.
struct Axis {
  int64_t count, first, step, advance;
  Extent map;
  int64_t tap_count;
  const AxisTap* taps;
};

// Groups of channels that a run computes, and elements of weight from one's to the next's.
struct PixelGroups {
  int64_t count, channels, weight;
  bool fetch;  // the next line's weights while one is computed
};

// Where results go: to pixels whose channels are neighbours, from the first of the tensor's on.
struct PixelResult {
  void* data;
  int64_t row, column;  // strides in elements
  Dtype dtype;
};

// Every pixel of rows x columns, all channels of `groups`. `taps` has room for all of a window's.
template <class T>
using PixelPlane = void (*)(const Axis& rows, const Axis& columns, int64_t kernel_w, const Strided<const T>& map,
                            const Strided<const T>& weight, const PixelResult& out, const PixelGroups& groups, PixelTap* taps);

extern const PixelPlane<float> LGLD_COMPILED(pixels_f32);
extern const PixelPlane<double> LGLD_COMPILED(pixels_f64);

}  // namespace lgld
