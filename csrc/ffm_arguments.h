// What a Fourier feature mixer's arguments must be, on every device: each function raises where they don't fit, naming the
// argument, what it was and what it must be.
#pragma once
#include <optional>

#include "csrc/tensors.h"
#include "kernels/ffm_shape.h"

namespace lgld {

// The arguments as the schema has them.
struct FfmTensors {
  const Tensor &x, &weight;
  const std::optional<Tensor>& bias;
  const Tensor &real, &imag;
  const std::optional<Tensor>&bn_weight, &bn_bias, &running_mean, &running_var;
  bool training;
  double eps;
  int64_t stride;
};

FfmShape ffm_arguments(const char* op, Place place, const FfmTensors& t);

void ffm_grad_argument(const char* op, Place place, const Tensor& grad_y, const Tensor& x, const FfmShape& s);

}  // namespace lgld
