// What an involution call's arguments must be, on every device: each function raises where they don't fit, naming the argument,
// what it was and what it must be, and returns the sizes.
#pragma once
#include "csrc/tensors.h"
#include "kernels/involution2d_shape.h"

namespace lgld {

// kernel_size, stride, padding, dilation and groups as the schema has them.
struct Involution2dWindow {
  const Ints &kernel_size, &stride, &padding, &dilation;
  int64_t groups;
};

Involution2dShape involution2d_arguments(const char* op, Place place, const Tensor& x, const Tensor& weight,
                                         const Involution2dWindow& window);

Involution2dShape involution2d_grad_x_arguments(const char* op, Place place, const Tensor& grad_y, const Tensor& weight,
                                                int64_t height, int64_t width, const Involution2dWindow& window);

Involution2dShape involution2d_grad_weight_arguments(const char* op, Place place, const Tensor& grad_y, const Tensor& x,
                                                     const Involution2dWindow& window);

// Sizes of x (and grad_x), weight (and grad_weight), and of y (and grad_y).
Ints involution2d_x_size(const Involution2dShape& s);
Ints involution2d_weight_size(const Involution2dShape& s);
Ints involution2d_y_size(const Involution2dShape& s);

}  // namespace lgld
