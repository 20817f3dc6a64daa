// Involution on an NVIDIA GPU: forward and both gradients.
//
//   y[b,c,i,j] = sum_{u,v} weight[b, g(c)*Kh*Kw + u*Kw + v, i, j] * x[b, c, i*sh - ph + u*dh, j*sw - pw + v*dw]
//
// with g(c) = c / (channels / groups) and x zero outside its bounds (D. Li et al., "Involution", CVPR 2021, eq. 4).
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../dtype.h"
#include "../../involution2d_shape.h"

namespace lgld::cuda {

// A tensor of four dimensions; strides in elements.
struct Map {
  void* data;
  int64_t batch, channel, row, column;
};

struct ConstMap {
  const void* data;
  int64_t batch, channel, row, column;
};

struct Involution2dParams {
  Involution2dShape shape;
  Dtype dtype;
  // forward: x, weight, y; grad_x: grad_y, weight, grad_x; grad_weight: grad_y, x, grad_weight.
  ConstMap a, b;
  Map out;
  // grad_weight alone: room for involution2d_scratch_bytes(), 16-byte aligned; may be null where that is 0.
  void* scratch;
};

// Tensors of any strides give right results. The kernels for K x K windows (K 3, 5, 7, stride and dilation 1) take dense
// tensors: all NCHW, or the map and the result with channels as neighbours (torch.channels_last). Stride 2, dilation 1 and odd
// padding have kernels for dense NCHW tensors of float and 16-bit elements, K 3 and 7.
cudaError_t involution2d(const Involution2dParams& p, cudaStream_t stream);
cudaError_t involution2d_grad_x(const Involution2dParams& p, cudaStream_t stream);
cudaError_t involution2d_grad_weight(const Involution2dParams& p, cudaStream_t stream);

struct Involution2dGradients {
  Involution2dShape shape;
  Dtype dtype;
  ConstMap grad_y, x, weight;
  Map grad_x, grad_weight;
  void* scratch;  // as above, of involution2d_gradients_scratch_bytes()
};

// Both gradients in one kernel, which reads grad_y and x once, where there is one: dense NCHW tensors of float or 16-bit
// elements, K 3, stride and dilation 1, padding 1. cudaErrorInvalidValue elsewhere. Whether there is one for dense NCHW tensors
// of a shape can be asked before there are any.
bool has_involution2d_gradients(const Involution2dShape& s, Dtype dtype);
cudaError_t involution2d_gradients(const Involution2dGradients& p, cudaStream_t stream);
int64_t involution2d_gradients_scratch_bytes(const Involution2dGradients& p);

// Device memory that grad_weight needs where it splits the sum over channels; `p` is complete but for scratch.
int64_t involution2d_scratch_bytes(const Involution2dParams& p);

// Forward with one thread for each output, as most public kernels have it: what benchmarks compare with.
cudaError_t involution2d_naive(const Involution2dParams& p, cudaStream_t stream);

}  // namespace lgld::cuda
