// What a block of the mixer's passes reads before it goes through channels or positions.
#pragma once
#include "workspace.h"

namespace lgld::cuda {

// What a thread of planes has: 8 positions (4 in double) in vectors of 16 bytes, or 4 single ones.
template <class E, bool kVectors>
struct FfmVectors {
  static constexpr int kLanes = kVectors ? 16 / static_cast<int>(sizeof(E)) : 1;
  static constexpr int kCount = kVectors ? (sizeof(E) == 2 ? 1 : 2) : 4;  // vectors of a thread
};

// All of a record of T, 16 bytes at a time; `from` is a multiple of 16 bytes.
template <class T, int kRecord>
__device__ __forceinline__ void load_all(const T* from, T (&to)[kRecord]) {
  constexpr int kPart = 16 / static_cast<int>(sizeof(T));
  static_assert(kRecord % kPart == 0);
#pragma unroll
  for (int i = 0; i < kRecord; i += kPart) {
    T part[kPart];
    load<T, kPart>(from + i, part);
#pragma unroll
    for (int j = 0; j < kPart; ++j) to[i + j] = part[j];
  }
}

// `count` neighbouring elements of T, in accesses of 16 bytes at most; `to` is a multiple of what they come to.
template <class T, int kCount>
__device__ __forceinline__ void store_all(T* to, const T (&from)[kCount]) {
  constexpr int kPart = kCount * sizeof(T) < 16 ? kCount : 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int i = 0; i < kCount; i += kPart) {
    T part[kPart];
#pragma unroll
    for (int j = 0; j < kPart; ++j) part[j] = from[i + j];
    store<T, kPart>(to + i, part);
  }
}

// A chunk of the folded map, to shared memory.
template <class T>
__device__ __forceinline__ void copy_folded(const FfmCall<T>& f, int64_t channel, int channels, int record, T* to) {
  const T* const from = f.m.folded + channel * record;
  for (int i = threadIdx.x; i < channels * record; i += kFfmThreads) to[i] = from[i];
}

// The features of `positions` positions from `first` on, to shared memory, in the order of the folded map; the rest of a record
// is 0.
template <class E, int kIn, class T>
__device__ __forceinline__ void copy_features(const FfmCall<T>& f, int64_t first, int positions, T* to) {
  constexpr int kRecord = ffm_record(kIn);
  const FfmShape& s = f.a.shape;
  for (int i = threadIdx.x; i < positions; i += kFfmThreads) {
    const FfmPosition p = ffm_position(s, first + i);
    const E* const in = address<const E>(f.a.x, p.image, 0, p.row * s.stride, p.column * s.stride);
    T* const out = to + i * kRecord;
#pragma unroll
    for (int k = 0; k < kIn; ++k) out[k] = widen(in[k * f.a.x.channel]) - static_cast<T>(f.m.centre[k]);
    out[kIn] = f.m.column_terms[p.column], out[kIn + 1] = f.m.column_terms[s.out_width + p.column];
    out[kIn + 2] = f.m.row_terms[p.row], out[kIn + 3] = f.m.row_terms[s.out_height + p.row];
#pragma unroll
    for (int k = kIn + 4; k < kRecord; ++k) out[k] = 0;
  }
}

// The features of a thread's vectors of planes, in registers.
template <class E, class T, int kIn, int kLanes, int kCount>
struct FfmPixels {
  T x[kCount][kIn][kLanes], column_sin[kCount][kLanes], column_cos[kCount][kLanes], row_sin[kCount], row_cos[kCount];
  bool real[kCount];  // the others are beyond the last one; their features are 0

  // at(r, position) for each of the vectors, so that the caller can place its pointers.
  template <class F>
  __device__ __forceinline__ void read(const FfmCall<T>& f, const FfmPlanes& plan, int64_t tile, F at) {
    const FfmShape& s = f.a.shape;
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      const int64_t vector = plan.vector(tile, r, threadIdx.x);
      real[r] = vector < plan.vectors;
      const FfmPosition p = plan.at(min64(vector, plan.vectors - 1));
      at(r, p);
      row_sin[r] = f.m.row_terms[p.row], row_cos[r] = f.m.row_terms[s.out_height + p.row];
      const E* const in = address<const E>(f.a.x, p.image, 0, p.row * s.stride, p.column * s.stride);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) {
        column_sin[r][v] = f.m.column_terms[p.column + v], column_cos[r][v] = f.m.column_terms[s.out_width + p.column + v];
#pragma unroll
        for (int k = 0; k < kIn; ++k) {
          const T value = widen(in[k * f.a.x.channel + v * s.stride * f.a.x.column]) - static_cast<T>(f.m.centre[k]);
          x[r][k][v] = real[r] ? value : T(0);
        }
      }
    }
  }

  // The folded map `a` at the r-th vector.
  __device__ __forceinline__ void apply(const T (&a)[ffm_record(kIn)], int r, T (&u)[kLanes]) const {
    const T row = fma(a[kIn + 2], row_sin[r], fma(a[kIn + 3], row_cos[r], a[kIn + 4]));
#pragma unroll
    for (int v = 0; v < kLanes; ++v) {
      u[v] = fma(a[kIn], column_sin[r][v], fma(a[kIn + 1], column_cos[r][v], row));
#pragma unroll
      for (int k = 0; k < kIn; ++k) u[v] = fma(a[k], x[r][k][v], u[v]);
    }
  }
};

// A tile's sums of some channels, of all warps [warp][room][8], to the tile's records.
template <int kIn, class T>
__device__ __forceinline__ void write_sums(const FfmCall<T>& f, int64_t tile, int64_t channel, int channels, int room,
                                           const T* sums) {
  constexpr int kRecord = kIn + 5;
  for (int i = threadIdx.x; i < channels * kRecord; i += kFfmThreads) {
    const int c = i / kRecord, e = i - c * kRecord;
    T total = 0;
    for (int w = 0; w < kFfmWarps; ++w) total += sums[(w * room + c) * 8 + e];
    // Summed in the order of the folded map; records have the rows' terms first.
    const int at = e <= kIn ? e : e <= kIn + 2 ? e + 2 : e - 2;
    f.m.sums[((channel + c) * f.m.tiles + tile) * kRecord + at] = total;
  }
}

// --- one position, any number of image channels -----------------------------------------------------------------------

// The k-th of the features, rows' terms first.
template <class E, class T>
__device__ __forceinline__ T feature_at(const FfmCall<T>& f, const FfmPosition& p, int64_t k) {
  const FfmShape& s = f.a.shape;
  const int64_t term = k - s.inputs;
  if (term >= 2) return f.m.column_terms[(term - 2) * s.out_width + p.column];
  if (term >= 0) return f.m.row_terms[term * s.out_height + p.row];
  return widen(*address<const E>(f.a.x, p.image, k, p.row * s.stride, p.column * s.stride)) - static_cast<T>(f.m.centre[k]);
}

// u of a channel.
template <class E, class T>
__device__ __forceinline__ T folded_at(const FfmCall<T>& f, const FfmPosition& p, int64_t c) {
  const FfmShape& s = f.a.shape;
  const int64_t n = s.inputs;
  const T* const a = f.m.folded + c * ffm_record(n);
  T u = fma(a[n + 2], f.m.row_terms[p.row], fma(a[n + 3], f.m.row_terms[s.out_height + p.row], a[n + 4]));
  u = fma(a[n], f.m.column_terms[p.column], fma(a[n + 1], f.m.column_terms[s.out_width + p.column], u));
  for (int64_t k = 0; k < n; ++k) u = fma(a[k], feature_at<E>(f, p, k), u);
  return u;
}

}  // namespace lgld::cuda
