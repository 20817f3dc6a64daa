// What all glue shares, whatever the device: naming a tensor in a message, where it must be, its memory format.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "csrc/error.h"
#include "kernels/dtype.h"

namespace lgld {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

std::string shape_text(const Ints& size);
std::string shape_of(const Tensor& t);
const char* dtype_of(const Tensor& t);

// What kernels call a tensor's dtype; nothing where no kernel takes it.
std::optional<Dtype> kernel_dtype(ScalarType type);

// Where the tensors of a call must be.
struct Place {
  bool cuda;
  int32_t index;  // of the GPU
};

// Place of a call's first GPU tensor: torch calls an op's GPU function where any of the tensors is on one.
Place cuda_place(std::initializer_list<const Tensor*> tensors);

// Raises where `t` is elsewhere, or has a dtype that kernels don't take.
void check_kind(const char* op, const char* name, const Tensor& t, Place place);

// Whether a map's channels are neighbours and its columns are not: results then have the memory format torch.channels_last,
// like those of torch's own operators. lgld_ops/ops/involution.py has the same rule for fake tensors.
bool is_channels_last(const Tensor& t);

// Strides of a new map [B, C, H, W] in the memory format of `like`.
Ints map_strides(const Tensor& like, const Ints& size);

// Size and strides of a new contiguous tensor like `t`; those of an empty one where there is none.
struct Geometry {
  Ints size, stride;
};
Geometry contiguous_like(const std::optional<Tensor>& t);

// What aoti_torch_empty_strided calls a dtype.
int32_t aoti_dtype(ScalarType dtype);

}  // namespace lgld
