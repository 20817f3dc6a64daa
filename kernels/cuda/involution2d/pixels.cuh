// The kernels of pixels.h. Rows of the map that several outputs need come from the first-level cache.
#pragma once
#include "../common/dtype.cuh"
#include "../common/launch.cuh"
#include "../common/reduce.cuh"
#include "launchers.h"

namespace lgld::cuda {

template <class E, int kKernel, bool kMirrored>
__global__ void __launch_bounds__(kPixelThreads, kBlocksTogether)
    pixels_apply_kernel(const __grid_constant__ PixelArguments a, int64_t first) {
  constexpr int kVector = kLanes<E>, kTaps = kKernel * kKernel;
  constexpr int kColumns = pixel_columns(kKernel, sizeof(E)), kWindow = kColumns + kKernel - 1;
  using Vector = Pack<E, kVector>;
  const PixelSpot spot = find_pixels(a.tiling, block_number(first), static_cast<int>(threadIdx.x));
  if (spot.vector >= a.tiling.vectors || spot.column >= a.out_width) return;
  const int64_t channel = spot.vector * kVector, group = quotient(channel, a.group_channels);
  const int64_t first_column = spot.column - a.origin_w;
  const E* map = static_cast<const E*>(a.map.data) + spot.batch * a.map.batch + channel + first_column * a.map.column;
  const E* weight = static_cast<const E*>(a.weight.data) + spot.batch * a.weight.batch + group * kTaps * a.weight.channel +
                    (kMirrored ? first_column : spot.column) * a.weight.column;
  E* out = static_cast<E*>(a.out.data) + spot.batch * a.out.batch + channel + spot.column * a.out.column;
  const int64_t rows = min64(kPixelRows, a.out_height - spot.row);
#pragma unroll 1
  for (int64_t i = spot.row; i < spot.row + rows; ++i) {
    Compute<E> sum[kColumns][kVector] = {};
#pragma unroll 1
    for (int u = 0; u < kKernel; ++u) {
      const int64_t row = i - a.origin_h + u;
      const bool in_row = row >= 0 && row < a.height;
      Vector window[kWindow];
      Compute<E> w[kColumns][kKernel];
      const E* from = map + row * a.map.row;
#pragma unroll
      for (int q = 0; q < kWindow; ++q) {
        window[q] = Vector{};
        if (in_row && first_column + q >= 0 && first_column + q < a.width) window[q] = *reinterpret_cast<const Vector*>(from);
        from += a.map.column;
      }
      const E* tap = weight + (kMirrored ? (kTaps - 1 - u * kKernel) * a.weight.channel + row * a.weight.row
                                         : u * kKernel * a.weight.channel + i * a.weight.row);
#pragma unroll
      for (int v = 0; v < kKernel; ++v) {
        const E* at = tap;
#pragma unroll
        for (int x = 0; x < kColumns; ++x) {
          const int64_t column = first_column + x + v;
          const bool real = kMirrored ? in_row && column >= 0 && column < a.width : spot.column + x < a.out_width;
          w[x][v] = real ? widen(*at) : Compute<E>(0);
          at += a.weight.column;
        }
        tap += kMirrored ? a.weight.column - a.weight.channel : a.weight.channel;
      }
#pragma unroll
      for (int q = 0; q < kWindow; ++q) {
        Compute<E> value[kVector];
#pragma unroll
        for (int e = 0; e < kVector; ++e) value[e] = widen(window[q].element[e]);
#pragma unroll
        for (int x = 0; x < kColumns; ++x) {
          const int v = q - x;
          if (v < 0 || v >= kKernel) continue;
#pragma unroll
          for (int e = 0; e < kVector; ++e) sum[x][e] += w[x][v] * value[e];
        }
      }
    }
    E* to = out + i * a.out.row;
#pragma unroll
    for (int x = 0; x < kColumns; ++x) {
      if (spot.column + x < a.out_width) store(to, sum[x]);
      to += a.out.column;
    }
  }
}

// Neighbouring outputs of a work of grad_weight, and rows of the window whose sums are in registers at once, up to 36. With
// less than all rows the work runs once for each, and reads its pixels again, from the first-level cache.
constexpr int reduce_columns(int kernel, int element_bytes) {
  if (element_bytes == 8) return 2;
  if (element_bytes == 4) return kernel == 7 ? 3 : 4;
  return kernel == 3 ? 3 : kernel == 5 ? 4 : 2;
}
constexpr int reduce_rows(int kernel) { return kernel == 3 ? 3 : 1; }

template <class E, int kKernel, int kLanesInGroup>
__global__ void __launch_bounds__(kPixelThreads, kBlocksTogether)
    pixels_reduce_kernel(const __grid_constant__ PixelReduceArguments a, int64_t first) {
  constexpr int kVector = kLanes<E>, kTaps = kKernel * kKernel, kColumns = reduce_columns(kKernel, sizeof(E));
  constexpr int kWindow = kColumns + kKernel - 1, kRows = reduce_rows(kKernel), kPart = kRows * kKernel;
  using Vector = Pack<E, kVector>;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanesInGroup;
  int64_t number = block_number(first) * (kPixelThreads / kLanesInGroup) + thread / kLanesInGroup;
  const bool real = number < a.works;  // nobody returns before the shuffles
  const auto take = [&number](int64_t size) {
    const int64_t rest = quotient(number, size), found = number - rest * size;
    number = rest;
    return found;
  };
  const int64_t column = take(a.column_groups) * kColumns, i = take(a.out_height), group = take(a.groups), batch = number;
  const int64_t first_column = column - a.pad_w, channel = group * a.group_channels;
  const E* map = static_cast<const E*>(a.map.data) + batch * a.map.batch + channel + first_column * a.map.column +
                 (i - a.pad_h) * a.map.row;
  const E* from = static_cast<const E*>(a.gradient.data) + batch * a.gradient.batch + channel + i * a.gradient.row +
                  column * a.gradient.column;
  E* out = static_cast<E*>(a.out.data) + batch * a.out.batch + group * kTaps * a.out.channel + i * a.out.row;
#pragma unroll 1
  for (int first_row = 0; first_row < kKernel; first_row += kRows) {
    Compute<E> sum[kColumns * kPart] = {};
#pragma unroll 1
    for (int64_t c = lane * kVector; real && c < a.group_channels; c += kLanesInGroup * kVector) {
      Compute<E> gradient[kColumns][kVector] = {};
      const E* at = from + c;
#pragma unroll
      for (int x = 0; x < kColumns; ++x) {
        if (column + x < a.out_width) load(at, gradient[x]);
        at += a.gradient.column;
      }
      const E* map_row = map + c + first_row * a.map.row;
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        const int64_t row = i - a.pad_h + first_row + u;
        const bool in_row = row >= 0 && row < a.height;
        Vector window[kWindow];
        at = map_row;
#pragma unroll
        for (int q = 0; q < kWindow; ++q) {
          window[q] = Vector{};
          if (in_row && first_column + q >= 0 && first_column + q < a.width) window[q] = *reinterpret_cast<const Vector*>(at);
          at += a.map.column;
        }
        map_row += a.map.row;
#pragma unroll
        for (int q = 0; q < kWindow; ++q) {
          Compute<E> value[kVector];
#pragma unroll
          for (int e = 0; e < kVector; ++e) value[e] = widen(window[q].element[e]);
#pragma unroll
          for (int x = 0; x < kColumns; ++x) {
            const int v = q - x;
            if (v < 0 || v >= kKernel) continue;
#pragma unroll
            for (int e = 0; e < kVector; ++e) sum[x * kPart + u * kKernel + v] += gradient[x][e] * value[e];
          }
        }
      }
    }
    scatter_sums<kLanesInGroup>(sum, [&](int index, Compute<E> value) {
      const int x = index / kPart, tap = first_row * kKernel + index - x * kPart;
      if (real && column + x < a.out_width) out[tap * a.out.channel + (column + x) * a.out.column] = narrow<E>(value);
    });
  }
}

template <class E, int kKernel>
cudaError_t launch_pixels_apply(bool mirrored, const PixelArguments& a, cudaStream_t stream) {
  const int threads = a.tiling.lanes * a.tiling.thread_columns;
  return launch_in_pieces(a.tiling.blocks, [&](int64_t first, unsigned blocks) {
    if (mirrored) return launch(pixels_apply_kernel<E, kKernel, true>, blocks, threads, 0, stream, a, first);
    return launch(pixels_apply_kernel<E, kKernel, false>, blocks, threads, 0, stream, a, first);
  });
}

template <class E>
cudaError_t launch_pixels_apply(int kernel, bool mirrored, const PixelArguments& a, cudaStream_t stream) {
  switch (kernel) {
    case 3: return launch_pixels_apply<E, 3>(mirrored, a, stream);
    case 5: return launch_pixels_apply<E, 5>(mirrored, a, stream);
    default: return launch_pixels_apply<E, 7>(mirrored, a, stream);
  }
}

template <class E, int kKernel>
cudaError_t launch_pixels_reduce(PixelReduceArguments a, int64_t batch, cudaStream_t stream) {
  a.column_groups = ceil_div(a.out_width, reduce_columns(kKernel, sizeof(E)));
  a.works = batch * a.groups * a.out_height * a.column_groups;
  const bool wide = a.group_channels >= 8 * kLanes<E>;  // 8 lanes read a whole 128-byte line of a pixel
  return launch_in_pieces(ceil_div(a.works, kPixelThreads / (wide ? 8 : 2)), [&](int64_t first, unsigned blocks) {
    if (wide) return launch(pixels_reduce_kernel<E, kKernel, 8>, blocks, kPixelThreads, 0, stream, a, first);
    return launch(pixels_reduce_kernel<E, kKernel, 2>, blocks, kPixelThreads, 0, stream, a, first);
  });
}

template <class E>
cudaError_t launch_pixels_reduce(int kernel, const PixelReduceArguments& a, int64_t batch, cudaStream_t stream) {
  switch (kernel) {
    case 3: return launch_pixels_reduce<E, 3>(a, batch, stream);
    case 5: return launch_pixels_reduce<E, 5>(a, batch, stream);
    default: return launch_pixels_reduce<E, 7>(a, batch, stream);
  }
}

}  // namespace lgld::cuda
