// Windows of any size, stride and dilation: which elements of the map and of the result belong together. Plain C++.
#pragma once
#include <cstdint>

#include "../../involution2d_shape.h"
#include "index.h"

namespace lgld::cuda {

// Row (column) of x under tap `tap` of output `at`; may lie outside x.
LGLD_INDEX int64_t input_of(int64_t at, int64_t tap, int64_t stride, int64_t pad, int64_t dilation) {
  return at * stride - pad + tap * dilation;
}

// Row (column) of the output whose tap `tap` reads row `at` of x; -1 where there is none.
LGLD_INDEX int64_t output_of(int64_t at, int64_t tap, int64_t stride, int64_t pad, int64_t dilation, int64_t outputs) {
  const int64_t scaled = at + pad - tap * dilation;
  if (scaled < 0) return -1;
  const int64_t i = stride == 1 ? scaled : quotient(scaled, stride);
  return i * stride == scaled && i < outputs ? i : -1;
}

// The general kernels' work: `pieces` threads, each with one pixel and `channels` channels of one group.
struct Pieces {
  int64_t height, width;  // of the pixels
  int64_t chunks;         // of a group's channels
  int64_t pieces;
  bool channels_first;  // neighbouring threads have neighbouring channels, not neighbouring pixels
};

constexpr Pieces plan_pieces(const Involution2dShape& s, int64_t height, int64_t width, int channels, bool channels_last) {
  const int64_t chunks = ceil_div(s.group_channels(), channels);
  return {height, width, chunks, s.batch * s.groups * chunks * height * width, channels_last};
}

struct Piece {
  int64_t batch, group, row, column;
  int64_t chunk;  // channels chunk, chunk + chunks, ... of the group: neighbouring threads read neighbouring channels
};

LGLD_INDEX Piece find_piece(const Pieces& p, int64_t groups, int64_t number) {
  Piece at{};
  const auto take = [&number](int64_t size) {
    const int64_t rest = quotient(number, size), found = number - rest * size;
    number = rest;
    return found;
  };
  if (p.channels_first) at.chunk = take(p.chunks), at.group = take(groups);
  at.column = take(p.width), at.row = take(p.height);
  if (!p.channels_first) at.chunk = take(p.chunks), at.group = take(groups);
  at.batch = number;
  return at;
}

}  // namespace lgld::cuda
