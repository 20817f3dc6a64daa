// Forward and grad_x of K x K windows on NCHW maps; index.h says how.
//
// Each channel costs a thread K * (rows + K - 1) loads from shared memory for rows * K * K multiply-adds and one store an
// output; its weights are loaded once for all channels of a slice.
#pragma once
#include "weights.cuh"

namespace lgld::cuda {

template <class E, int kKernel, int kStride, int kRows, int kPixels, bool kOdd, bool kMirrored, int kMostThreads, int kStages>
__global__ void __launch_bounds__(kMostThreads, 2) apply_kernel(const __grid_constant__ TileArguments a, int64_t first) {
  using Taps = ApplyTaps<kKernel, kStride, kMirrored>;
  constexpr int kStep = Taps::kStep, kWindow = Taps::kWindow, kParts = Taps::kParts;
  unsigned char* const shared = shared_memory<unsigned char>();
  constexpr int kSize = sizeof(E);
  const Tiling& t = a.tiling;
  const int stage_elements = t.stage_bytes / kSize;
  const int64_t map_plane = elements(t.map.height, t.map.width);
  // Three times the thread finds its place: before, for and behind the weights, which need most registers.
  {
    const Place<E, kStep> place(a, block_number(first), hidden_thread());
    const E* from = place.map;
    E* staged = reinterpret_cast<E*>(shared) + place.plane * (t.map.bytes / kSize);
#pragma unroll 1
    for (int n = 0; n < kStages - 1; ++n) {
      if (n < place.spot.channels) place.copier.run(t.map, staged + n * stage_elements, from);
      close_group();
      from += map_plane;
    }
  }
  Weights<E, kKernel, kRows, kPixels> weights;
  if constexpr (Taps::kHalves)
    weights.load_halved(t, a.other, find_spot(t, block_number(first), hidden_thread()));
  else if constexpr (kMirrored)
    weights.load_mirrored(t, a.other, find_spot(t, block_number(first), hidden_thread()));
  else
    weights.load_own(t, a.other, find_spot(t, block_number(first), hidden_thread()));

  const Place<E, kStep> place(a, block_number(first), hidden_thread());
  const Spot& spot = place.spot;
  const Copier<E, kStep>& copier = place.copier;
  E* const staged = reinterpret_cast<E*>(shared) + place.plane * (t.map.bytes / kSize);
  const int at = staged_at(t.map, kStep, spot.tile_row, spot.tile_column, spot.row, spot.column);
  const int64_t out_plane = elements(a.height, a.width);
  const int row = spot.row * kParts, column = spot.column * kParts;
  E* out = static_cast<E*>(a.out) + place.channel * out_plane + elements(row, a.width) + column;
  const int rows = column < a.width ? a.height - row : 0;  // of this thread that exist
  const bool second = column + 1 < a.width;
  const E* from = place.map + (kStages - 1) * map_plane;
  const auto copy = [&](int stage) {
    copier.run(t.map, staged + stage * stage_elements, from);
    from += map_plane;
  };
  each_step<kStages>(t.slice_channels, spot.channels, copy, [&](int stage) {
    Compute<E> sum[kRows * kParts][kPixels * kParts] = {};
    const E* p = staged + stage * stage_elements + at;
#pragma unroll
    for (int r = 0; r < (kRows - 1) * kStep + kWindow; ++r) {
      Compute<E> window[(kPixels - 1) * kStep + kWindow];
      read_staged<kPixels == 2 || kStep == 2, kOdd>(p, window);
      p += t.map.pitch;
#pragma unroll
      for (int u = 0; u < kKernel; ++u) {
        const int ahead_of = r - Taps::at(u), o = ahead_of / kStep;
        if (ahead_of < 0 || ahead_of % kStep != 0 || o >= kRows) continue;
#pragma unroll
        for (int v = 0; v < kKernel; ++v)
#pragma unroll
          for (int x = 0; x < kPixels; ++x)
            sum[o * kParts + Taps::part(u)][x * kParts + Taps::part(v)] +=
                weights.tap[o][x][u * kKernel + v] * window[x * kStep + Taps::at(v)];
      }
    }
    write_rows<E, kRows * kParts, kPixels * kParts>(out, sum, rows, second, a.width, a.out_pairs);
    out += out_plane;
  });
}

template <class E, int kKernel, int kStride, bool kOdd, bool kMirrored>
cudaError_t launch_apply(const TileArguments& a, cudaStream_t stream) {
  constexpr TileKernel k = tile_kernel(kKernel, sizeof(E), kMirrored ? TilePass::kGradX : TilePass::kForward, kStride);
  const Tiling& t = a.tiling;
  const int threads = t.lanes * t.thread_rows * t.planes;
  return launch_in_pieces(t.blocks, [&](int64_t first, unsigned blocks) {
    return launch(apply_kernel<E, kKernel, kStride, k.rows, k.pixels, kOdd, kMirrored, k.most_threads, k.stages>, blocks,
                  threads, t.stage_bytes * k.stages, stream, a, first);
  });
}

// Forward, or grad_x where `mirrored`.
template <class E>
cudaError_t launch_apply(int kernel, int stride, bool mirrored, const TileArguments& a, cudaStream_t stream) {
  if constexpr (sizeof(E) < 8) {
    if (stride == 2) {  // forward's columns are pairs, and "same" padding is odd
      if (mirrored)
        return kernel == 3 ? launch_apply<E, 3, 2, false, true>(a, stream) : launch_apply<E, 7, 2, false, true>(a, stream);
      return kernel == 3 ? launch_apply<E, 3, 2, true, false>(a, stream) : launch_apply<E, 7, 2, true, false>(a, stream);
    }
  }
  const auto with_kernel = [&](auto odd, auto mirror) {
    constexpr bool kOdd = decltype(odd)::value, kMirrored = decltype(mirror)::value;
    switch (kernel) {
      case 3: return launch_apply<E, 3, 1, kOdd, kMirrored>(a, stream);
      case 5: return launch_apply<E, 5, 1, kOdd, kMirrored>(a, stream);
      default: return launch_apply<E, 7, 1, kOdd, kMirrored>(a, stream);
    }
  };
  const auto with_odd = [&](auto odd) {
    return mirrored ? with_kernel(odd, std::true_type{}) : with_kernel(odd, std::false_type{});
  };
  if constexpr (sizeof(E) == 2)
    if (a.tiling.map.origin_w % 2 != 0) return with_odd(std::true_type{});
  return with_odd(std::false_type{});
}

}  // namespace lgld::cuda
