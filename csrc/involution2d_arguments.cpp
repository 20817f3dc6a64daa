#include "csrc/involution2d_arguments.h"

#include <cstddef>

namespace lgld {
namespace {

// floor(a / b) for b > 0 and any sign of a.
constexpr int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

void check_map(const char* op, const char* name, const Tensor& t, Place place) {
  check_kind(op, name, t, place);
  LGLD_CHECK(t.dim() == 4, op, ": ", name, " must have 4 dimensions, but has shape ", shape_of(t));
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
                             int64_t width, const Involution2dWindow& window) {
  const auto& [kernel, stride, padding, dilation, groups] = window;
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

constexpr const char* kWeightMeaning = "[batch, groups * Kh * Kw, Ho, Wo]";

void check_same_dtype(const char* op, const char* a_name, const Tensor& a, const char* b_name, const Tensor& b) {
  LGLD_CHECK(a.scalar_type() == b.scalar_type(), op, ": ", b_name, " must have the dtype of ", a_name, ", ", dtype_of(a),
             ", but is ", dtype_of(b));
}

}  // namespace

Ints involution2d_x_size(const Involution2dShape& s) { return {s.batch, s.channels, s.height, s.width}; }
Ints involution2d_weight_size(const Involution2dShape& s) { return {s.batch, s.groups * s.taps(), s.out_height, s.out_width}; }
Ints involution2d_y_size(const Involution2dShape& s) { return {s.batch, s.channels, s.out_height, s.out_width}; }

Involution2dShape involution2d_arguments(const char* op, Place place, const Tensor& x, const Tensor& weight,
                                         const Involution2dWindow& window) {
  check_map(op, "x", x, place);
  check_map(op, "weight", weight, place);
  check_same_dtype(op, "x", x, "weight", weight);
  const Involution2dShape s = make_shape(op, "x", x.size(0), x.size(1), x.size(2), x.size(3), window);
  check_size(op, "weight", weight, involution2d_weight_size(s), kWeightMeaning);
  return s;
}

Involution2dShape involution2d_grad_x_arguments(const char* op, Place place, const Tensor& grad_y, const Tensor& weight,
                                                int64_t height, int64_t width, const Involution2dWindow& window) {
  check_map(op, "grad_y", grad_y, place);
  check_map(op, "weight", weight, place);
  check_same_dtype(op, "grad_y", grad_y, "weight", weight);
  const Involution2dShape s = make_shape(op, "x", grad_y.size(0), grad_y.size(1), height, width, window);
  check_size(op, "grad_y", grad_y, involution2d_y_size(s), "[batch, channels, Ho, Wo]");
  check_size(op, "weight", weight, involution2d_weight_size(s), kWeightMeaning);
  return s;
}

Involution2dShape involution2d_grad_weight_arguments(const char* op, Place place, const Tensor& grad_y, const Tensor& x,
                                                     const Involution2dWindow& window) {
  check_map(op, "grad_y", grad_y, place);
  check_map(op, "x", x, place);
  check_same_dtype(op, "grad_y", grad_y, "x", x);
  const Involution2dShape s = make_shape(op, "x", x.size(0), x.size(1), x.size(2), x.size(3), window);
  check_size(op, "grad_y", grad_y, involution2d_y_size(s), "[batch, channels, Ho, Wo]");
  return s;
}

}  // namespace lgld
