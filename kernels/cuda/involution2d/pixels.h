// Work of the K x K kernels (stride and dilation 1) on maps whose channels are neighbours. Plain C++.
//
// forward, grad_x: a thread has a vector of channels (16 bytes) of some neighbouring outputs of some rows; the threads of a
// warp share the weights of a pixel. grad_weight: some lanes share neighbouring outputs of a group, each with its vectors of
// the group's channels; their sums meet at the end.
#pragma once
#include <cstdint>

#include "../../involution2d_shape.h"
#include "window.h"

namespace lgld::cuda {

constexpr int32_t kPixelThreads = 192;  // two blocks a multiprocessor leave a thread 168 registers
constexpr int32_t kPixelRows = 4;       // of outputs of a thread of forward and grad_x

// Neighbouring outputs in such a row, so that sums, weights and window fit into registers.
constexpr int32_t pixel_columns(int32_t kernel, int32_t element_bytes) {
  return (kernel == 7 && element_bytes == 2) || (kernel == 5 && element_bytes == 8) ? 3 : 4;
}

struct PixelTiling {
  int64_t vectors;                         // of all channels
  int32_t lanes, thread_columns, columns;  // of a block; outputs of a thread in a row
  int64_t chunks, tiles_w, tiles_h;
  int64_t blocks;
};

constexpr PixelTiling plan_pixels(int64_t batch, int64_t channels, int64_t height, int64_t width, int32_t kernel,
                                  int32_t element_bytes) {
  PixelTiling t{};
  t.columns = pixel_columns(kernel, element_bytes);
  t.vectors = channels * element_bytes / 16;
  t.chunks = ceil_div(t.vectors, 64);
  t.lanes = static_cast<int32_t>(ceil_div(t.vectors, t.chunks));
  const int64_t columns = ceil_div(width, t.columns);
  t.tiles_w = ceil_div(columns, min64(columns, kPixelThreads / t.lanes));
  t.thread_columns = static_cast<int32_t>(ceil_div(columns, t.tiles_w));
  t.tiles_h = ceil_div(height, kPixelRows);
  t.blocks = batch * t.tiles_h * t.tiles_w * t.chunks;
  return t;
}

struct PixelSpot {
  int64_t batch, vector, row, column;  // the thread's vector of channels and first output; may lie outside the result
};

// Blocks that share weights, those of the chunks, are neighbours.
LGLD_INDEX PixelSpot find_pixels(const PixelTiling& t, int64_t block, int32_t thread) {
  const int32_t thread_column = thread / t.lanes, lane = thread - thread_column * t.lanes;
  const auto take = [&block](int64_t size) {
    const int64_t rest = quotient(block, size), found = block - rest * size;
    block = rest;
    return found;
  };
  PixelSpot s{};
  s.vector = take(t.chunks) * t.lanes + lane;
  s.column = (take(t.tiles_w) * t.thread_columns + thread_column) * t.columns;
  s.row = take(t.tiles_h) * kPixelRows;
  s.batch = block;
  return s;
}

}  // namespace lgld::cuda
