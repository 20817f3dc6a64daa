// Launchers of the layer's backward, one instantiation a dtype: backward_<dtype>.cu.
#pragma once
#include <cuda_runtime_api.h>

#include "index.h"
#include "involution_layer.h"

namespace lgld::cuda {

struct BackwardCall {
  InvolutionLayerParams p;
  ConstMap grad_y;
  InvolutionLayerGradients to;
  void *partial, *scratch;  // [tasks][record], [tasks][hidden + 2 K^2][threads]
  BackwardPlan plan;
};

// Hidden channels at a time: LGLD-Net's 16, or what leaves doubles room in 48 KB of shared memory.
constexpr int few_hidden(int64_t compute_bytes) { return compute_bytes == 8 ? 8 : 16; }

template <class E>
cudaError_t launch_backward(const BackwardCall& f, cudaStream_t stream);

}  // namespace lgld::cuda
