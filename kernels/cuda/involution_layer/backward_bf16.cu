#include "backward.cuh"

namespace lgld::cuda {

template cudaError_t launch_backward<__nv_bfloat16>(const BackwardCall& f, cudaStream_t stream);

}  // namespace lgld::cuda
