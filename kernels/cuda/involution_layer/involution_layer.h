// LGLD-Net's involution layer on an NVIDIA GPU, kernel generation and application in one pass:
//
//   h[d,p] = SiLU(sum_c hidden_weight[d,c] x[c,p] + hidden_bias[d])
//   k[t,p] = sum_d span_weight[t,d] h[d,p] + span_bias[t]
//   y[c,p] = sum_t k[t,p] x[c, p + t],    t over a K x K window around p, x zero outside its bounds
//
// (ICITA 2025, DOI 10.1007/978-3-032-21174-3_28; its two convolutions before SiLU are one, W1 (W0 x + b0) + b1.) The map k
// stays in registers. A pixel costs channels (hidden + K^2) + hidden K^2 multiply-adds, and x and y are moved once.
//
// Backward, with h and k made again and the map of k's gradients in registers too:
//
//   grad_k[t,p] = sum_c grad_y[c,p] x[c, p + t]
//   grad_h[d,p] = (sum_t span_weight[t,d] grad_k[t,p]) SiLU'(its argument)
//   grad_x[c,p] = sum_t k[t, p - t] grad_y[c, p - t] + sum_d hidden_weight[d,c] grad_h[d,p]
//   grad_hidden_weight[d,c] = sum_p grad_h[d,p] x[c,p]     grad_hidden_bias[d] = sum_p grad_h[d,p]
//   grad_span_weight[t,d]   = sum_p grad_k[t,p] h[d,p]     grad_span_bias[t]   = sum_p grad_k[t,p]
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../dtype.h"
#include "../involution2d/involution2d.h"

namespace lgld::cuda {

struct InvolutionLayerParams {
  int64_t batch, channels, hidden, height, width;
  int64_t kernel_size;  // 3, 5 or 7
  Dtype dtype;          // of everything; computed in double for kFloat64, else in float
  ConstMap x;
  Map y;
  const void *hidden_weight, *hidden_bias, *span_weight, *span_bias;  // [hidden][channels], [hidden], [K^2][hidden], [K^2]
};

// Tensors of any strides; parameters are contiguous. Fast where x's and y's columns are neighbours.
cudaError_t involution_layer(const InvolutionLayerParams& p, cudaStream_t stream);

// Contiguous, of the sizes and dtype of what they are the gradients of. x.data may be null: it is then left out.
struct InvolutionLayerGradients {
  Map x;
  void *hidden_weight, *hidden_bias, *span_weight, *span_bias;
};

// Bytes that backward needs, at least 16-byte aligned. p.y is not looked at, here and below.
int64_t involution_layer_backward_workspace(const InvolutionLayerParams& p);

// All gradients, for a batch of at least one image; the columns of x and of grad_y must be neighbours. Sums over pixels are
// added in an order that the sizes alone decide. Fast up to 16 hidden channels (8 in double).
cudaError_t involution_layer_backward(const InvolutionLayerParams& p, const ConstMap& grad_y,
                                      const InvolutionLayerGradients& to, void* workspace, cudaStream_t stream);

}  // namespace lgld::cuda
