// Forward and grad_x of K x K windows on NCHW maps; index.h says how.
//
// Each channel costs a thread K * (rows + K - 1) loads from shared memory for rows * K * K multiply-adds and one store an
// output; its weights are loaded once for all channels of a slice.
#pragma once
#include "tiles.cuh"

namespace lgld::cuda {

// How a thread's outputs, their windows and their taps belong together.
template <int kKernel, int kStride, bool kMirrored>
struct ApplyTaps {
  static constexpr TilePass kPass = kMirrored ? TilePass::kGradX : TilePass::kForward;
  static constexpr bool kHalves = kMirrored && kStride == 2;
  static constexpr int kStep = kMirrored ? 1 : kStride;                  // rows of the map between outputs
  static constexpr int kWindow = kHalves ? (kKernel + 1) / 2 : kKernel;  // rows of the map that an output needs
  static constexpr int kParts = kHalves ? 2 : 1;                         // rows of the result that an output is
  static constexpr int at(int tap) { return taken(tap, kKernel, kStride, kPass); }
  static constexpr int part(int tap) { return kHalves ? (tap + 1) % 2 : 0; }
};

// The weights of `rows` x `pixels` outputs.
template <class E, int kKernel, int kRows, int kPixels>
struct Weights {
  Compute<E> tap[kRows][kPixels][kKernel * kKernel];

  __device__ __forceinline__ void load_own(const TileArguments& a, const Spot& spot) {
    const Tiling& t = a.tiling;
    const int64_t plane = elements(t.out_height, t.out_width);
    const E* from =
        static_cast<const E*>(a.other) + spot.map * (kKernel * kKernel) * plane + elements(spot.row, t.out_width) + spot.column;
    const int rows = spot.real && spot.column < t.out_width ? t.out_height - spot.row : 0;
    const bool second = spot.column + 1 < t.out_width;
#pragma unroll
    for (int k = 0; k < kKernel * kKernel; ++k) {
      const E* at = from;
#pragma unroll
      for (int o = 0; o < kRows; ++o) {
        tap[o][0][k] = o < rows ? widen(at[0]) : Compute<E>(0);
        if (kPixels == 2) tap[o][kPixels - 1][k] = o < rows && second ? widen(at[1]) : Compute<E>(0);
        at += t.out_width;
      }
      from += plane;
    }
  }

  // grad_x with stride 2, where kPixels is 1.
  __device__ __forceinline__ void load_halved(const TileArguments& a, const Spot& spot) {
    using Taps = ApplyTaps<kKernel, 2, true>;
    const Tiling& t = a.tiling;
    const Staged& s = t.map;
    const int64_t plane = elements(s.height, s.width);
    const int first_row = spot.row - s.origin_h, first_column = spot.column - s.origin_w;
    const E* from =
        static_cast<const E*>(a.other) + spot.map * (kKernel * kKernel) * plane + elements(first_row, s.width) + first_column;
#pragma unroll
    for (int k = 0; k < kKernel * kKernel; ++k) {
      const int u = Taps::at(k / kKernel), v = Taps::at(k % kKernel), j = first_column + v;
      const E* at = from + elements(u, s.width) + v;
#pragma unroll
      for (int o = 0; o < kRows; ++o) {
        const int i = first_row + o + u;
        tap[o][0][k] = spot.real && i >= 0 && i < s.height && j >= 0 && j < s.width ? widen(*at) : Compute<E>(0);
        at += s.width;
      }
      from += plane;
    }
  }

  __device__ __forceinline__ void load_mirrored(const TileArguments& a, const Spot& spot) {
    const Tiling& t = a.tiling;
    const Staged& s = t.map;
    const int64_t plane = elements(s.height, s.width);
    const int first_row = spot.row - s.origin_h, first_column = spot.column - s.origin_w;
    const E* from = static_cast<const E*>(a.other) + (spot.map * (kKernel * kKernel) + kKernel * kKernel - 1) * plane +
                    elements(first_row, s.width) + first_column;
#pragma unroll
    for (int k = 0; k < kKernel * kKernel; ++k) {
      const E* at = from + k % kKernel;
#pragma unroll
      for (int o = 0; o < kRows; ++o) {
        const int i = first_row + o + k / kKernel;
        const bool in_row = spot.real && i >= 0 && i < s.height;
#pragma unroll
        for (int p = 0; p < kPixels; ++p) {
          const int j = first_column + p + k % kKernel;
          tap[o][p][k] = in_row && j >= 0 && j < s.width ? widen(at[p]) : Compute<E>(0);
        }
        at += s.width;
      }
      from -= plane;
      if (k % kKernel == kKernel - 1) from += s.width;
    }
  }
};

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
    const Place<E> place(a, block_number(first), hidden_thread());
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
    weights.load_halved(a, find_spot(t, block_number(first), hidden_thread()));
  else if constexpr (kMirrored)
    weights.load_mirrored(a, find_spot(t, block_number(first), hidden_thread()));
  else
    weights.load_own(a, find_spot(t, block_number(first), hidden_thread()));

  const Place<E> place(a, block_number(first), hidden_thread());
  const Spot& spot = place.spot;
  const Copier<E>& copier = place.copier;
  E* const staged = reinterpret_cast<E*>(shared) + place.plane * (t.map.bytes / kSize);
  const int at = staged_at(t.map, spot.tile_row, spot.tile_column, spot.row, spot.column);
  const int64_t out_plane = elements(a.height, a.width);
  const int row = spot.row * kParts, column = spot.column * kParts;
  E* out = static_cast<E*>(a.out) + place.channel * out_plane + elements(row, a.width) + column;
  const int rows = column < a.width ? a.height - row : 0;  // of this thread that exist
  const bool second = column + 1 < a.width;
  const E* from = place.map + (kStages - 1) * map_plane;
  int current = 0;
#pragma unroll 1
  for (int n = 0; n < t.slice_channels; ++n) {
    wait_groups<kStages - 2>();
    // Behind it step n is there for all threads, and all have done with step n - 1, whose place the copies now take.
    __syncthreads();
    const int ahead = current > 0 ? current - 1 : kStages - 1;  // (current + kStages - 1) modulo kStages
    if (n + kStages - 1 < spot.channels) copier.run(t.map, staged + ahead * stage_elements, from);
    close_group();
    from += map_plane;
    if (n < spot.channels) {
      Compute<E> sum[kRows * kParts][kPixels * kParts] = {};
      const E* p = staged + current * stage_elements + at;
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
      E* to = out;
#pragma unroll
      for (int o = 0; o < kRows * kParts; ++o) {
        if (o < rows) {
          if (kPixels * kParts == 2 && a.out_pairs) {
            store(to, sum[o]);
          } else {
            to[0] = narrow<E>(sum[o][0]);
            if (kPixels * kParts == 2 && second) to[1] = narrow<E>(sum[o][kPixels * kParts - 1]);
          }
        }
        to += a.width;
      }
    }
    out += out_plane;
    current = current + 1 < kStages ? current + 1 : 0;
  }
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
