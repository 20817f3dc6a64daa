// torch.ops.lgld_ops.involution2d and its two gradients on NVIDIA GPUs. Formulas: kernels/cuda/involution2d/involution2d.h.
#include "kernels/cuda/involution2d/involution2d.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "csrc/cuda/tensors.h"
#include "csrc/involution2d_arguments.h"

namespace lgld {
namespace {

cuda::ConstMap read(const Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

cuda::Map write(const Tensor& t) { return {t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

using Launcher = cudaError_t (*)(const cuda::Involution2dParams&, cudaStream_t);

// The result of a launcher on a and b, of `size` and in dtype and memory format of `map`, which is one of them.
Tensor run(const char* op, Place place, const Involution2dShape& s, Launcher launcher, const Tensor& a, const Tensor& b,
           const Tensor& map, const Ints& size, bool is_grad_weight = false) {
  const OnDevice guard(place.index);
  const Tensor out = allocate_map(op, place, map, size,
                                  "it follows from the sizes of the arguments, kernel_size, stride, padding and dilation");
  if (out.numel() == 0) return out;
  // The map's own order for all that is read along with it. Kernels for channels_last maps take weights of any strides.
  const bool channels_last = is_channels_last(map);
  const Tensor dense_a = dense_map(a, channels_last);
  const Tensor dense_b = channels_last && !is_grad_weight ? b : dense_map(b, channels_last);
  cuda::Involution2dParams p{s, *kernel_dtype(a.scalar_type()), read(dense_a), read(dense_b), write(out), nullptr};
  std::optional<Tensor> scratch;
  if (const int64_t bytes = is_grad_weight ? cuda::involution2d_scratch_bytes(p) : 0; bytes > 0) {
    scratch = allocate(op, place, {(bytes + 7) / 8}, {1}, ScalarType::Double, "it holds sums over parts of the channels");
    p.scratch = scratch->mutable_data_ptr();
  }
  STD_CUDA_CHECK(launcher(p, current_stream(place)));
  return out;
}

Tensor forward(Launcher launcher, const Tensor& x, const Tensor& weight, const Involution2dWindow& window) {
  constexpr const char* op = "involution2d";
  const Place place = cuda_place({&x, &weight});
  const Involution2dShape s = involution2d_arguments(op, place, x, weight, window);
  return run(op, place, s, launcher, x, weight, x, involution2d_y_size(s));
}

Tensor involution2d(const Tensor& x, const Tensor& weight, Ints kernel_size, Ints stride, Ints padding, Ints dilation,
                    int64_t groups) {
  return forward(cuda::involution2d, x, weight, {kernel_size, stride, padding, dilation, groups});
}

Tensor involution2d_naive(const Tensor& x, const Tensor& weight, Ints kernel_size, Ints stride, Ints padding, Ints dilation,
                          int64_t groups) {
  return forward(cuda::involution2d_naive, x, weight, {kernel_size, stride, padding, dilation, groups});
}

Tensor involution2d_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t height, int64_t width, Ints kernel_size,
                           Ints stride, Ints padding, Ints dilation, int64_t groups) {
  constexpr const char* op = "involution2d_grad_x";
  const Place place = cuda_place({&grad_y, &weight});
  const Involution2dShape s =
      involution2d_grad_x_arguments(op, place, grad_y, weight, height, width, {kernel_size, stride, padding, dilation, groups});
  return run(op, place, s, cuda::involution2d_grad_x, grad_y, weight, grad_y, involution2d_x_size(s));
}

Tensor involution2d_grad_weight(const Tensor& grad_y, const Tensor& x, Ints kernel_size, Ints stride, Ints padding,
                                Ints dilation, int64_t groups) {
  constexpr const char* op = "involution2d_grad_weight";
  const Place place = cuda_place({&grad_y, &x});
  const Involution2dShape s =
      involution2d_grad_weight_arguments(op, place, grad_y, x, {kernel_size, stride, padding, dilation, groups});
  return run(op, place, s, cuda::involution2d_grad_weight, grad_y, x, x, involution2d_weight_size(s), true);
}

std::tuple<Tensor, Tensor> involution2d_gradients(const Tensor& grad_y, const Tensor& x, const Tensor& weight, Ints kernel_size,
                                                  Ints stride, Ints padding, Ints dilation, int64_t groups) {
  constexpr const char* op = "involution2d_gradients";
  const Place place = cuda_place({&grad_y, &x, &weight});
  const Involution2dWindow window{kernel_size, stride, padding, dilation, groups};
  const Involution2dShape s = involution2d_arguments(op, place, x, weight, window);
  involution2d_grad_weight_arguments(op, place, grad_y, x, window);
  const Dtype dtype = *kernel_dtype(x.scalar_type());
  if (grad_y.numel() > 0 && !is_channels_last(x) && !is_channels_last(grad_y) && cuda::has_involution2d_gradients(s, dtype)) {
    const OnDevice guard(place.index);
    const char* consequence = "it has the size of an argument";
    const Tensor grad_x = allocate_map(op, place, x, involution2d_x_size(s), consequence);
    const Tensor grad_weight = allocate_map(op, place, x, involution2d_weight_size(s), consequence);
    const Tensor dense[] = {dense_map(grad_y, false), dense_map(x, false), dense_map(weight, false)};
    cuda::Involution2dGradients p{
        s, dtype, read(dense[0]), read(dense[1]), read(dense[2]), write(grad_x), write(grad_weight), nullptr};
    std::optional<Tensor> scratch;
    if (const int64_t bytes = cuda::involution2d_gradients_scratch_bytes(p); bytes > 0) {
      scratch = allocate(op, place, {(bytes + 7) / 8}, {1}, ScalarType::Double, "it holds sums over parts of the channels");
      p.scratch = scratch->mutable_data_ptr();
    }
    STD_CUDA_CHECK(cuda::involution2d_gradients(p, current_stream(place)));
    return {grad_x, grad_weight};
  }
  return {involution2d_grad_x(grad_y, weight, s.height, s.width, kernel_size, stride, padding, dilation, groups),
          involution2d_grad_weight(grad_y, x, kernel_size, stride, padding, dilation, groups)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lgld_ops, CUDA, m) {
  m.impl("involution2d", TORCH_BOX(&involution2d));
  m.impl("involution2d_grad_x", TORCH_BOX(&involution2d_grad_x));
  m.impl("involution2d_grad_weight", TORCH_BOX(&involution2d_grad_weight));
  m.impl("involution2d_gradients", TORCH_BOX(&involution2d_gradients));
}

// Not one of the package's ops: benchmarks define it (torch.library.Library("lgld_ops_baseline", "DEF")) and load this.
STABLE_TORCH_LIBRARY_IMPL(lgld_ops_baseline, CUDA, m) { m.impl("involution2d_naive", TORCH_BOX(&involution2d_naive)); }

}  // namespace lgld
