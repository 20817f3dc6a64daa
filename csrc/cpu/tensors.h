// What the CPU ops' glue shares: allocating a result, seeing a tensor as kernels do.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstdlib>

#include "csrc/tensors.h"
#include "kernels/cpu/strided.h"

namespace lgld {

constexpr Place kOnCpu{false, 0};

// An uninitialised tensor of one of the four floating dtypes; `consequence` says in the message which arguments its size
// follows from.
Tensor allocate(const char* op, const Ints& size, const Ints& stride, ScalarType dtype, const char* consequence);

// A map [B, C, H, W] in dtype and memory format of `like`.
Tensor allocate_map(const char* op, const Tensor& like, const Ints& size, const char* consequence);

template <class T>
Strided<const T> read(const Tensor& t) {
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

template <class T>
Strided<T> write(const Tensor& t) {
  return {static_cast<T*>(t.mutable_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

}  // namespace lgld
