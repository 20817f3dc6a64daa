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

namespace lgld {
namespace {

std::optional<Dtype> kernel_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    default: return std::nullopt;
  }
}

void check_map(const char* op, const char* name, const Tensor& t) {
  LGLD_CHECK(t.is_cpu(), op, ": ", name, " must be on the CPU, like the other argument");
  LGLD_CHECK(t.dim() == 4, op, ": ", name, " must have 4 dimensions, but has shape ", shape_of(t));
  LGLD_CHECK(kernel_dtype(t.scalar_type()), op, ": ", name, " must be float32, float64, float16 or bfloat16, but is ",
             dtype_of(t));
}

constexpr int64_t kLargest = int64_t{1} << 24;

void check_pair(const char* op, const char* name, const Ints& value, int64_t least) {
  LGLD_CHECK(value.size() == 2, op, ": ", name, " must be two integers, but has ", value.size());
  LGLD_CHECK(value[0] >= least && value[1] >= least, op, ": ", name, " must be at least ", least, " each, but is (", value[0],
             ", ", value[1], ")");
  // With the span of the window limited alike, a plane of a plan's strips has less than 2^60 elements; what it
  // multiplies that with, it bounds itself.
  LGLD_CHECK(value[0] < kLargest && value[1] < kLargest, op, ": ", name, " must be less than 2^24 each, but is (", value[0],
             ", ", value[1], ")");
}

Involution2dShape make_shape(const char* op, const char* sized_by, int64_t batch, int64_t channels, int64_t height,
                             int64_t width, const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
                             int64_t groups) {
  check_pair(op, "kernel_size", kernel, 1);
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  LGLD_CHECK(groups >= 1, op, ": groups must be at least 1, but is ", groups);
  LGLD_CHECK(channels >= 1 && height >= 1 && width >= 1, op, ": ", sized_by,
             " must have at least one channel, row and column, but its size is [", batch, ", ", channels, ", ", height, ", ",
             width, "]");
  LGLD_CHECK(channels % groups == 0, op, ": groups must divide the number of channels, but groups is ", groups, " and ",
             sized_by, " has ", channels, " channels");
  for (size_t axis = 0; axis < 2; ++axis)
    LGLD_CHECK((kernel[axis] - 1) * dilation[axis] < kLargest, op, ": kernel_size (", kernel[0], ", ", kernel[1],
               ") with dilation (", dilation[0], ", ", dilation[1], ") must span less than 2^24 pixels each way");
  Involution2dShape s{};
  s.batch = batch, s.channels = channels, s.groups = groups, s.height = height, s.width = width;
  s.kernel_h = kernel[0], s.kernel_w = kernel[1], s.stride_h = stride[0], s.stride_w = stride[1];
  s.pad_h = padding[0], s.pad_w = padding[1], s.dilation_h = dilation[0], s.dilation_w = dilation[1];
  s.out_height = floor_div(height + 2 * s.pad_h - (s.kernel_h - 1) * s.dilation_h - 1, s.stride_h) + 1;
  s.out_width = floor_div(width + 2 * s.pad_w - (s.kernel_w - 1) * s.dilation_w - 1, s.stride_w) + 1;
  LGLD_CHECK(s.out_height >= 1 && s.out_width >= 1, op, ": kernel_size (", s.kernel_h, ", ", s.kernel_w, ") with dilation (",
             s.dilation_h, ", ", s.dilation_w, ") is larger than the padded ", sized_by, ", (", height + 2 * s.pad_h, ", ",
             width + 2 * s.pad_w, ")");
  return s;
}

void check_size(const char* op, const char* name, const Tensor& t, const Ints& size, const char* meaning) {
  bool equal = true;
  for (int64_t d = 0; d < 4; ++d) equal = equal && t.size(d) == size[static_cast<size_t>(d)];
  LGLD_CHECK(equal, op, ": ", name, " must have shape ", meaning, " = [", size[0], ", ", size[1], ", ", size[2], ", ", size[3],
             "], but has ", shape_of(t));
}

Ints weight_size(const Involution2dShape& s) { return {s.batch, s.groups * s.taps(), s.out_height, s.out_width}; }
Ints output_size(const Involution2dShape& s) { return {s.batch, s.channels, s.out_height, s.out_width}; }
constexpr const char* kWeightMeaning = "[batch, groups * Kh * Kw, Ho, Wo]";

void check_same_dtype(const char* op, const char* a_name, const Tensor& a, const char* b_name, const Tensor& b) {
  LGLD_CHECK(a.scalar_type() == b.scalar_type(), op, ": ", b_name, " must have the dtype of ", a_name, ", ", dtype_of(a),
             ", but is ", dtype_of(b));
}

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
  const size_t bytes = static_cast<size_t>(ceil_div(plan.scratch_bytes, 64) * 64);
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
  const Involution2dFormat format{dtype, is_channels_last(map), unit(map), unit(other), unit(out)};
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
  check_map(op, "x", x);
  check_map(op, "weight", weight);
  check_same_dtype(op, "x", x, "weight", weight);
  const Involution2dShape s =
      make_shape(op, "x", x.size(0), x.size(1), x.size(2), x.size(3), kernel_size, stride, padding, dilation, groups);
  check_size(op, "weight", weight, weight_size(s), kWeightMeaning);
  const Tensor y = allocate(op, x, output_size(s));
  run(op, s, Involution2dPass::kForward, x, weight, y);
  return y;
}

Tensor involution2d_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t height, int64_t width, Ints kernel_size,
                           Ints stride, Ints padding, Ints dilation, int64_t groups) {
  constexpr const char* op = "involution2d_grad_x";
  check_map(op, "grad_y", grad_y);
  check_map(op, "weight", weight);
  check_same_dtype(op, "grad_y", grad_y, "weight", weight);
  const Involution2dShape s =
      make_shape(op, "x", grad_y.size(0), grad_y.size(1), height, width, kernel_size, stride, padding, dilation, groups);
  check_size(op, "grad_y", grad_y, output_size(s), "[batch, channels, Ho, Wo]");
  check_size(op, "weight", weight, weight_size(s), kWeightMeaning);
  const Tensor grad_x = allocate(op, grad_y, {s.batch, s.channels, s.height, s.width});
  run(op, s, Involution2dPass::kGradX, grad_y, weight, grad_x);
  return grad_x;
}

Tensor involution2d_grad_weight(const Tensor& grad_y, const Tensor& x, Ints kernel_size, Ints stride, Ints padding,
                                Ints dilation, int64_t groups) {
  constexpr const char* op = "involution2d_grad_weight";
  check_map(op, "grad_y", grad_y);
  check_map(op, "x", x);
  check_same_dtype(op, "grad_y", grad_y, "x", x);
  const Involution2dShape s =
      make_shape(op, "x", x.size(0), x.size(1), x.size(2), x.size(3), kernel_size, stride, padding, dilation, groups);
  check_size(op, "grad_y", grad_y, output_size(s), "[batch, channels, Ho, Wo]");
  const Tensor grad_weight = allocate(op, x, weight_size(s));
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
