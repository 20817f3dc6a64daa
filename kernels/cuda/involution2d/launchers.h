// Launchers of the K x K kernels, one instantiation a dtype: apply_<dtype>.cu, reduce_<dtype>.cu, pixels_<dtype>.cu. Their
// arguments are the kernels' parameters.
#pragma once
#include <cuda_runtime_api.h>

#include "index.h"
#include "involution2d.h"
#include "pixels.h"

namespace lgld::cuda {

// Blocks that a multiprocessor's registers have to hold together. ptxas for compute capability 10 keeps more values alive.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kBlocksTogether = 1;
#else
constexpr int kBlocksTogether = 2;
#endif

// Dimensions and strides of a launch on NCHW maps.
struct TileArguments {
  Tiling tiling;
  const void *map, *other;  // apply: weight; reduce: grad_y
  void *out, *partial;
  bool out_pairs;         // two neighbours of the result may be written at once
  int32_t height, width;  // of apply's result
};

// Forward: map x of height x width. grad_x, where kMirrored: map grad_y, whose pixels also say which weights, the last tap
// first.
struct PixelArguments {
  PixelTiling tiling;
  ConstMap map, weight;
  Map out;
  int64_t height, width, origin_h, origin_w;  // of the map; as in index.h
  int64_t out_height, out_width;
  int64_t group_channels;
};

// What both gradients in one kernel have beside map x, other grad_y and out grad_weight.
struct GradientArguments {
  const void* weight;
  void* grad_x;
};

struct PixelReduceArguments {
  ConstMap map, gradient;
  Map out;
  int64_t height, width, pad_h, pad_w;  // of the map
  int64_t out_height, out_width;
  int64_t groups, group_channels;
  int64_t column_groups, works;  // of kColumns outputs in a row; of all rows, groups and images
};

// Forward, or grad_x where `mirrored`, on NCHW maps, where has_tile_kernel.
template <class E>
cudaError_t launch_apply(int kernel, int stride, bool mirrored, const TileArguments& a, cudaStream_t stream);

// grad_weight on NCHW maps.
template <class E>
cudaError_t launch_reduce(int kernel, int stride, const TileArguments& a, cudaStream_t stream);

// grad_weight and grad_x on NCHW maps, where has_gradients_kernel; a.out_pairs holds for both. E is not double.
template <class E>
cudaError_t launch_gradients(const TileArguments& a, const GradientArguments& g, cudaStream_t stream);

// Forward, grad_x and grad_weight on maps whose channels are neighbours.
template <class E>
cudaError_t launch_pixels_apply(int kernel, bool mirrored, const PixelArguments& a, cudaStream_t stream);
template <class E>
cudaError_t launch_pixels_reduce(int kernel, const PixelReduceArguments& a, int64_t batch, cudaStream_t stream);

}  // namespace lgld::cuda
