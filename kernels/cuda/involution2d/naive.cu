// One thread an output, everything read from device memory as it comes: the baseline that benchmarks measure against.
#include "../common/dtype.cuh"
#include "../common/launch.cuh"
#include "involution2d.h"

namespace lgld::cuda {
namespace {

constexpr int kThreads = 256;

template <class E>
__global__ void __launch_bounds__(kThreads) naive_kernel(Involution2dParams p, int64_t first) {
  const Involution2dShape& s = p.shape;
  int64_t rest = block_number(first) * kThreads + threadIdx.x;
  if (rest >= s.batch * s.channels * s.out_height * s.out_width) return;
  const int64_t j = rest % s.out_width;
  rest /= s.out_width;
  const int64_t i = rest % s.out_height;
  rest /= s.out_height;
  const int64_t c = rest % s.channels, b = rest / s.channels;
  const int64_t g = c / s.group_channels();
  const E* x = static_cast<const E*>(p.a.data) + b * p.a.batch + c * p.a.channel;
  const E* weight = static_cast<const E*>(p.b.data) + b * p.b.batch + g * s.taps() * p.b.channel + i * p.b.row + j * p.b.column;
  Compute<E> sum = 0;
  for (int64_t u = 0; u < s.kernel_h; ++u) {
    for (int64_t v = 0; v < s.kernel_w; ++v) {
      const int64_t row = i * s.stride_h - s.pad_h + u * s.dilation_h, column = j * s.stride_w - s.pad_w + v * s.dilation_w;
      if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
      sum += widen(weight[(u * s.kernel_w + v) * p.b.channel]) * widen(x[row * p.a.row + column * p.a.column]);
    }
  }
  static_cast<E*>(p.out.data)[b * p.out.batch + c * p.out.channel + i * p.out.row + j * p.out.column] = narrow<E>(sum);
}

}  // namespace

cudaError_t involution2d_naive(const Involution2dParams& p, cudaStream_t stream) {
  const Involution2dShape& s = p.shape;
  const int64_t blocks = ceil_div(s.batch * s.channels * s.out_height * s.out_width, kThreads);
  return with_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    return launch_in_pieces(
        blocks, [&](int64_t first, unsigned count) { return launch(naive_kernel<E>, count, kThreads, 0, stream, p, first); });
  });
}

}  // namespace lgld::cuda
