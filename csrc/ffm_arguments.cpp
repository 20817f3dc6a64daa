#include "csrc/ffm_arguments.h"

#include <cmath>

namespace lgld {
namespace {

void check_vector(const char* op, Place place, const char* name, const Tensor& t, int64_t size, const char* meaning) {
  check_kind(op, name, t, place);
  LGLD_CHECK(t.dim() == 1 && t.size(0) == size, op, ": ", name, " must have shape [", meaning, "] = [", size, "], but has ",
             shape_of(t));
}

}  // namespace

FfmShape ffm_arguments(const char* op, Place place, const FfmTensors& t) {
  const Tensor &x = t.x, &weight = t.weight;
  check_kind(op, "x", x, place);
  LGLD_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, but has shape ", shape_of(x));
  FfmShape s{};
  s.batch = x.size(0), s.inputs = x.size(1), s.height = x.size(2), s.width = x.size(3), s.stride = t.stride;
  LGLD_CHECK(s.inputs >= 1 && s.height >= 1 && s.width >= 1, op,
             ": x must have at least one channel, row and column, but its size is ", shape_of(x));
  LGLD_CHECK(t.stride >= 1 && t.stride < (int64_t{1} << 24), op, ": stride must be at least 1 and less than 2^24, but is ",
             t.stride);
  LGLD_CHECK(t.eps > 0 && std::isfinite(t.eps), op, ": eps must be positive, but is ", t.eps);
  s.out_height = (s.height + t.stride - 1) / t.stride, s.out_width = (s.width + t.stride - 1) / t.stride;
  check_kind(op, "weight", weight, place);
  const int64_t features = s.features();
  const bool flat = weight.dim() == 2, spatial = weight.dim() == 4 && weight.size(2) == 1 && weight.size(3) == 1;
  LGLD_CHECK((flat || spatial) && weight.size(1) == features, op, ": weight must have shape [C, ", features, "] or [C, ",
             features, ", 1, 1] for x with ", s.inputs, " channels and 4 position terms, but has ", shape_of(weight));
  s.channels = weight.size(0);
  LGLD_CHECK(s.channels >= 2 && s.channels % 2 == 0, op, ": weight must have an even number of rows, at least 2, but has ",
             s.channels);
  const auto optional_vector = [&](const char* name, const std::optional<Tensor>& v) {
    if (v) check_vector(op, place, name, *v, s.channels, "C");
  };
  optional_vector("bias", t.bias);
  check_vector(op, place, "fourier_weight_real", t.real, s.channels / 2, "C / 2");
  check_vector(op, place, "fourier_weight_imag", t.imag, s.channels / 2, "C / 2");
  optional_vector("bn_weight", t.bn_weight);
  optional_vector("bn_bias", t.bn_bias);
  if (t.training) {
    LGLD_CHECK(s.positions() != 1, op, ": training must have more than 1 value per channel, but x of size ", shape_of(x),
               " and stride ", t.stride, " make 1");
  } else {
    LGLD_CHECK(t.running_mean && t.running_var, op, ": running_mean and running_var must be given where training is False");
    optional_vector("running_mean", t.running_mean);
    optional_vector("running_var", t.running_var);
  }
  return s;
}

void ffm_grad_argument(const char* op, Place place, const Tensor& grad_y, const Tensor& x, const FfmShape& s) {
  check_kind(op, "grad_y", grad_y, place);
  const Ints size{s.batch, s.channels, s.out_height, s.out_width};
  LGLD_CHECK(shape_of(grad_y) == shape_text(size), op, ": grad_y must have shape [batch, C, Ho, Wo] = ", shape_text(size),
             ", but has ", shape_of(grad_y));
  LGLD_CHECK(grad_y.scalar_type() == x.scalar_type(), op, ": grad_y must have the dtype of x, ", dtype_of(x), ", but is ",
             dtype_of(grad_y));
}

}  // namespace lgld
