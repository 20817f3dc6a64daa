// The weights that a thread of forward or grad_x keeps in registers while its block walks over channels.
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

  __device__ __forceinline__ void load_own(const Tiling& t, const void* weight, const Spot& spot) {
    const int64_t plane = elements(t.out_height, t.out_width);
    const E* from =
        static_cast<const E*>(weight) + spot.map * (kKernel * kKernel) * plane + elements(spot.row, t.out_width) + spot.column;
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
  __device__ __forceinline__ void load_halved(const Tiling& t, const void* weight, const Spot& spot) {
    using Taps = ApplyTaps<kKernel, 2, true>;
    const Staged& s = t.map;
    const int64_t plane = elements(s.height, s.width);
    const int first_row = spot.row - s.origin_h, first_column = spot.column - s.origin_w;
    const E* from =
        static_cast<const E*>(weight) + spot.map * (kKernel * kKernel) * plane + elements(first_row, s.width) + first_column;
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

  __device__ __forceinline__ void load_mirrored(const Tiling& t, const void* weight, const Spot& spot) {
    const Staged& s = t.map;
    const int64_t plane = elements(s.height, s.width);
    const int first_row = spot.row - s.origin_h, first_column = spot.column - s.origin_w;
    const E* from = static_cast<const E*>(weight) + (spot.map * (kKernel * kKernel) + kKernel * kKernel - 1) * plane +
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

}  // namespace lgld::cuda
