// torch.ops.lgld_ops.involution2d and its two gradients on the CPU. Formulas: kernels/cpu/involution2d/involution2d.h.
#include "kernels/cpu/involution2d/involution2d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/cpu/tensors.h"
#include "csrc/cpu/variant.h"
#include "csrc/error.h"
#include "csrc/involution2d_arguments.h"

namespace lgld {
namespace {

Tensor allocate(const char* op, const Tensor& like, const Ints& size) {
  return allocate_map(op, like, size, "it follows from the sizes of the arguments, kernel_size, stride, padding and dilation");
}

template <class T>
void run(const char* op, const Involution2dPlan& plan, Involution2dKernels::Run<T> kernel, const Tensor& a, const Tensor& b,
         const Tensor& out) {
  const Strided<const T> in_a = read<T>(a), in_b = read<T>(b);
  const Strided<T> result = write<T>(out);
  // A window over real pixels needs megabytes. Beyond this it is padding, and the system may grant memory that it lacks.
  constexpr int64_t kMostScratch = int64_t{1} << 30;
  LGLD_CHECK(plan.scratch_bytes <= kMostScratch, op, ": kernel_size, stride and dilation need ", plan.scratch_bytes,
             " bytes of memory for scratch a thread; they must need at most ", kMostScratch);
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(1, ceil_div(plan.scratch_bytes, 64)) * 64);
  // 32 Ki multiply-adds take a few microseconds, about what waking another thread costs.
  const int64_t work =
      plan.shape.batch * plan.shape.channels * plan.shape.taps() * plan.shape.out_height * plan.shape.out_width;
  const int64_t grain = std::max<int64_t>(1, plan.tasks / std::max<int64_t>(1, work / (32 * 1024)));
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, plan.tasks, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<void, FreeDeleter> scratch(std::aligned_alloc(64, bytes));
    if (scratch) {
      kernel(plan, in_a, in_b, result, begin, end, scratch.get());
    } else {
      out_of_memory = true;
    }
  });
  LGLD_CHECK(!out_of_memory, op, ": not enough memory for ", bytes,
             " bytes of scratch a thread; kernel_size, stride and dilation set its size");
}

void run(const char* op, const Involution2dShape& s, Involution2dPass pass, const Tensor& a, const Tensor& b,
         const Tensor& out) {
  const Involution2dKernels& k = *active_cpu_variant().involution2d;
  const bool grad_weight = pass == Involution2dPass::kGradWeight;
  const Tensor &map = grad_weight ? b : a, &other = grad_weight ? a : b;
  const auto unit = [](const Tensor& t) { return t.stride(3) == 1 || t.size(3) == 1; };
  const Dtype dtype = *kernel_dtype(a.scalar_type());
  const Involution2dFormat format{dtype, is_channels_last(map), unit(map), unit(other), unit(out), is_channels_last(other)};
  const Involution2dPlan plan = plan_involution2d(s, pass, k, format);
  switch (dtype) {
    case Dtype::kFloat32: return run<float>(op, plan, select<float>(k, pass), a, b, out);
    case Dtype::kFloat64: return run<double>(op, plan, select<double>(k, pass), a, b, out);
    case Dtype::kFloat16: return run<Float16>(op, plan, select<Float16>(k, pass), a, b, out);
    case Dtype::kBFloat16: return run<BFloat16>(op, plan, select<BFloat16>(k, pass), a, b, out);
  }
}

Tensor involution2d(const Tensor& x, const Tensor& weight, Ints kernel_size, Ints stride, Ints padding, Ints dilation,
                    int64_t groups) {
  constexpr const char* op = "involution2d";
  const Involution2dShape s = involution2d_arguments(op, kOnCpu, x, weight, {kernel_size, stride, padding, dilation, groups});
  const Tensor y = allocate(op, x, involution2d_y_size(s));
  run(op, s, Involution2dPass::kForward, x, weight, y);
  return y;
}

Tensor involution2d_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t height, int64_t width, Ints kernel_size,
                           Ints stride, Ints padding, Ints dilation, int64_t groups) {
  constexpr const char* op = "involution2d_grad_x";
  const Involution2dShape s = involution2d_grad_x_arguments(op, kOnCpu, grad_y, weight, height, width,
                                                            {kernel_size, stride, padding, dilation, groups});
  const Tensor grad_x = allocate(op, grad_y, involution2d_x_size(s));
  run(op, s, Involution2dPass::kGradX, grad_y, weight, grad_x);
  return grad_x;
}

Tensor involution2d_grad_weight(const Tensor& grad_y, const Tensor& x, Ints kernel_size, Ints stride, Ints padding,
                                Ints dilation, int64_t groups) {
  constexpr const char* op = "involution2d_grad_weight";
  const Involution2dShape s =
      involution2d_grad_weight_arguments(op, kOnCpu, grad_y, x, {kernel_size, stride, padding, dilation, groups});
  const Tensor grad_weight = allocate(op, x, involution2d_weight_size(s));
  run(op, s, Involution2dPass::kGradWeight, grad_y, x, grad_weight);
  return grad_weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lgld_ops, CPU, m) {
  m.impl("involution2d", TORCH_BOX(&involution2d));
  m.impl("involution2d_grad_x", TORCH_BOX(&involution2d_grad_x));
  m.impl("involution2d_grad_weight", TORCH_BOX(&involution2d_grad_weight));
}

}  // namespace lgld
