// torch.ops.lgld_ops.fourier_feature_mixer and its backward on NVIDIA GPUs. Kernels: kernels/cuda/ffm/ffm.h.
#include "kernels/cuda/ffm/ffm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "csrc/cuda/tensors.h"
#include "csrc/ffm_arguments.h"

namespace lgld {
namespace {

using Maybe = std::optional<Tensor>;

cuda::FfmMap map_of(const Tensor& t, void* data) { return {data, t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }
cuda::FfmMap read(const Tensor& t) { return map_of(t, const_cast<void*>(t.const_data_ptr())); }
cuda::FfmMap write(const Tensor& t) { return map_of(t, t.mutable_data_ptr()); }

cuda::FfmVector vector(const Tensor& t) { return {t.const_data_ptr(), *kernel_dtype(t.scalar_type()), t.stride(0)}; }
cuda::FfmVector vector(const Maybe& t) { return t ? vector(*t) : cuda::FfmVector{}; }

cuda::FfmArguments kernel_arguments(const FfmShape& s, const FfmTensors& t) {
  cuda::FfmArguments a{};
  a.shape = s, a.type = *kernel_dtype(t.x.scalar_type()), a.training = t.training, a.eps = t.eps, a.x = read(t.x);
  a.weight = {t.weight.const_data_ptr(), *kernel_dtype(t.weight.scalar_type()), t.weight.stride(0), t.weight.stride(1)};
  a.bias = vector(t.bias), a.real = vector(t.real), a.imag = vector(t.imag);
  a.bn_weight = vector(t.bn_weight), a.bn_bias = vector(t.bn_bias);
  if (!t.training) a.running_mean = vector(t.running_mean), a.running_var = vector(t.running_var);
  return a;
}

Tensor workspace_of(const char* op, Place place, size_t bytes) {
  return allocate(op, place, {static_cast<int64_t>((bytes + 7) / 8)}, {1}, ScalarType::Double,
                  "it holds what the kernels leave for each other; the sizes of x and weight set it");
}

constexpr const char* kMapSize = "it follows from the sizes of x and weight and from stride";

std::tuple<Tensor, Tensor, Tensor> fourier_feature_mixer(const Tensor& x, const Tensor& weight, const Maybe& bias,
                                                         const Tensor& real, const Tensor& imag, const Maybe& bn_weight,
                                                         const Maybe& bn_bias, const Maybe& running_mean,
                                                         const Maybe& running_var, bool training, double eps, int64_t stride) {
  constexpr const char* op = "fourier_feature_mixer";
  const Place place = cuda_place({&x, &weight, &real, &imag});
  const FfmTensors t{x, weight, bias, real, imag, bn_weight, bn_bias, running_mean, running_var, training, eps, stride};
  const FfmShape s = ffm_arguments(op, place, t);
  const OnDevice guard(place.index);
  const Tensor y = allocate_map(op, place, x, {s.batch, s.channels, s.out_height, s.out_width}, kMapSize);
  const ScalarType statistic = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const auto statistics = [&] {
    return allocate(op, place, {training ? s.channels : 0}, {1}, statistic, "it has an element per channel");
  };
  const Tensor mean = statistics(), var = statistics();
  const cuda::FfmArguments a = kernel_arguments(s, t);
  const Tensor workspace = workspace_of(op, place, cuda::ffm_forward_workspace(a));
  STD_CUDA_CHECK(cuda::ffm_forward(a, write(y), training ? mean.mutable_data_ptr() : nullptr,
                                   training ? var.mutable_data_ptr() : nullptr, workspace.mutable_data_ptr(),
                                   current_stream(place)));
  return {y, mean, var};
}

using SevenTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// A new contiguous tensor of the sizes and dtype of `like`; empty where there is none.
Tensor gradient_of(const char* op, Place place, const Maybe& like, ScalarType otherwise) {
  const auto [size, stride] = contiguous_like(like);
  return allocate(op, place, size, stride, like ? like->scalar_type() : otherwise, "it has the size of a parameter");
}

SevenTensors fourier_feature_mixer_backward(const Tensor& grad_y, const Tensor& x, const Tensor& weight, const Maybe& bias,
                                            const Tensor& real, const Tensor& imag, const Maybe& bn_weight,
                                            const Maybe& bn_bias, const Maybe& running_mean, const Maybe& running_var,
                                            bool training, double eps, int64_t stride, bool need_x) {
  constexpr const char* op = "fourier_feature_mixer_backward";
  const Place place = cuda_place({&grad_y, &x, &weight, &real, &imag});
  const FfmTensors t{x, weight, bias, real, imag, bn_weight, bn_bias, running_mean, running_var, training, eps, stride};
  const FfmShape s = ffm_arguments(op, place, t);
  ffm_grad_argument(op, place, grad_y, x, s);
  const OnDevice guard(place.index);
  const Tensor grad_x = need_x ? allocate_map(op, place, x, {s.batch, s.inputs, s.height, s.width}, kMapSize)
                               : allocate(op, place, {0}, {1}, x.scalar_type(), "it is empty");
  const auto gradient = [&](const Maybe& like) { return gradient_of(op, place, like, x.scalar_type()); };
  const SevenTensors result{grad_x,         gradient(weight),    gradient(bias),   gradient(real),
                            gradient(imag), gradient(bn_weight), gradient(bn_bias)};
  if (s.batch == 0) {
    std::apply([](const auto&... g) { (torch::stable::zero_(const_cast<Tensor&>(g)), ...); }, result);
    return result;
  }
  const auto data = [](const Tensor& g) { return g.numel() == 0 ? nullptr : g.mutable_data_ptr(); };
  const cuda::FfmArguments a = kernel_arguments(s, t);
  const Tensor workspace = workspace_of(op, place, cuda::ffm_backward_workspace(a, read(grad_y), need_x));
  STD_CUDA_CHECK(cuda::ffm_backward(a, read(grad_y), need_x ? write(grad_x) : cuda::FfmMap{},
                                    {data(std::get<1>(result)), data(std::get<2>(result)), data(std::get<3>(result)),
                                     data(std::get<4>(result)), data(std::get<5>(result)), data(std::get<6>(result))},
                                    workspace.mutable_data_ptr(), current_stream(place)));
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lgld_ops, CUDA, m) {
  m.impl("fourier_feature_mixer", TORCH_BOX(&fourier_feature_mixer));
  m.impl("fourier_feature_mixer_backward", TORCH_BOX(&fourier_feature_mixer_backward));
}

}  // namespace lgld
