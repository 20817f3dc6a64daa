// Which taps the rows and the columns of a task's results have.
#pragma once
#include "pixel_plane.h"

namespace lgld {
namespace {

// Forward: row i of the result reads rows i * stride - pad + k * dilation of the map and row i of the weights.
inline Axis forward_axis(AxisTap* taps, int64_t first, int64_t count, int64_t kernel, int64_t stride, int64_t pad,
                         int64_t dilation, Extent map) {
  for (int64_t k = 0; k < kernel; ++k) taps[k] = {k, first * stride - pad + k * dilation, first};
  return {count, first, 1, stride, map, kernel, taps};
}

// grad_x: rows i of one phase (i mod stride) read row (i + pad - k * dilation) / stride of grad_y and of the weights where that
// is whole.
inline Axis grad_x_axis(AxisTap* taps, int64_t first, int64_t count, int64_t phase, int64_t kernel, int64_t stride, int64_t pad,
                        int64_t dilation, Extent map) {
  const int64_t start = first + phase;
  int64_t found = 0;
  for (int64_t k = kernel - 1; k >= 0; --k) {
    const int64_t at = start + pad - k * dilation;
    if (at % stride == 0) taps[found++] = {k, at / stride, at / stride};
  }
  return {ceil_div(count - phase, stride), start, stride, 1, map, found, taps};
}

}  // namespace
}  // namespace lgld
