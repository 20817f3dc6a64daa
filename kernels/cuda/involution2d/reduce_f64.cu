#include "reduce.cuh"

namespace lgld::cuda {

template cudaError_t launch_reduce<double>(int kernel, int stride, const TileArguments& a, cudaStream_t stream);

}  // namespace lgld::cuda
