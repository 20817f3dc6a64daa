// The sizes of one Fourier feature mixer, for kernels of every kind. Plain data: it is included where instruction sets are
// compiled separately (nothing may be shared as an inline function) and in device code (constexpr is callable there).
#pragma once
#include <cstdint>

namespace lgld {

struct FfmShape {
  int64_t batch, inputs, channels;
  int64_t height, width, stride;  // of the image; of the grid of pixels that are read
  int64_t out_height, out_width;  // ceil(height / stride), ceil(width / stride)

  __attribute__((always_inline)) constexpr int64_t features() const { return inputs + 4; }
  __attribute__((always_inline)) constexpr int64_t pairs() const { return inputs * (inputs + 1) / 2; }
  __attribute__((always_inline)) constexpr int64_t positions() const { return batch * out_height * out_width; }
};

}  // namespace lgld
