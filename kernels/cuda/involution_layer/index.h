// How a fused involution layer is shared out: plain C++, which tests compile for the host.
#pragma once
#include "../common/index.h"

namespace lgld::cuda {

// A block has a tile of 4 rows of 32 columns of one image, a thread one of its pixels; neighbouring threads, columns.
struct LayerTiles {
  static constexpr int kColumns = 32, kRows = 4, kThreads = kColumns * kRows;

  int64_t across, down, units;

  struct Pixel {
    int64_t image, row, column;
  };

  // Beyond the image's edges where the image is no multiple of the tile.
  constexpr Pixel at(int64_t unit, int thread) const {
    const int64_t strip = unit / across;
    return {strip / down, strip % down * kRows + thread / kColumns, unit % across * kColumns + thread % kColumns};
  }
};

constexpr LayerTiles layer_tiles(int64_t batch, int64_t height, int64_t width) {
  LayerTiles t{ceil_div(width, LayerTiles::kColumns), ceil_div(height, LayerTiles::kRows), 0};
  t.units = batch * t.across * t.down;
  return t;
}

}  // namespace lgld::cuda
