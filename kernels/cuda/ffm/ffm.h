// LGLD-Net's Fourier feature mixer on a CUDA device. Formulas: kernels/cpu/ffm/ffm.h; here as there z is linear in the
// features, so the statistics of training come from the features' moments and everything is folded in double, by small kernels
// on the device: the host waits for nothing and a CUDA graph can hold the calls.
//
// Every function only puts kernels on the stream. Sums are added in an order that the shape alone decides, without atomics:
// results are equal to the last bit on every run.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../../dtype.h"
#include "../../ffm_shape.h"
#include "index.h"

namespace lgld::cuda {

// A layer's parameter, of any of the four types; data is null where there is none.
struct FfmVector {
  const void* data;
  Dtype type;
  int64_t step;
};

struct FfmMatrix {
  const void* data;
  Dtype type;
  int64_t row, column;
};

struct FfmArguments {
  FfmShape shape;
  Dtype type;     // of x, y and their gradients; computed in double for kFloat64, else in float
  bool training;  // the statistics are the batch's own; else the running ones
  double eps;
  FfmMap x;
  FfmMatrix weight;                     // [channels][features]
  FfmVector bias;                       // [channels], may be null
  FfmVector real, imag;                 // [channels / 2]
  FfmVector bn_weight, bn_bias;         // [channels], may be null
  FfmVector running_mean, running_var;  // [channels], null in training
};

// Contiguous results, each in the type of its parameter; null where there is no such parameter.
struct FfmGradients {
  void *weight, *bias, *real, *imag, *bn_weight, *bn_bias;
};

// Bytes of device memory that a call needs for its own use, aligned to 256; nothing in it outlives the call.
size_t ffm_forward_workspace(const FfmArguments& arguments);
size_t ffm_backward_workspace(const FfmArguments& arguments, const FfmMap& grad_y, bool need_x);

// Fills y [batch][channels][out_height][out_width] and, in training, mean and var [channels]: double for kFloat64, else float.
// With a batch of 0 the statistics are NaN.
cudaError_t ffm_forward(const FfmArguments& arguments, const FfmMap& y, void* mean, void* var, void* workspace,
                        cudaStream_t stream);

// Fills the gradients of the parameters and, unless its data is null, grad_x, of x's shape and any strides. grad_y is read once
// where the image has 1 or 3 channels. The batch must not be empty.
cudaError_t ffm_backward(const FfmArguments& arguments, const FfmMap& grad_y, const FfmMap& grad_x,
                         const FfmGradients& gradients, void* workspace, cudaStream_t stream);

}  // namespace lgld::cuda
