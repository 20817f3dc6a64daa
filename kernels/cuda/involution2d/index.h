// Tiles, halos and bounds of the K x K kernels (stride 1 and 2, dilation 1) on NCHW maps. Plain C++: the launchers plan with
// it, the kernels walk with it, and tests/native walks the same steps on the host.
//
// Both gradients' gathers and forward are one geometry. With K - 1 - pad in pad's place, and the weights of tap K*K-1-t taken
// where the map is read, grad_x is forward of grad_y:
//
//   forward, grad_x   out[c,i,j] = sum_{u,v} w[u,v at i,j] * map[c, i - origin_h + u, j - origin_w + v]
//   grad_weight       out[u,v,i,j] = sum_c other[c,i,j] * map[c, i - origin_h + u, j - origin_w + v]
//
// With stride 2, forward and grad_weight read the map at 2 i - origin_h + u. grad_x takes 2 x 2 pixels as one output. The
// padding is odd ("same" for K 3 and 7): row 2 m + 1 is reached by even taps u, from row m + (pad + 1 - u) / 2 of grad_y, and
// row 2 m by odd ones, from the same where the quotient is rounded down. So an output needs (K + 1) / 2 rows of grad_y, and
// each tap once: K*K weights, as with stride 1.
//
//   grad_x, stride 2  out[c, 2 m + (u + 1) % 2, ...] = sum_{u,v} w[u,v at i,j] * grad_y[c,i,j],   i = m - origin_h + taken(u)
//
// A block computes a tile of one group of one image: each thread `rows` x `pixels` outputs, whose K*K weights (or sums) each
// stay in registers while the block walks over channels, a plane a step. The plane's part under the tile, zeros around it
// included, is copied to shared memory some steps ahead, so that enough bytes are under way however few threads fit.
#pragma once
#include <cstdint>

#include "../../involution2d_shape.h"
#include "../common/index.h"

namespace lgld::cuda {

// One plane's part under a tile, in shared memory.
struct Staged {
  int32_t height, width;       // of the map
  int32_t origin_h, origin_w;  // stride * the tile's first output minus the first row and column that it needs
  int32_t vector;              // elements a copy moves: all of them in the map, or none
  int32_t align;               // what divides the number of the first staged column
  int32_t rows, vectors;       // copies are rows x vectors
  int32_t pitch;               // elements between rows
  int32_t bytes;               // of the plane in shared memory, a multiple of 16
};

struct Tiling {
  int32_t lanes, thread_rows, planes;  // threads of a block: lanes x thread_rows of a tile, `planes` such side by side
  int32_t rows, pixels;                // outputs of a thread: rows x neighbours in a row
  int32_t tiles_h, tiles_w;
  int32_t out_height, out_width;
  int32_t group_channels, slices, slice_channels;  // a block walks over a slice of its group's channels
  int64_t units;                                   // batch * groups * slices
  int64_t blocks;
  Staged map, other;    // other: grad_weight's grad_y, otherwise empty
  int32_t stage_bytes;  // of one step: `planes` maps, then `planes` others (or maps of the second kind)
};

// What a kernel compiled for some K and element type brings along.
struct TileKernel {
  int32_t window, stride, element_bytes, rows, pixels, most_threads, most_lanes, stages;
  int32_t maps = 1;  // staged planes of the same geometry
};

enum class TilePass { kForward, kGradX, kGradWeight };

// Which row (column) of an output's window tap `tap` reads. grad_x with stride 1 counts its taps from the last one.
LGLD_INDEX int32_t taken(int32_t tap, int32_t kernel, int32_t stride, TilePass pass) {
  return pass == TilePass::kGradX && stride == 2 ? (kernel - 1) / 2 - (tap + 1) / 2 : tap;
}

// Registers for rows * pixels * K * K weights or sums in float, near 100 (K 3: 72, so that two blocks of 256 fit). 16-bit maps
// are read as pairs. Wide tiles have little halo in a row, tall ones in a column: a larger window asks for a squarer tile.
// An H200 needs some 23 KB under way on each multiprocessor (4.3 TB/s for 0.7 us, over 132 of them): in float, K 3, three
// planes of 8.6 KB in each of two blocks are 52 KB; half as large elements and smaller tiles take more steps. A step of
// grad_weight is two planes, and copying both takes registers: fewer threads, which still are whole rows of 112 and 56.
constexpr TileKernel tile_kernel(int32_t kernel, int32_t element_bytes, TilePass pass, int32_t stride) {
  const bool reduces = pass == TilePass::kGradWeight, halves = pass == TilePass::kGradX && stride == 2;
  // With stride 2 a tile needs four times its outputs of the map, 7 KB (K 3) or 9 KB (K 7) of float for 6 x 64 of them, or for
  // grad_x a quarter of what it writes: fewer rows, so that a thread finds its copies once, or more steps.
  if (stride == 2)
    return {halves ? (kernel + 1) / 2 : kernel,
            halves ? 1 : 2,
            element_bytes,
            2,
            1,
            192,
            64,
            reduces || (!halves && element_bytes == 4) ? 4 : 6};
  const int32_t pixels = element_bytes == 2 ? 2 : 1, outputs = kernel == 3 ? 8 : kernel == 5 ? 4 : 2;
  const bool wide = kernel == 3 && element_bytes < (reduces ? 4 : 8);
  return {kernel,          1,
          element_bytes,   element_bytes == 8 ? outputs / 2 : outputs / pixels,
          pixels,          reduces ? (wide ? 224 : 168) : (wide ? 256 : 192),
          wide ? 128 : 64, reduces ? (wide || kernel > 3 ? 4 : 3) : (element_bytes == 2 || kernel > 3 ? 6 : 4)};
}

// Both gradients in one kernel: x and grad_y under the tile, 4 weights and 4 sums' worth of K*K registers. K is 3: with K 7 a
// thread has one output, for which it would read 98 elements from shared memory for 98 multiply-adds, and those reads would
// take longer (0.17 ms for [64, 64, 56, 56] in float) than the bytes of two kernels (0.12 ms).
constexpr TileKernel gradients_kernel_of(int32_t element_bytes) {
  const int32_t pixels = element_bytes == 2 ? 2 : 1;
  return {3, 1, element_bytes, 4 / pixels, pixels, 224, 128, element_bytes == 2 ? 6 : 4, 2};
}

constexpr bool has_gradients_kernel(const Involution2dShape& s, int32_t element_bytes) {
  return s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1 &&
         s.pad_h == 1 && s.pad_w == 1 && element_bytes < 8;
}

// Stride 2 for the networks that have it: K 3 and 7 with "same" padding, which is odd, not in double.
constexpr bool has_tile_kernel(const Involution2dShape& s, int32_t element_bytes) {
  const bool square = s.kernel_h == s.kernel_w && s.stride_h == s.stride_w && s.dilation_h == 1 && s.dilation_w == 1;
  if (!square) return false;
  if (s.stride_h == 2) return (s.kernel_h == 3 || s.kernel_h == 7) && s.pad_h % 2 == 1 && s.pad_w % 2 == 1 && element_bytes < 8;
  return (s.kernel_h == 3 || s.kernel_h == 5 || s.kernel_h == 7) && s.stride_h == 1;
}

// The sizes of a pass along one axis, in the map's elements and in outputs.
struct TileAxis {
  int64_t map, origin, outputs;
};

constexpr TileAxis tile_axis(TilePass pass, int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t pad) {
  if (pass != TilePass::kGradX) return {size, pad, out_size};
  if (stride == 1) return {out_size, kernel - 1 - pad, size};
  return {out_size, (kernel - 1) / 2 - (pad + 1) / 2, (size + 1) / 2};
}

constexpr int32_t kSharedBytes = 48 * 1024;  // what every GPU gives a block without asking
constexpr int32_t kLargestPlane = (int64_t{1} << 31) - 1;

// Bytes a copy may move: all rows of all planes start at multiples of them.
constexpr int32_t copy_bytes(uint64_t address, int64_t width, int32_t element_bytes) {
  const int64_t row = power_of_two_in(width * element_bytes, 16);
  const int64_t base = power_of_two_in(static_cast<int64_t>(address % 16), 16);
  return static_cast<int32_t>(row < base ? row : base);
}

// `columns` and `rows` of outputs with a window of `window` x `window` over a map of height x width.
constexpr Staged stage(int64_t height, int64_t width, int64_t origin_h, int64_t origin_w, int32_t columns, int32_t rows,
                       int32_t window, int32_t stride, int32_t pixels, int32_t element_bytes, int32_t bytes_a_copy) {
  Staged s{};
  s.height = static_cast<int32_t>(height), s.width = static_cast<int32_t>(width);
  s.origin_h = static_cast<int32_t>(origin_h), s.origin_w = static_cast<int32_t>(origin_w);
  s.vector = bytes_a_copy / element_bytes;
  // What a thread reads as one word stays one: its pixels, or with stride 2 the columns from one output to the next.
  const int32_t pair = pixels > stride ? pixels : stride;
  s.align = s.vector > pair ? s.vector : pair;
  s.rows = (rows - 1) * stride + window;
  s.vectors = static_cast<int32_t>(ceil_div(s.align - 1 + (columns - 1) * stride + window, s.vector));
  const int32_t word = 16 / element_bytes;
  s.pitch = static_cast<int32_t>(round_up(int64_t{s.vectors} * s.vector, word));
  s.bytes = s.rows * s.pitch * element_bytes;
  return s;
}

struct TilingRequest {
  int64_t batch, groups, group_channels;
  int64_t map_height, map_width, origin_h, origin_w;
  int64_t out_height, out_width;
  int32_t map_copy, other_copy;  // bytes a copy moves; other_copy 0: there is no other map
  int64_t most_slices;
  int64_t enough_blocks;  // channels are split where there would be fewer
};

// Whether the 32-bit offsets within a plane are enough.
constexpr bool fits(const TilingRequest& q) {
  constexpr int64_t side = int64_t{1} << 28;
  return q.map_height < side && q.map_width < side && q.out_height < side && q.out_width < side &&
         q.map_height * q.map_width <= kLargestPlane && q.out_height * q.out_width <= kLargestPlane && q.origin_h < side &&
         q.origin_w < side && -q.origin_h < side && -q.origin_w < side && q.group_channels < side;
}

constexpr Tiling plan_tiles(const TilingRequest& q, const TileKernel& k) {
  Tiling t{};
  t.rows = k.rows, t.pixels = k.pixels;
  t.out_height = static_cast<int32_t>(q.out_height), t.out_width = static_cast<int32_t>(q.out_width);
  t.group_channels = static_cast<int32_t>(q.group_channels);
  // As few tiles as the threads allow, then equally large ones: 112 columns are one tile of 112, not one of 128.
  const int64_t words = ceil_div(q.out_width, k.pixels);
  t.tiles_w = static_cast<int32_t>(ceil_div(words, k.most_lanes));
  t.lanes = static_cast<int32_t>(ceil_div(words, t.tiles_w));
  int64_t thread_rows = min64(max64(k.most_threads / t.lanes, 1), ceil_div(q.out_height, k.rows));
  for (;;) {
    t.tiles_h = static_cast<int32_t>(ceil_div(q.out_height, thread_rows * k.rows));
    t.thread_rows = static_cast<int32_t>(ceil_div(q.out_height, int64_t{t.tiles_h} * k.rows));
    const int32_t columns = t.lanes * k.pixels, rows = t.thread_rows * k.rows;
    t.map = stage(q.map_height, q.map_width, q.origin_h, q.origin_w, columns, rows, k.window, k.stride, k.pixels,
                  k.element_bytes, q.map_copy);
    t.other = q.other_copy != 0
                  ? stage(q.out_height, q.out_width, 0, 0, columns, rows, 1, 1, k.pixels, k.element_bytes, q.other_copy)
                  : Staged{};
    t.stage_bytes = k.maps * t.map.bytes + t.other.bytes;
    if (t.stage_bytes * k.stages <= kSharedBytes || thread_rows == 1) break;
    thread_rows = t.thread_rows - 1 > 0 ? t.thread_rows - 1 : 1;
  }
  // Small maps: several units side by side, so that a block has warps to switch between.
  const int64_t tiles = int64_t{t.tiles_h} * t.tiles_w, maps = q.batch * q.groups;
  const int64_t wanted = maps * tiles == 0 ? 1 : ceil_div(q.enough_blocks, maps * tiles);
  const int64_t slices = max64(1, min64(min64(wanted, q.most_slices), q.group_channels));
  t.slice_channels = static_cast<int32_t>(ceil_div(q.group_channels, slices));
  t.slices = static_cast<int32_t>(ceil_div(q.group_channels, t.slice_channels));
  t.units = maps * t.slices;
  t.planes = 1;
  if (tiles == 1) {
    const int64_t by_threads = k.most_threads / (t.lanes * t.thread_rows);
    const int64_t by_memory = kSharedBytes / (int64_t{t.stage_bytes} * k.stages);
    const int64_t by_work = ceil_div(t.units, q.enough_blocks);
    t.planes = static_cast<int32_t>(max64(1, min64(min64(by_threads, by_memory), by_work)));
  }
  t.stage_bytes *= t.planes;
  t.blocks = ceil_div(t.units, t.planes) * tiles;
  return t;
}

// Where a thread works.
struct Spot {
  bool real;                      // false: the last block's planes behind the last unit
  int64_t map;                    // image * groups + group
  int32_t slice;                  // of the group's channels
  int32_t channels;               // how many of them
  int32_t tile_row, tile_column;  // the tile's first output
  int32_t row, column;            // the thread's first output; may lie outside the result
};

// Blocks that share weights, those of the slices, are neighbours.
LGLD_INDEX Spot find_spot(const Tiling& t, int64_t block, int32_t thread) {
  const int32_t tile_threads = t.lanes * t.thread_rows;
  const int32_t plane = thread / tile_threads, in_tile = thread - plane * tile_threads;
  const int32_t thread_row = in_tile / t.lanes, lane = in_tile - thread_row * t.lanes;
  const int64_t tiles = int64_t{t.tiles_h} * t.tiles_w;
  int64_t unit = block * t.planes + plane, tile = 0;
  Spot s{};
  if (tiles > 1) {  // then planes is 1
    const int64_t pair = quotient(block, t.slices);
    const int64_t map = quotient(pair, tiles);
    tile = pair - map * tiles;
    unit = map * t.slices + (block - pair * t.slices);
  }
  s.real = unit < t.units;
  s.map = quotient(unit, t.slices);
  s.slice = static_cast<int32_t>(unit - s.map * t.slices);
  const int32_t left = t.group_channels - s.slice * t.slice_channels;
  s.channels = !s.real ? 0 : left < t.slice_channels ? left : t.slice_channels;
  const int32_t tile_h = static_cast<int32_t>(quotient(tile, t.tiles_w));
  s.tile_row = tile_h * t.thread_rows * t.rows;
  s.tile_column = (static_cast<int32_t>(tile) - tile_h * t.tiles_w) * t.lanes * t.pixels;
  s.row = s.tile_row + thread_row * t.rows;
  s.column = s.tile_column + lane * t.pixels;
  return s;
}

// The first staged column; a multiple of s.align. `stride` here and below: of the map's rows and columns from one output to the
// next, which kernels know when they are compiled.
LGLD_INDEX int32_t staged_column(const Staged& s, int32_t stride, int32_t tile_column) {
  return static_cast<int32_t>(floor_to(int64_t{tile_column} * stride - s.origin_w, s.align));
}

// Element of the staged plane under the window of the output at `row`, `column` of the map; odd only where origin_w is, since
// tiles and alignments are multiples of `pixels`.
LGLD_INDEX int32_t staged_at(const Staged& s, int32_t stride, int32_t tile_row, int32_t tile_column, int32_t row,
                             int32_t column) {
  return (row - tile_row) * stride * s.pitch + column * stride - s.origin_w - staged_column(s, stride, tile_column);
}

// One copy of a plane, in elements from the start of the staged and of the whole plane.
struct Copy {
  int32_t global;  // negative: zeros
  int32_t shared;
};

// Copy number n of s.rows * s.vectors.
LGLD_INDEX Copy find_copy(const Staged& s, int32_t stride, int32_t tile_row, int32_t tile_column, int32_t n) {
  const int32_t row = n / s.vectors, vector = n - row * s.vectors;
  const int32_t i = tile_row * stride - s.origin_h + row, j = staged_column(s, stride, tile_column) + vector * s.vector;
  const bool real = i >= 0 && i < s.height && j >= 0 && j < s.width;
  return {real ? i * s.width + j : -1, row * s.pitch + vector * s.vector};
}

}  // namespace lgld::cuda
