#include "csrc/cuda/tensors.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

namespace lgld {

Tensor allocate(const char* op, Place place, const Ints& size, const Ints& stride, ScalarType dtype, const char* consequence) {
  AtenTensorHandle handle = nullptr;
  const AOTITorchError status =
      aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), stride.data(), aoti_dtype(dtype),
                               aoti_torch_device_type_cuda(), place.index, &handle);
  LGLD_CHECK(status == AOTI_TORCH_SUCCESS, op, ": a result of shape ", shape_text(size), " could not be allocated; ",
             consequence);
  return Tensor(handle);
}

Tensor allocate_map(const char* op, Place place, const Tensor& like, const Ints& size, const char* consequence) {
  return allocate(op, place, size, map_strides(like, size), like.scalar_type(), consequence);
}

Tensor dense_map(const Tensor& t, bool channels_last) {
  constexpr int kNchw[] = {3, 2, 1, 0}, kChannelsLast[] = {1, 3, 2, 0};  // the innermost first
  int64_t step = 1;
  bool dense = true;
  for (const int d : channels_last ? kChannelsLast : kNchw) {
    dense = dense && (t.size(d) == 1 || t.stride(d) == step);
    step *= t.size(d);
  }
  if (dense || t.numel() == 0) return t;
  using torch::headeronly::MemoryFormat;
  return torch::stable::contiguous(t, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

cudaStream_t current_stream(Place place) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(place.index, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace lgld
