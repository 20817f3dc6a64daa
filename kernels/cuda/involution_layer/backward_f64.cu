#include "backward.cuh"

namespace lgld::cuda {

template cudaError_t launch_backward<double>(const BackwardCall& f, cudaStream_t stream);

}  // namespace lgld::cuda
