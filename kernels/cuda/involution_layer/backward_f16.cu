#include "backward.cuh"

namespace lgld::cuda {

template cudaError_t launch_backward<__half>(const BackwardCall& f, cudaStream_t stream);

}  // namespace lgld::cuda
