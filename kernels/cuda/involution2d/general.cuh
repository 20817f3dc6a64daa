// Involution with any window on tensors of any strides: a thread has a pixel and some channels, whose taps share their weight.
#pragma once
#include <cuda_runtime_api.h>

#include "involution2d.h"

namespace lgld::cuda {

cudaError_t general_forward(const Involution2dParams& p, cudaStream_t stream);
cudaError_t general_grad_x(const Involution2dParams& p, cudaStream_t stream);

// Sums over `slices` parts of a group's channels; with more than one they go to p.scratch, and sum_slices follows.
cudaError_t general_grad_weight(const Involution2dParams& p, int64_t slices, cudaStream_t stream);

// p.out = the sum over `slices` of p.scratch, [slices, batch, groups * taps, out_height, out_width] in compute type, in order.
cudaError_t sum_slices(const Involution2dParams& p, int64_t slices, cudaStream_t stream);

}  // namespace lgld::cuda
