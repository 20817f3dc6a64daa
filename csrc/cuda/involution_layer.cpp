// torch.ops.lgld_ops.involution_layer and its backward on NVIDIA GPUs. Formulas:
// kernels/cuda/involution_layer/involution_layer.h.
#include "kernels/cuda/involution_layer/involution_layer.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "csrc/cuda/tensors.h"

namespace lgld {
namespace {

// The same rules, in the same words, as lgld_ops/ops/layer.py.
void check_parameter(const char* op, const char* name, const Tensor& t, const Tensor& x, Place place, const Ints& size,
                     const char* meaning) {
  check_kind(op, name, t, place);
  LGLD_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " must have the dtype of x, ", dtype_of(x), ", but is ",
             dtype_of(t));
  LGLD_CHECK(shape_of(t) == shape_text(size), op, ": ", name, " must have shape ", meaning, " = ", shape_text(size),
             ", but has ", shape_of(t));
}

Ints size_of(const Tensor& x) { return {x.size(0), x.size(1), x.size(2), x.size(3)}; }

cuda::ConstMap read(const Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

cuda::Map write(const Tensor& t) { return {t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

// The layer's parameters, contiguous.
struct Weights {
  Tensor hidden_weight, hidden_bias, span_weight, span_bias;
};

Weights arguments(const char* op, Place place, const Tensor& x, const Weights& w, int64_t kernel_size) {
  LGLD_CHECK(kernel_size == 3 || kernel_size == 5 || kernel_size == 7, op, ": kernel_size must be 3, 5 or 7, but is ",
             kernel_size);
  check_kind(op, "x", x, place);
  LGLD_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, but has shape ", shape_of(x));
  LGLD_CHECK(x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1, op,
             ": x must have at least one channel, row and column, but its size is ", shape_of(x));
  LGLD_CHECK(w.hidden_weight.dim() == 2, op, ": hidden_weight must have 2 dimensions, but has shape ",
             shape_of(w.hidden_weight));
  const int64_t hidden = w.hidden_weight.size(0), taps = kernel_size * kernel_size;
  LGLD_CHECK(hidden >= 1, op, ": hidden_weight must have at least one row, but has none");
  check_parameter(op, "hidden_weight", w.hidden_weight, x, place, {hidden, x.size(1)}, "[D, C]");
  check_parameter(op, "hidden_bias", w.hidden_bias, x, place, {hidden}, "[D]");
  check_parameter(op, "span_weight", w.span_weight, x, place, {taps, hidden}, "[K*K, D]");
  check_parameter(op, "span_bias", w.span_bias, x, place, {taps}, "[K*K]");
  using torch::stable::contiguous;
  return {contiguous(w.hidden_weight), contiguous(w.hidden_bias), contiguous(w.span_weight), contiguous(w.span_bias)};
}

cuda::InvolutionLayerParams kernel_parameters(const Tensor& x, const Weights& w, int64_t kernel_size) {
  return {x.size(0),
          x.size(1),
          w.hidden_weight.size(0),
          x.size(2),
          x.size(3),
          kernel_size,
          *kernel_dtype(x.scalar_type()),
          read(x),
          {},
          w.hidden_weight.const_data_ptr(),
          w.hidden_bias.const_data_ptr(),
          w.span_weight.const_data_ptr(),
          w.span_bias.const_data_ptr()};
}

constexpr const char* kMapSize = "it has the size of x";

Tensor involution_layer(const Tensor& x, const Tensor& hidden_weight, const Tensor& hidden_bias, const Tensor& span_weight,
                        const Tensor& span_bias, int64_t kernel_size) {
  constexpr const char* op = "involution_layer";
  const Place place = cuda_place({&x, &hidden_weight, &hidden_bias, &span_weight, &span_bias});
  const OnDevice guard(place.index);
  const Weights w = arguments(op, place, x, {hidden_weight, hidden_bias, span_weight, span_bias}, kernel_size);
  const Tensor y = allocate_map(op, place, x, size_of(x), kMapSize);
  if (x.size(0) == 0) return y;
  cuda::InvolutionLayerParams p = kernel_parameters(x, w, kernel_size);
  p.y = write(y);
  STD_CUDA_CHECK(cuda::involution_layer(p, current_stream(place)));
  return y;
}

// The kernels of backward want columns as neighbours.
Tensor with_columns(const Tensor& t) { return t.size(3) == 1 || t.stride(3) == 1 ? t : dense_map(t, false); }

cuda::ConstMap read_columns(const Tensor& t) {
  cuda::ConstMap m = read(t);
  m.column = 1;  // the stride of a single column means nothing
  return m;
}

using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

FiveTensors involution_layer_backward(const Tensor& grad_y, const Tensor& x, const Tensor& hidden_weight,
                                      const Tensor& hidden_bias, const Tensor& span_weight, const Tensor& span_bias,
                                      int64_t kernel_size, bool need_x) {
  constexpr const char* op = "involution_layer_backward";
  const Place place = cuda_place({&grad_y, &x, &hidden_weight, &hidden_bias, &span_weight, &span_bias});
  const OnDevice guard(place.index);
  const Weights w = arguments(op, place, x, {hidden_weight, hidden_bias, span_weight, span_bias}, kernel_size);
  check_parameter(op, "grad_y", grad_y, x, place, size_of(x), "of x");
  const Tensor grad_x =
      need_x ? allocate_map(op, place, x, size_of(x), kMapSize) : allocate(op, place, {0}, {1}, x.scalar_type(), "it is empty");
  const auto gradient = [&](const Tensor& like) {
    const auto [size, stride] = contiguous_like(like);
    return allocate(op, place, size, stride, x.scalar_type(), "it has the size of a parameter");
  };
  const Weights g{gradient(w.hidden_weight), gradient(w.hidden_bias), gradient(w.span_weight), gradient(w.span_bias)};
  const FiveTensors result{grad_x, g.hidden_weight, g.hidden_bias, g.span_weight, g.span_bias};
  if (x.size(0) == 0) {
    std::apply([](const auto&... t) { (torch::stable::zero_(const_cast<Tensor&>(t)), ...); }, result);
    return result;
  }
  const Tensor columns_of_x = with_columns(x), columns_of_grad = with_columns(grad_y);
  cuda::InvolutionLayerParams p = kernel_parameters(columns_of_x, w, kernel_size);
  p.x = read_columns(columns_of_x);
  const int64_t bytes = cuda::involution_layer_backward_workspace(p);
  const Tensor workspace =
      allocate(op, place, {(bytes + 7) / 8}, {1}, ScalarType::Double, "it holds sums over parts of the pixels");
  STD_CUDA_CHECK(cuda::involution_layer_backward(
      p, read_columns(columns_of_grad),
      {need_x ? write(grad_x) : cuda::Map{}, g.hidden_weight.mutable_data_ptr(), g.hidden_bias.mutable_data_ptr(),
       g.span_weight.mutable_data_ptr(), g.span_bias.mutable_data_ptr()},
      workspace.mutable_data_ptr(), current_stream(place)));
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lgld_ops, CUDA, m) {
  m.impl("involution_layer", TORCH_BOX(&involution_layer));
  m.impl("involution_layer_backward", TORCH_BOX(&involution_layer_backward));
}

}  // namespace lgld
