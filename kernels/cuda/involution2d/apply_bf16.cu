#include "apply.cuh"

namespace lgld::cuda {

template cudaError_t launch_apply<__nv_bfloat16>(int kernel, int stride, bool mirrored, const TileArguments& a,
                                                 cudaStream_t stream);

}  // namespace lgld::cuda
