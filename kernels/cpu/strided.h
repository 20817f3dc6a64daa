// How kernels see a caller's tensor.
#pragma once
#include <cstdint>

namespace lgld {

// An NCHW tensor: strides in elements.
template <class T>
struct Strided {
  T* data;
  int64_t batch, channel, row, column;
};

}  // namespace lgld
