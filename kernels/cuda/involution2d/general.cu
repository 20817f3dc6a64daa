#include "../common/dtype.cuh"
#include "../common/launch.cuh"
#include "general.cuh"
#include "window.h"

namespace lgld::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 4;  // of a thread

template <class T>
__device__ __forceinline__ T* element(const Map& m, int64_t b, int64_t c, int64_t i, int64_t j) {
  return static_cast<T*>(m.data) + b * m.batch + c * m.channel + i * m.row + j * m.column;
}

template <class T>
__device__ __forceinline__ const T* element(const ConstMap& m, int64_t b, int64_t c, int64_t i, int64_t j) {
  return static_cast<const T*>(m.data) + b * m.batch + c * m.channel + i * m.row + j * m.column;
}

// Forward, or grad_x where kBackward: out pixel (row, column) is the sum over taps of weight and map at the pixel that the tap
// leads to, which for forward is one of x and for grad_x one of grad_y.
template <class E, bool kBackward>
__global__ void __launch_bounds__(kThreads)
    general_apply_kernel(const __grid_constant__ Involution2dParams p, const __grid_constant__ Pieces pieces, int64_t first) {
  const Involution2dShape& s = p.shape;
  const int64_t number = block_number(first) * kThreads + threadIdx.x;
  if (number >= pieces.pieces) return;
  const Piece at = find_piece(pieces, s.groups, number);
  const int64_t group_channels = s.group_channels(), c = at.group * group_channels + at.chunk;
  const int count = static_cast<int>(ceil_div(group_channels - at.chunk, pieces.chunks));  // at most kChannels
  const E* map = element<E>(p.a, at.batch, c, 0, 0);
  const E* weight = element<E>(p.b, at.batch, at.group * s.taps(), 0, 0);
  const int64_t step = pieces.chunks * p.a.channel;
  Compute<E> sum[kChannels] = {};
  for (int64_t u = 0; u < s.kernel_h; ++u) {
    const int64_t i = kBackward ? output_of(at.row, u, s.stride_h, s.pad_h, s.dilation_h, s.out_height)
                                : input_of(at.row, u, s.stride_h, s.pad_h, s.dilation_h);
    const bool in_row = i >= 0 && (kBackward || i < s.height);
    if (kBackward && !in_row) continue;
    for (int64_t v = 0; v < s.kernel_w; ++v) {
      const int64_t j = kBackward ? output_of(at.column, v, s.stride_w, s.pad_w, s.dilation_w, s.out_width)
                                  : input_of(at.column, v, s.stride_w, s.pad_w, s.dilation_w);
      const bool real = in_row && j >= 0 && (kBackward || j < s.width);
      if (kBackward && !real) continue;
      // Forward multiplies by the zeros around x too: an infinite weight on them makes NaN, as it does elsewhere.
      const int64_t wi = kBackward ? i : at.row, wj = kBackward ? j : at.column;
      const Compute<E> w = widen(weight[(u * s.kernel_w + v) * p.b.channel + wi * p.b.row + wj * p.b.column]);
      const E* from = map + i * p.a.row + j * p.a.column;
#pragma unroll
      for (int k = 0; k < kChannels; ++k) sum[k] += w * (real && k < count ? widen(from[k * step]) : Compute<E>(0));
    }
  }
  E* out = element<E>(p.out, at.batch, c, at.row, at.column);
#pragma unroll
  for (int k = 0; k < kChannels; ++k)
    if (k < count) out[k * pieces.chunks * p.out.channel] = narrow<E>(sum[k]);
}

// A thread has a pixel, a tap (a group's taps stand where channels do in `pieces`) and a slice of the channels.
template <class E>
__global__ void __launch_bounds__(kThreads)
    general_grad_weight_kernel(const __grid_constant__ Involution2dParams p, const __grid_constant__ Pieces pieces,
                               int64_t slices, int64_t first) {
  const Involution2dShape& s = p.shape;
  const int64_t thread = block_number(first) * kThreads + threadIdx.x;
  const int64_t slice = quotient(thread, pieces.pieces), number = thread - slice * pieces.pieces;
  if (slice >= slices) return;
  const Piece at = find_piece(pieces, s.groups, number);
  const int64_t tap = at.chunk, u = quotient(tap, s.kernel_w), v = tap - u * s.kernel_w;
  const int64_t i = input_of(at.row, u, s.stride_h, s.pad_h, s.dilation_h);
  const int64_t j = input_of(at.column, v, s.stride_w, s.pad_w, s.dilation_w);
  const bool real = i >= 0 && i < s.height && j >= 0 && j < s.width;
  const int64_t group_channels = s.group_channels(), per_slice = ceil_div(group_channels, slices);
  const int64_t begin = min64(slice * per_slice, group_channels), end = min64(begin + per_slice, group_channels);
  const int64_t c = at.group * group_channels + begin;
  const E* gradient = element<E>(p.a, at.batch, c, at.row, at.column);
  const E* x = element<E>(p.b, at.batch, c, i, j);
  Compute<E> sum = 0;
  for (int64_t n = begin; n < end; ++n) {
    sum += widen(*gradient) * (real ? widen(*x) : Compute<E>(0));
    gradient += p.a.channel, x += p.b.channel;
  }
  const int64_t channel = at.group * s.taps() + tap;
  if (slices == 1) {
    *element<E>(p.out, at.batch, channel, at.row, at.column) = narrow<E>(sum);
  } else {
    const int64_t row = ((slice * s.batch + at.batch) * s.groups * s.taps() + channel) * s.out_height + at.row;
    static_cast<Compute<E>*>(p.scratch)[row * s.out_width + at.column] = sum;
  }
}

template <class E>
__global__ void __launch_bounds__(kThreads)
    sum_slices_kernel(const __grid_constant__ Involution2dParams p, int64_t slices, int64_t count, int64_t first) {
  const Involution2dShape& s = p.shape;
  int64_t rest = block_number(first) * kThreads + threadIdx.x;
  if (rest >= count) return;
  const Compute<E>* from = static_cast<const Compute<E>*>(p.scratch) + rest;
  Compute<E> sum = *from;
  for (int64_t n = 1; n < slices; ++n) sum += *(from += count);
  const auto take = [&rest](int64_t size) {
    const int64_t above = quotient(rest, size), found = rest - above * size;
    rest = above;
    return found;
  };
  const int64_t j = take(s.out_width), i = take(s.out_height), c = take(s.groups * s.taps());
  *element<E>(p.out, rest, c, i, j) = narrow<E>(sum);
}

template <bool kBackward>
cudaError_t apply(const Involution2dParams& p, cudaStream_t stream) {
  const Involution2dShape& s = p.shape;
  const Pieces pieces = plan_pieces(s, kBackward ? s.height : s.out_height, kBackward ? s.width : s.out_width, kChannels,
                                    p.out.channel == 1 && p.out.column != 1);
  return with_dtype(p.dtype, [&](auto element) {
    return launch_in_pieces(ceil_div(pieces.pieces, kThreads), [&](int64_t first, unsigned blocks) {
      return launch(general_apply_kernel<decltype(element), kBackward>, blocks, kThreads, 0, stream, p, pieces, first);
    });
  });
}

}  // namespace

cudaError_t general_forward(const Involution2dParams& p, cudaStream_t stream) { return apply<false>(p, stream); }

cudaError_t general_grad_x(const Involution2dParams& p, cudaStream_t stream) { return apply<true>(p, stream); }

cudaError_t general_grad_weight(const Involution2dParams& p, int64_t slices, cudaStream_t stream) {
  const Involution2dShape& s = p.shape;
  const int64_t taps = s.taps();
  const Pieces pieces{s.out_height, s.out_width, taps, s.batch * s.groups * taps * s.out_height * s.out_width,
                      p.out.channel == 1 && p.out.column != 1};
  const cudaError_t error = with_dtype(p.dtype, [&](auto element) {
    return launch_in_pieces(ceil_div(pieces.pieces * slices, kThreads), [&](int64_t first, unsigned blocks) {
      return launch(general_grad_weight_kernel<decltype(element)>, blocks, kThreads, 0, stream, p, pieces, slices, first);
    });
  });
  return error != cudaSuccess || slices == 1 ? error : sum_slices(p, slices, stream);
}

cudaError_t sum_slices(const Involution2dParams& p, int64_t slices, cudaStream_t stream) {
  const Involution2dShape& s = p.shape;
  const int64_t count = s.batch * s.groups * s.taps() * s.out_height * s.out_width;
  return with_dtype(p.dtype, [&](auto element) {
    return launch_in_pieces(ceil_div(count, kThreads), [&](int64_t first, unsigned blocks) {
      return launch(sum_slices_kernel<decltype(element)>, blocks, kThreads, 0, stream, p, slices, count, first);
    });
  });
}

}  // namespace lgld::cuda
