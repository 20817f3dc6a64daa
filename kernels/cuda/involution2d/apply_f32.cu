#include "apply.cuh"

namespace lgld::cuda {

template cudaError_t launch_apply<float>(int kernel, int stride, bool mirrored, const TileArguments& a, cudaStream_t stream);

}  // namespace lgld::cuda
