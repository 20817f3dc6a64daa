// What the layer's kernels share.
#pragma once
#include <cuda_runtime.h>

#include <cmath>

#include "../common/dtype.cuh"

namespace lgld::cuda {

template <class T>
__device__ __forceinline__ T sigmoid(T u) {
  if constexpr (sizeof(T) == 8)
    return 1 / (1 + exp(-u));
  else
    return __fdividef(1.0f, 1.0f + expf(-u));
}

}  // namespace lgld::cuda
