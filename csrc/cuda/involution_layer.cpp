// torch.ops.lgld_ops.involution_layer on NVIDIA GPUs. Formula: kernels/cuda/involution_layer/involution_layer.h.
#include "kernels/cuda/involution_layer/involution_layer.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "csrc/cuda/tensors.h"

namespace lgld {
namespace {

constexpr const char* kOp = "involution_layer";

// The same rules, in the same words, as lgld_ops/ops/layer.py.
void check_parameter(const char* name, const Tensor& t, const Tensor& x, Place place, const Ints& size, const char* meaning) {
  check_kind(kOp, name, t, place);
  LGLD_CHECK(t.scalar_type() == x.scalar_type(), kOp, ": ", name, " must have the dtype of x, ", dtype_of(x), ", but is ",
             dtype_of(t));
  LGLD_CHECK(shape_of(t) == shape_text(size), kOp, ": ", name, " must have shape ", meaning, " = ", shape_text(size),
             ", but has ", shape_of(t));
}

Tensor involution_layer(const Tensor& x, const Tensor& hidden_weight, const Tensor& hidden_bias, const Tensor& span_weight,
                        const Tensor& span_bias, int64_t kernel_size) {
  const Place place = cuda_place({&x, &hidden_weight, &hidden_bias, &span_weight, &span_bias});
  LGLD_CHECK(kernel_size == 3 || kernel_size == 5 || kernel_size == 7, kOp, ": kernel_size must be 3, 5 or 7, but is ",
             kernel_size);
  check_kind(kOp, "x", x, place);
  LGLD_CHECK(x.dim() == 4, kOp, ": x must have 4 dimensions, but has shape ", shape_of(x));
  LGLD_CHECK(x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1, kOp,
             ": x must have at least one channel, row and column, but its size is ", shape_of(x));
  LGLD_CHECK(hidden_weight.dim() == 2, kOp, ": hidden_weight must have 2 dimensions, but has shape ", shape_of(hidden_weight));
  const int64_t hidden = hidden_weight.size(0), taps = kernel_size * kernel_size;
  LGLD_CHECK(hidden >= 1, kOp, ": hidden_weight must have at least one row, but has none");
  check_parameter("hidden_weight", hidden_weight, x, place, {hidden, x.size(1)}, "[D, C]");
  check_parameter("hidden_bias", hidden_bias, x, place, {hidden}, "[D]");
  check_parameter("span_weight", span_weight, x, place, {taps, hidden}, "[K*K, D]");
  check_parameter("span_bias", span_bias, x, place, {taps}, "[K*K]");
  const OnDevice guard(place.index);
  const Tensor y = allocate_map(kOp, place, x, {x.size(0), x.size(1), x.size(2), x.size(3)}, "it has the size of x");
  if (x.size(0) == 0) return y;
  using torch::stable::contiguous;
  const Tensor parameters[4] = {contiguous(hidden_weight), contiguous(hidden_bias), contiguous(span_weight),
                                contiguous(span_bias)};
  const cuda::InvolutionLayerParams p{x.size(0),
                                      x.size(1),
                                      hidden,
                                      x.size(2),
                                      x.size(3),
                                      kernel_size,
                                      *kernel_dtype(x.scalar_type()),
                                      {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)},
                                      {y.mutable_data_ptr(), y.stride(0), y.stride(1), y.stride(2), y.stride(3)},
                                      parameters[0].const_data_ptr(),
                                      parameters[1].const_data_ptr(),
                                      parameters[2].const_data_ptr(),
                                      parameters[3].const_data_ptr()};
  STD_CUDA_CHECK(cuda::involution_layer(p, current_stream(place)));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lgld_ops, CUDA, m) { m.impl("involution_layer", TORCH_BOX(&involution_layer)); }

}  // namespace lgld
