#include "pixels.cuh"

namespace lgld::cuda {

template cudaError_t launch_pixels_apply<__nv_bfloat16>(int kernel, bool mirrored, const PixelArguments& a,
                                                        cudaStream_t stream);
template cudaError_t launch_pixels_reduce<__nv_bfloat16>(int kernel, const PixelReduceArguments& a, int64_t batch,
                                                         cudaStream_t stream);

}  // namespace lgld::cuda
