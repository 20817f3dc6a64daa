#include "../common/launch.cuh"
#include "device.cuh"
#include "index.h"
#include "involution_layer.h"

namespace lgld::cuda {
namespace {

constexpr int kThreads = LayerTiles::kThreads;
constexpr int kHidden = 16;    // hidden channels that a thread computes at a time: LGLD-Net's are 16
constexpr int kChannels = 32;  // channels of weights in shared memory at a time

// kUnit: x's columns are neighbours, so that a row's taps are at fixed distances.
template <class E, int K, bool kUnit>
__device__ __forceinline__ void layer(const InvolutionLayerParams& p) {
  using T = Compute<E>;
  constexpr int kTaps = K * K, kReach = K / 2;
  __shared__ __align__(16) T weights[kChannels][kHidden];
  __shared__ __align__(16) T span[kTaps][kHidden];
  const LayerTiles tiles(p.batch, p.height, p.width);
  const E* const hidden_weight = static_cast<const E*>(p.hidden_weight);
  const E* const span_weight = static_cast<const E*>(p.span_weight);
  const int64_t step = kUnit ? 1 : p.x.column;
  for (int64_t unit = blockIdx.x; unit < tiles.units; unit += gridDim.x) {
    const LayerTiles::Pixel at = tiles.at(unit, threadIdx.x);
    const bool real = at.row < p.height && at.column < p.width;
    // Threads beyond the edges compute the last pixel, since they load weights with the others.
    const int64_t i = min64(at.row, p.height - 1), j = min64(at.column, p.width - 1);
    const E* const x = static_cast<const E*>(p.x.data) + at.image * p.x.batch + i * p.x.row + j * step;
    T k[kTaps];
#pragma unroll
    for (int t = 0; t < kTaps; ++t) k[t] = widen(static_cast<const E*>(p.span_bias)[t]);
    for (int64_t d = 0; d < p.hidden; d += kHidden) {
      T h[kHidden];
#pragma unroll
      for (int e = 0; e < kHidden; ++e) h[e] = d + e < p.hidden ? widen(static_cast<const E*>(p.hidden_bias)[d + e]) : T(0);
      for (int64_t c = 0; c < p.channels; c += kChannels) {
        const int channels = static_cast<int>(min64(kChannels, p.channels - c));
        __syncthreads();  // the last weights have been read
        for (int n = threadIdx.x; n < kHidden * kChannels; n += kThreads) {
          const int e = n / kChannels, m = n % kChannels;
          weights[m][e] = d + e < p.hidden && m < channels ? widen(hidden_weight[(d + e) * p.channels + c + m]) : T(0);
        }
        __syncthreads();
        const E* from = x + c * p.x.channel;
        for (int m = 0; m < channels; ++m, from += p.x.channel) {
          const T value = widen(*from);
#pragma unroll
          for (int e = 0; e < kHidden; ++e) h[e] = fma(weights[m][e], value, h[e]);
        }
      }
#pragma unroll
      for (int e = 0; e < kHidden; ++e) h[e] *= sigmoid(h[e]);
      __syncthreads();  // the last span has been read
      for (int n = threadIdx.x; n < kTaps * kHidden; n += kThreads) {
        const int t = n / kHidden, e = n % kHidden;
        span[t][e] = d + e < p.hidden ? widen(span_weight[t * p.hidden + d + e]) : T(0);
      }
      __syncthreads();
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
#pragma unroll
        for (int e = 0; e < kHidden; ++e) k[t] = fma(span[t][e], h[e], k[t]);
      }
    }
    if (!real) continue;
    bool row_in[K], column_in[K];
#pragma unroll
    for (int u = 0; u < K; ++u) {
      row_in[u] = i + u - kReach >= 0 && i + u - kReach < p.height;
      column_in[u] = j + u - kReach >= 0 && j + u - kReach < p.width;
    }
    const E* from = x;
    E* to = static_cast<E*>(p.y.data) + at.image * p.y.batch + i * p.y.row + j * p.y.column;
    for (int64_t c = 0; c < p.channels; ++c, from += p.x.channel, to += p.y.channel) {
      T sum = 0;
#pragma unroll
      for (int u = 0; u < K; ++u) {
        const E* const row = from + (u - kReach) * p.x.row;
#pragma unroll
        for (int v = 0; v < K; ++v) {
          T value = 0;
          if (row_in[u] && column_in[v]) value = widen(row[(v - kReach) * step]);
          sum = fma(k[u * K + v], value, sum);
        }
      }
      *to = narrow<E>(sum);
    }
  }
}

// Blocks that a multiprocessor is to hold: what the registers allow without spills.
template <class E, int K>
constexpr int kBlocks = sizeof(E) == 8 ? (K == 3 ? 3 : 1)
                        : K == 7       ? 3
                                       : 4;

template <class E, int K>
__global__ void __launch_bounds__(kThreads, kBlocks<E, K>) layer_kernel(const __grid_constant__ InvolutionLayerParams p) {
  layer<E, K, true>(p);
}

template <class E, int K>
__global__ void __launch_bounds__(kThreads) general_layer_kernel(const __grid_constant__ InvolutionLayerParams p) {
  layer<E, K, false>(p);
}

template <class E, int K>
cudaError_t run(const InvolutionLayerParams& p, cudaStream_t stream) {
  const LayerTiles tiles(p.batch, p.height, p.width);
  return launch(p.x.column == 1 ? layer_kernel<E, K> : general_layer_kernel<E, K>, min64(tiles.units, kMostBlocks), kThreads, 0,
                stream, p);
}

}  // namespace

cudaError_t involution_layer(const InvolutionLayerParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  return with_dtype(p.dtype, [&](auto element) {
    using E = decltype(element);
    switch (p.kernel_size) {
      case 3: return run<E, 3>(p, stream);
      case 5: return run<E, 5>(p, stream);
      case 7: return run<E, 7>(p, stream);
      default: return cudaErrorInvalidValue;
    }
  });
}

}  // namespace lgld::cuda
