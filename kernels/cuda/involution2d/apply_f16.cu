#include "apply.cuh"

namespace lgld::cuda {

template cudaError_t launch_apply<__half>(int kernel, int stride, bool mirrored, const TileArguments& a, cudaStream_t stream);

}  // namespace lgld::cuda
