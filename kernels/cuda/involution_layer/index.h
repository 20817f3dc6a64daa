// How a fused involution layer is shared out: plain C++, which tests compile for the host.
#pragma once
#include "../common/index.h"

namespace lgld::cuda {

// A block has a tile of one image, a thread one of its pixels; neighbouring threads, columns.
template <int kTileColumns, int kTileRows>
struct PixelTiles {
  static constexpr int kColumns = kTileColumns, kRows = kTileRows, kThreads = kColumns * kRows;

  int64_t across, down, units;

  constexpr PixelTiles(int64_t batch, int64_t height, int64_t width)
      : across(ceil_div(width, kColumns)), down(ceil_div(height, kRows)), units(batch * across * down) {}

  struct Pixel {
    int64_t image, row, column;
  };

  // Beyond the image's edges where the image is no multiple of the tile.
  constexpr Pixel at(int64_t unit, int thread) const {
    const int64_t strip = unit / across;
    return {strip / down, strip % down * kRows + thread / kColumns, unit % across * kColumns + thread % kColumns};
  }
};

using LayerTiles = PixelTiles<32, 4>;

// Backward makes the hidden values of the pixels around its tile as well: squarer tiles have fewer of those.
using BackwardTiles = PixelTiles<16, 8>;

// A tile of backward with the K / 2 pixels around it, whose kernels reach into the tile, numbered row by row: for K 3 1.4 times
// the tile's pixels, for K 7 2.4 times.
template <int K>
struct Halo {
  static constexpr int kReach = K / 2;
  static constexpr int kColumns = BackwardTiles::kColumns + 2 * kReach, kRows = BackwardTiles::kRows + 2 * kReach;
  static constexpr int kPixels = kColumns * kRows;
  static constexpr int kRounds = (kPixels + BackwardTiles::kThreads - 1) / BackwardTiles::kThreads;  // pixels of a thread

  // Where pixel `number` lies, from the tile's first pixel.
  static constexpr int row(int number) { return number / kColumns - kReach; }
  static constexpr int column(int number) { return number % kColumns - kReach; }
  // The number of a thread's own pixel, and of the one whose tap `tap` reads that one.
  static constexpr int own(int thread) {
    return (thread / BackwardTiles::kColumns + kReach) * kColumns + thread % BackwardTiles::kColumns + kReach;
  }
  static constexpr int reading(int thread, int tap) { return own(thread) - (tap / K - kReach) * kColumns - (tap % K - kReach); }
};

// Backward's sums over pixels: a task adds up the tiles task, task + tasks, ... in a record of device memory, which a second
// kernel adds up over the tasks. Sizes alone decide how many there are, so that results don't depend on the GPU.
struct BackwardPlan {
  int64_t units, tasks;
  int64_t hidden_bias, span_weight, span_bias, record;  // where they start in a record, after hidden_weight; its length
  int64_t scratch;                                      // of a task, for what of a tile's pixels doesn't fit registers
};

// Blocks for large GPUs (132 multiprocessors with 4 each) twice, as long as the records stay below 128 MB of floats.
constexpr int64_t kMostTasks = 1024, kMostPartial = int64_t{1} << 25;

constexpr BackwardPlan plan_backward(int64_t batch, int64_t channels, int64_t hidden, int64_t height, int64_t width,
                                     int64_t taps, bool few) {
  BackwardPlan p{};
  p.units = BackwardTiles(batch, height, width).units;
  p.hidden_bias = hidden * channels, p.span_weight = p.hidden_bias + hidden, p.span_bias = p.span_weight + taps * hidden;
  p.record = p.span_bias + taps;
  p.scratch = few ? 0 : (hidden + 2 * taps) * BackwardTiles::kThreads;
  p.tasks = min64(min64(p.units, kMostTasks), max64(1, kMostPartial / (p.record + p.scratch)));
  return p;
}

}  // namespace lgld::cuda
