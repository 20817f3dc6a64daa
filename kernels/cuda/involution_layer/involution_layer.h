// LGLD-Net's involution layer on an NVIDIA GPU, kernel generation and application in one pass:
//
//   h[d,p] = SiLU(sum_c hidden_weight[d,c] x[c,p] + hidden_bias[d])
//   k[t,p] = sum_d span_weight[t,d] h[d,p] + span_bias[t]
//   y[c,p] = sum_t k[t,p] x[c, p + t],    t over a K x K window around p, x zero outside its bounds
//
// (ICITA 2025, DOI 10.1007/978-3-032-21174-3_28; its two convolutions before SiLU are one, W1 (W0 x + b0) + b1.) The map k
// stays in registers. A pixel costs channels (hidden + K^2) + hidden K^2 multiply-adds, and x and y are moved once.
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

}  // namespace lgld::cuda
