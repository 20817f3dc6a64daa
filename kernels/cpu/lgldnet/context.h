// The dilated convolutions of GCE: a block of tiles is transformed, multiplied frequency by frequency and transformed back.
#pragma once
#include "stem.h"
#include "winograd.h"

namespace lgld {
namespace {

// A tile of 4 x 4 outputs of grid (i, j).
struct Tile {
  int64_t i, j, row, column;
};
LGLD_INLINE Tile tile_at(int64_t index, int64_t grids_j, int64_t rows, int64_t cols) {
  Tile t;
  t.column = index % cols, index /= cols;
  t.row = index % rows, index /= rows;
  t.j = index % grids_j, t.i = index / grids_j;
  return t;
}

// Zeros that no stage ever writes: the first row of the stem map's border.
LGLD_INLINE const float* zeros_of(const LgldnetCall& call) { return call.workspace + call.plan->stem_map; }

// Dilations 4 and 8: a 5x5 convolution on each of the 16 grids. The sum waits in the context map for dilation 2.
void wide_context(const LgldnetCall& call, int64_t task, float* scratch) {
  const LgldnetPlan& p = *call.plan;
  const int64_t columns = p.padded, channels = p.geometry.channels, vectors = columns / F::kLanes, pitch = p.wide_pitch;
  const int64_t grid_pitch = p.grid_columns * columns, context_pitch = p.context_columns * columns;
  const int64_t tiles = p.wide_grids_i * p.wide_grids_j * p.wide_rows * p.wide_cols;
  const int64_t begin = task * p.wide_block, count = smaller(tiles - begin, p.wide_block);
  const float* map = call.workspace + p.mixer_map;
  float* context = call.workspace + p.context_map;
  Window2d window;
  for (int k = 0; k < 8; ++k) window.row[k] = k * grid_pitch, window.column[k] = k * columns;
  for (int64_t k = 0; k < count; ++k) {
    const Tile t = tile_at(begin + k, p.wide_grids_j, p.wide_rows, p.wide_cols);
    winograd_input<3>(map + (t.i * 4 + t.j) * p.grid + t.row * 4 * grid_pitch + t.column * 4 * columns, window, vectors,
                      scratch + k * columns, pitch);
  }
  float* copy = scratch + 64 * pitch;
  for (int64_t f = 0; f < 64; ++f)
    gemm_in_place(scratch + f * pitch, count, columns, channels, call.packed + p.packed.wide + f * channels * columns, columns,
                  zeros_of(call), copy);
  for (int64_t k = 0; k < count; ++k) {
    const Tile t = tile_at(begin + k, p.wide_grids_j, p.wide_rows, p.wide_cols);
    float* out = context + (t.i * 4 + t.j) * p.context_grid + t.row * 4 * context_pitch + t.column * 4 * columns;
    for (int64_t v = 0; v < vectors; ++v) {
      alignas(64) float four[4][4][F::kLanes];
      winograd_output<3>(scratch + k * columns + v * F::kLanes, pitch, four);
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) F::load(four[i][j]).store(out + i * context_pitch + j * columns + v * F::kLanes);
    }
  }
}

// Dilation 2: a 3x3 convolution on each of the 4 grids (i mod 2, j mod 2), whose rows lie in two of the 16 grids by turns. Adds
// what wide_context left and the bias, activates, and keeps the channels' sums.
void near_context(const LgldnetCall& call, int64_t task, float* scratch) {
  const LgldnetPlan& p = *call.plan;
  const int64_t columns = p.padded, channels = p.geometry.channels, vectors = columns / F::kLanes, pitch = p.near_pitch;
  const int64_t grid_pitch = p.grid_columns * columns, context_pitch = p.context_columns * columns;
  const int64_t tiles = p.near_grids_i * p.near_grids_j * p.near_rows * p.near_cols;
  const int64_t begin = task * p.near_block, count = smaller(tiles - begin, p.near_block);
  for (int64_t k = 0; k < count; ++k) {
    const Tile t = tile_at(begin + k, p.near_grids_j, p.near_rows, p.near_cols);
    // Window row r is row 4 t.row - 1 + r of the grid: odd rows are those of grid i + 2 of the 16.
    Window2d window;
    for (int r = 0; r < 6; ++r) {
      const bool odd = r % 2 == 0;
      const int64_t at = odd ? 1 + r / 2 : 2 + r / 2;
      window.row[r] = (t.i + 2 * odd) * 4 * p.grid + at * grid_pitch;
      window.column[r] = (t.j + 2 * odd) * p.grid + at * columns;
    }
    winograd_input<2>(call.workspace + p.mixer_map + t.row * 2 * grid_pitch + t.column * 2 * columns, window, vectors,
                      scratch + k * columns, pitch);
  }
  float* copy = scratch + 36 * pitch;
  for (int64_t f = 0; f < 36; ++f)
    gemm_in_place(scratch + f * pitch, count, columns, channels, call.packed + p.packed.near + f * channels * columns, columns,
                  zeros_of(call), copy);
  float* sums = call.workspace + p.context_sums + task * columns;
  zero_floats(sums, columns);
  for (int64_t k = 0; k < count; ++k) {
    const Tile t = tile_at(begin + k, p.near_grids_j, p.near_rows, p.near_cols);
    const int64_t rows = smaller(4, (p.height - t.i + 1) / 2 - 4 * t.row);
    const int64_t cols = smaller(4, (p.width - t.j + 1) / 2 - 4 * t.column);
    float* map = call.workspace + p.context_map + t.row * 2 * context_pitch + t.column * 2 * columns;
    int64_t row_at[4], column_at[4];
    for (int r = 0; r < 4; ++r) {
      row_at[r] = (t.i + r % 2 * 2) * 4 * p.context_grid + r / 2 * context_pitch;
      column_at[r] = (t.j + r % 2 * 2) * p.context_grid + r / 2 * columns;
    }
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t c = v * F::kLanes;
      alignas(64) float four[4][4][F::kLanes];
      winograd_output<2>(scratch + k * columns + c, pitch, four);
      const F bias = F::load(call.packed + p.packed.context_bias + c);
      F sum = F::load(sums + c);
      for (int64_t i = 0; i < rows; ++i) {
        float* row = map + row_at[i] + c;
        F y[4];
        unroll<4>([&](auto j) LGLD_INLINE_LAMBDA { y[j] = silu(F::load(four[i][j]) + F::load(row + column_at[j]) + bias); });
        if (cols == 4) {
          unroll<4>([&](auto j) LGLD_INLINE_LAMBDA { y[j].store(row + column_at[j]); });
          sum = sum + ((y[0] + y[1]) + (y[2] + y[3]));
        } else {
          unroll<4>([&](auto j) LGLD_INLINE_LAMBDA {
            if (j.value < cols) y[j].store(row + column_at[j]), sum = sum + y[j];
          });
        }
      }
      sum.store(sums + c);
    }
  }
}

}  // namespace
}  // namespace lgld
