// What the GPU ops' glue shares: allocating results on the GPU of the arguments, the current stream, errors of launches.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include "csrc/tensors.h"

namespace lgld {

// An uninitialised tensor on `place`; `consequence` says in the message which arguments its size follows from.
Tensor allocate(const char* op, Place place, const Ints& size, const Ints& stride, ScalarType dtype, const char* consequence);

// A map [B, C, H, W] in dtype and memory format of `like`.
Tensor allocate_map(const char* op, Place place, const Tensor& like, const Ints& size, const char* consequence);

// `t` itself where its elements stand without gaps in NCHW order (in channels_last order); a copy in that order otherwise.
Tensor dense_map(const Tensor& t, bool channels_last);

// The stream that torch works on, on the GPU `place`.
cudaStream_t current_stream(Place place);

// Makes the arguments' GPU the current one for its lifetime.
using OnDevice = torch::stable::accelerator::DeviceGuard;

}  // namespace lgld
