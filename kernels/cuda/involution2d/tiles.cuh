// What the K x K kernels on NCHW maps share: copying planes to shared memory, reading them, and how both are arranged in a
// launch.
#pragma once
#include "../common/copy.cuh"
#include "../common/dtype.cuh"
#include "../common/launch.cuh"
#include "launchers.h"

namespace lgld::cuda {

// A thread's share of the copies of a staged plane. The first few are found once, the plane's rest (narrow maps, whose rows
// allow short copies alone) on each step.
template <class E, int kStride>
class Copier {
  static constexpr int kOwn = 3;

 public:
  __device__ __forceinline__ Copier(const Staged& s, const Spot& spot, int thread, int threads)
      : tile_row_(spot.tile_row), tile_column_(spot.tile_column), thread_(thread), threads_(threads) {
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int copy = thread + k * threads;
      own_[k] = find_copy(s, kStride, spot.tile_row, spot.tile_column, copy);
      if (copy >= s.rows * s.vectors) own_[k].shared = -1;
    }
  }

  // Copies the plane that starts at `plane`; `s` is the one from above.
  __device__ __forceinline__ void run(const Staged& s, E* to, const E* plane) const {
    switch (s.vector * static_cast<int>(sizeof(E))) {
      case 16: return run_in<16>(s, to, plane);
      case 8: return run_in<8>(s, to, plane);
      case 4: return run_in<4>(s, to, plane);
      default: return run_in<2>(s, to, plane);
    }
  }

 private:
  template <int kBytes>
  __device__ __forceinline__ void run_in(const Staged& s, E* to, const E* plane) const {
    if constexpr (kBytes >= sizeof(E)) {
#pragma unroll
      for (int k = 0; k < kOwn; ++k)
        if (own_[k].shared >= 0) copy<kBytes>(to, plane, own_[k]);
      for (int n = thread_ + kOwn * threads_; n < s.rows * s.vectors; n += threads_)
        copy<kBytes>(to, plane, find_copy(s, kStride, tile_row_, tile_column_, n));
    }
  }

  template <int kBytes>
  __device__ __forceinline__ void copy(E* to, const E* plane, const Copy& c) const {
    const bool real = c.global >= 0;
    const E* from = plane + (real ? c.global : 0);  // an address of the map in any case
    if constexpr (kBytes == 2)
      to[c.shared] = real ? *from : E(0.0f);
    else
      copy_async<kBytes>(to + c.shared, from, real);
  }

  Copy own_[kOwn];
  int tile_row_, tile_column_, thread_, threads_;
};

// to[k] = p[k] for kCount neighbours in shared memory, as words of two where kPairs; where kOdd, p is the second of one. Pairs
// are for 16-bit elements, and for stride 2: neighbouring lanes' words are then neighbours, where their elements would share
// banks.
template <bool kPairs, bool kOdd, int kCount, class E>
__device__ __forceinline__ void read_staged(const E* p, Compute<E> (&to)[kCount]) {
  if constexpr (kPairs) {
    constexpr int kFirst = kOdd ? 1 : 0;
#pragma unroll
    for (int w = 0; w < (kCount + kFirst + 1) / 2; ++w) {
      const auto pair = *reinterpret_cast<const Pack<E, 2>*>(p - kFirst + 2 * w);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int k = 2 * w + e - kFirst;
        if (k >= 0 && k < kCount) to[k] = widen(pair.element[e]);
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < kCount; ++k) to[k] = widen(p[k]);
  }
}

__host__ __device__ constexpr int64_t elements(int64_t height, int64_t width) { return height * width; }

// Where a thread works and what it copies.
template <class E, int kStride>
struct Place {
  Spot spot;
  int plane;        // of the block's
  int64_t channel;  // image * channels + the slice's first
  const E* map;     // that channel's plane
  Copier<E, kStride> copier;

  __device__ __forceinline__ Place(const TileArguments& a, int64_t block, int thread)
      : spot(find_spot(a.tiling, block, thread)),
        plane(thread / (a.tiling.lanes * a.tiling.thread_rows)),
        channel(spot.map * a.tiling.group_channels + int64_t{spot.slice} * a.tiling.slice_channels),
        map(static_cast<const E*>(a.map) + channel * elements(a.tiling.map.height, a.tiling.map.width)),
        copier(a.tiling.map, spot, thread - plane * a.tiling.lanes * a.tiling.thread_rows,
               a.tiling.lanes * a.tiling.thread_rows) {}
};

// The steps of a slice of `channels`, one a channel, of which a thread with fewer leaves out the last: compute(stage) once the
// copies into that stage have arrived, and before it copy(stage) begins those of the step kStages - 1 ahead. The first ones
// have begun already.
template <int kStages, class Copy, class Use>
__device__ __forceinline__ void each_step(int steps, int channels, Copy copy, Use compute) {
  int current = 0;
#pragma unroll 1
  for (int n = 0; n < steps; ++n) {
    wait_groups<kStages - 2>();
    // Behind it step n is there for all threads, and all have done with step n - 1, whose place the copies now take.
    __syncthreads();
    const int ahead = current > 0 ? current - 1 : kStages - 1;  // (current + kStages - 1) modulo kStages
    if (n + kStages - 1 < channels) copy(ahead);
    close_group();
    if (n < channels) compute(current);
    current = current + 1 < kStages ? current + 1 : 0;
  }
}

// A thread's part of a channel of the result, of which `rows` rows exist, and of the last column `second`.
template <class E, int kRows, int kColumns>
__device__ __forceinline__ void write_rows(E* to, const Compute<E> (&value)[kRows][kColumns], int rows, bool second, int width,
                                           bool pairs) {
#pragma unroll
  for (int o = 0; o < kRows; ++o) {
    if (o < rows) {
      if (kColumns == 2 && pairs) {
        store(to, value[o]);
      } else {
        to[0] = narrow<E>(value[o][0]);
        if (kColumns == 2 && second) to[1] = narrow<E>(value[o][kColumns - 1]);
      }
    }
    to += width;
  }
}

// A thread's sums of grad_weight: to a.out, or its slice's part of a.partial where there are several.
template <class E, int kRows, int kPixels, int kTaps>
__device__ __forceinline__ void write_sums(const TileArguments& a, const Spot& spot,
                                           const Compute<E> (&sum)[kRows][kPixels][kTaps]) {
  if (!spot.real) return;
  const Tiling& t = a.tiling;
  const int64_t out_plane = elements(t.out_height, t.out_width);
  const auto write = [&](auto* out) {
    using Out = std::remove_reference_t<decltype(*out)>;
    out += spot.map * kTaps * out_plane + elements(spot.row, t.out_width) + spot.column;
#pragma unroll
    for (int o = 0; o < kRows; ++o) {
      if (spot.row + o >= t.out_height) continue;
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        Out* to = out + k * out_plane + elements(o, t.out_width);
        if constexpr (kPixels == 2 && std::is_same_v<Out, E>) {
          if (a.out_pairs && spot.column < t.out_width) {
            const Compute<E> pair[2] = {sum[o][0][k], sum[o][1][k]};
            store(to, pair);
            continue;
          }
        }
#pragma unroll
        for (int x = 0; x < kPixels; ++x)
          if (spot.column + x < t.out_width) to[x] = narrow<Out>(sum[o][x][k]);
      }
    }
  };
  if (t.slices == 1)
    write(static_cast<E*>(a.out));
  else
    write(static_cast<Compute<E>*>(a.partial) + spot.slice * (t.units / t.slices) * kTaps * out_plane);
}

}  // namespace lgld::cuda
