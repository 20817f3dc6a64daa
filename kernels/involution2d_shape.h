// The sizes of one involution, for kernels of every kind. Plain data: it is included where instruction sets are compiled
// separately (nothing may be shared as an inline function) and in device code (constexpr is callable there).
#pragma once
#include <cstdint>

namespace lgld {

struct Involution2dShape {
  int64_t batch, channels, groups;
  int64_t height, width;          // of x and grad_x
  int64_t out_height, out_width;  // of y, weight and their gradients
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;

  __attribute__((always_inline)) constexpr int64_t group_channels() const { return channels / groups; }
  __attribute__((always_inline)) constexpr int64_t taps() const { return kernel_h * kernel_w; }
};

}  // namespace lgld
