// grad_weight of K x K windows on NCHW maps; index.h says how.
//
// The sums over channels stay in registers, added in the channels' order. Where that leaves too few blocks, each slice of the
// channels has sums of its own in device memory, and sum_slices adds those in the slices' order.
#pragma once
#include "tiles.cuh"

namespace lgld::cuda {

template <class E, int kKernel, int kStride, int kRows, int kPixels, bool kOdd, int kMostThreads, int kStages>
__global__ void __launch_bounds__(kMostThreads, kBlocksTogether)
    reduce_kernel(const __grid_constant__ TileArguments a, int64_t first) {
  constexpr int kTaps = kKernel * kKernel;
  unsigned char* const shared = shared_memory<unsigned char>();
  const Tiling& t = a.tiling;
  const int tile_threads = t.lanes * t.thread_rows, thread = static_cast<int>(threadIdx.x);
  const Spot spot = find_spot(t, block_number(first), thread);
  const int plane = thread / tile_threads;
  const Copier<E, kStride> copier(t.map, spot, thread - plane * tile_threads, tile_threads);
  const Copier<E, 1> other_copier(t.other, spot, thread - plane * tile_threads, tile_threads);

  constexpr int kSize = sizeof(E);
  const int64_t map_plane = elements(t.map.height, t.map.width), out_plane = elements(t.out_height, t.out_width);
  const int64_t channel = spot.map * t.group_channels + int64_t{spot.slice} * t.slice_channels;
  const E* from = static_cast<const E*>(a.map) + channel * map_plane;
  const E* other_from = static_cast<const E*>(a.other) + channel * out_plane;
  const int stage_elements = t.stage_bytes / kSize;
  E* const staged = reinterpret_cast<E*>(shared) + plane * (t.map.bytes / kSize);
  E* const other_staged = reinterpret_cast<E*>(shared) + (t.planes * t.map.bytes + plane * t.other.bytes) / kSize;
  const int at = staged_at(t.map, kStride, spot.tile_row, spot.tile_column, spot.row, spot.column);
  const int other_at = staged_at(t.other, 1, spot.tile_row, spot.tile_column, spot.row, spot.column);

#pragma unroll
  for (int n = 0; n < kStages - 1; ++n) {
    if (n < spot.channels) {
      copier.run(t.map, staged + n * stage_elements, from + n * map_plane);
      other_copier.run(t.other, other_staged + n * stage_elements, other_from + n * out_plane);
    }
    close_group();
  }

  Compute<E> sum[kRows][kPixels][kTaps] = {};
  from += (kStages - 1) * map_plane, other_from += (kStages - 1) * out_plane;
  const auto copy = [&](int stage) {
    copier.run(t.map, staged + stage * stage_elements, from);
    other_copier.run(t.other, other_staged + stage * stage_elements, other_from);
    from += map_plane, other_from += out_plane;
  };
  each_step<kStages>(t.slice_channels, spot.channels, copy, [&](int stage) {
    Compute<E> gradient[kRows][kPixels];
    const E* p = other_staged + stage * stage_elements + other_at;
#pragma unroll
    for (int o = 0; o < kRows; ++o) read_staged<kPixels == 2, false>(p + o * t.other.pitch, gradient[o]);
    p = staged + stage * stage_elements + at;
#pragma unroll
    for (int r = 0; r < (kRows - 1) * kStride + kKernel; ++r) {
      Compute<E> window[(kPixels - 1) * kStride + kKernel];
      read_staged<kPixels == 2 || kStride == 2, kOdd>(p, window);
      p += t.map.pitch;
#pragma unroll
      for (int u = 0; u < kKernel; ++u) {
        const int ahead_of = r - u, o = ahead_of / kStride;
        if (ahead_of < 0 || ahead_of % kStride != 0 || o >= kRows) continue;
#pragma unroll
        for (int v = 0; v < kKernel; ++v)
#pragma unroll
          for (int x = 0; x < kPixels; ++x) sum[o][x][u * kKernel + v] += gradient[o][x] * window[x * kStride + v];
      }
    }
  });

  // Found again: the loop has no registers to keep it in.
  write_sums<E, kRows, kPixels, kTaps>(a, find_spot(t, block_number(first), hidden_thread()), sum);
}

template <class E, int kKernel, int kStride, bool kOdd>
cudaError_t launch_reduce(const TileArguments& a, cudaStream_t stream) {
  constexpr TileKernel k = tile_kernel(kKernel, sizeof(E), TilePass::kGradWeight, kStride);
  const Tiling& t = a.tiling;
  const int threads = t.lanes * t.thread_rows * t.planes;
  return launch_in_pieces(t.blocks, [&](int64_t first, unsigned blocks) {
    return launch(reduce_kernel<E, kKernel, kStride, k.rows, k.pixels, kOdd, k.most_threads, k.stages>, blocks, threads,
                  t.stage_bytes * k.stages, stream, a, first);
  });
}

template <class E>
cudaError_t launch_reduce(int kernel, int stride, const TileArguments& a, cudaStream_t stream) {
  if constexpr (sizeof(E) < 8)
    if (stride == 2) return kernel == 3 ? launch_reduce<E, 3, 2, true>(a, stream) : launch_reduce<E, 7, 2, true>(a, stream);
  const auto with_kernel = [&](auto odd) {
    constexpr bool kOdd = decltype(odd)::value;
    switch (kernel) {
      case 3: return launch_reduce<E, 3, 1, kOdd>(a, stream);
      case 5: return launch_reduce<E, 5, 1, kOdd>(a, stream);
      default: return launch_reduce<E, 7, 1, kOdd>(a, stream);
    }
  };
  if constexpr (sizeof(E) == 2)
    if (a.tiling.map.origin_w % 2 != 0) return with_kernel(std::true_type{});
  return with_kernel(std::false_type{});
}

}  // namespace lgld::cuda
