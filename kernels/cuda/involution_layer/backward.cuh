// Backward of the layer in one kernel, and the sum over its blocks in a second one; involution_layer.h has the formulas.
//
// A block walks over the channels of its tile three times: for the hidden values of the tile and of the pixels around it
// together with grad_k, which stays in registers; for the sums over pixels that grad_hidden_weight is; and for grad_x, whose
// kernels are made of the hidden values in shared memory, each (tap, pixel) by the one thread that needs it. What lies in
// device memory beside operands and results are the blocks' sums.
#pragma once
#include "../common/launch.cuh"
#include "backward.h"
#include "device.cuh"

namespace lgld::cuda {

constexpr int kBackwardThreads = BackwardTiles::kThreads, kBackwardWarps = kBackwardThreads / 32;
constexpr int kStagedChannels = 32;

template <class T>
constexpr int kFewHidden = few_hidden(sizeof(T));

// A warp's pixels in a row of shared memory, and 16 bytes that keep neighbouring rows in different banks.
template <class T>
constexpr int kLine = 32 + 16 / static_cast<int>(sizeof(T));

template <class T>
struct alignas(16) WarpValues {
  T left[kFewHidden<T>][kLine<T>], right[kFewHidden<T>][kLine<T>];
  T sums[kFewHidden<T>];
};

template <class T, int K>
struct alignas(16) BackwardShared {
  T weights[kStagedChannels][kFewHidden<T>];
  T span[K * K][kFewHidden<T>];
  T hidden[kFewHidden<T>][Halo<K>::kPixels];
  WarpValues<T> values[kBackwardWarps];
};

// add(i, j, sum of left[i] right[j]) over the block's pixels for i < kFewHidden and all j < count, each in one thread that is
// always the same; add(i, -1, sum of left[i]) where `alone`. The threads have put their pixels' left into `values`, and
// right(begin, rows, lane) puts the kFewHidden of right from `begin` on into rows[.][lane].
//
// A lane has kFewHidden^2 / 32 of the products: in float 2 x 4, for which it reads 6 vectors for 32 multiply-adds.
template <class T, int kCount = kFewHidden<T>, class Right, class Add>
__device__ __forceinline__ void sum_products(WarpValues<T>* values, int64_t count, bool alone, Right right, Add add) {
  constexpr int kVector = 16 / sizeof(T), kLefts = kCount / 8, kRights = kCount / 4;
  const int thread = hidden_thread(), warp = thread / 32, lane = thread % 32;
  WarpValues<T>& mine = values[warp];
  __syncwarp();
  if (alone && lane < kCount) {
    T sum = 0;
    for (int pixel = 0; pixel < 32; ++pixel) sum += mine.left[lane][pixel];
    mine.sums[lane] = sum;
  }
  for (int64_t begin = 0; begin < count; begin += kCount) {
    right(begin, mine.right, lane);
    __syncwarp();
    T product[kLefts][kRights] = {};
#pragma unroll 2
    for (int pixel = 0; pixel < 32; pixel += kVector) {
      Pack<T, kVector> l[kLefts], r[kRights];
#pragma unroll
      for (int i = 0; i < kLefts; ++i) l[i] = *reinterpret_cast<const Pack<T, kVector>*>(&mine.left[lane / 4 + 8 * i][pixel]);
#pragma unroll
      for (int j = 0; j < kRights; ++j) r[j] = *reinterpret_cast<const Pack<T, kVector>*>(&mine.right[lane % 4 + 4 * j][pixel]);
#pragma unroll
      for (int v = 0; v < kVector; ++v)
#pragma unroll
        for (int i = 0; i < kLefts; ++i)
#pragma unroll
          for (int j = 0; j < kRights; ++j) product[i][j] = fma(l[i].element[v], r[j].element[v], product[i][j]);
    }
    __syncwarp();  // the warp has read what the products now replace
#pragma unroll
    for (int i = 0; i < kLefts; ++i)
#pragma unroll
      for (int j = 0; j < kRights; ++j) mine.right[lane / 4 + 8 * i][lane % 4 + 4 * j] = product[i][j];
    __syncthreads();
    const auto over_warps = [&](auto of) {
      T sum = of(values[0]);
#pragma unroll
      for (int w = 1; w < kBackwardWarps; ++w) sum += of(values[w]);
      return sum;
    };
    for (int n = thread; n < kCount * kCount; n += kBackwardThreads) {
      const int i = n / kCount, j = n % kCount;
      if (begin + j < count) add(i, begin + j, over_warps([&](const WarpValues<T>& w) { return w.right[i][j]; }));
    }
    if (alone && begin == 0 && thread < kCount)
      add(thread, -1, over_warps([&](const WarpValues<T>& w) { return w.sums[thread]; }));
    __syncthreads();
  }
}

template <class E, int K>
__device__ __forceinline__ void layer_backward(const BackwardCall& f) {
  using T = Compute<E>;
  using Around = Halo<K>;
  constexpr int kTaps = K * K, kReach = Around::kReach, kHidden = kFewHidden<T>, kRounds = Around::kRounds;
  const InvolutionLayerParams& p = f.p;
  BackwardShared<T, K>& s = *shared_memory<BackwardShared<T, K>>();
  const BackwardTiles tiles(p.batch, p.height, p.width);
  const E* const hidden_weight = static_cast<const E*>(p.hidden_weight);
  const bool few = p.hidden <= kHidden;

  // hidden_weight of the channels from c on and of the hidden ones from d on; returns how many channels those are.
  const auto stage_weights = [&](int64_t d, int64_t c) {
    const int channels = static_cast<int>(min64(kStagedChannels, p.channels - c));
    __syncthreads();  // the last weights have been read
    for (int n = hidden_thread(); n < kHidden * kStagedChannels; n += kBackwardThreads) {
      const int e = n / kStagedChannels, m = n % kStagedChannels;
      s.weights[m][e] = d + e < p.hidden && m < channels ? widen(hidden_weight[(d + e) * p.channels + c + m]) : T(0);
    }
    __syncthreads();
    return channels;
  };

  for (int64_t task = blockIdx.x; task < f.plan.tasks; task += gridDim.x) {
    T* const record = static_cast<T*>(f.partial) + task * f.plan.record;
    for (int64_t unit = task; unit < f.plan.units; unit += f.plan.tasks) {
      const int thread = hidden_thread(), warp = thread / 32, lane = thread % 32;
      // This thread's own, neither read nor written where the hidden channels are few: grad_h, grad_k, kernel.
      T* const scratch = static_cast<T*>(f.scratch) + task * f.plan.scratch + thread;
      T* const kept_grad_k = scratch + p.hidden * kBackwardThreads;
      T* const kept_kernel = kept_grad_k + kTaps * kBackwardThreads;
      const auto keep = [&](int64_t at, T sum) { record[at] = unit == task ? sum : record[at] + sum; };
      const BackwardTiles::Pixel corner = tiles.at(unit, 0), at = tiles.at(unit, thread);
      const bool real = at.row < p.height && at.column < p.width;
      // Threads beyond the edges compute with the last pixel's values, and are left out of all sums: by choice and not by a
      // factor 0, which would keep what is not finite.
      const int64_t i = min64(at.row, p.height - 1), j = min64(at.column, p.width - 1);
      const E* const image = static_cast<const E*>(p.x.data) + at.image * p.x.batch;
      const E* const x = image + i * p.x.row + j;
      const E* const grad = static_cast<const E*>(f.grad_y.data) + at.image * f.grad_y.batch + i * f.grad_y.row + j;
      bool row_in[K], column_in[K];
#pragma unroll
      for (int u = 0; u < K; ++u) {
        row_in[u] = real && i + u - kReach >= 0 && i + u - kReach < p.height;
        column_in[u] = j + u - kReach >= 0 && j + u - kReach < p.width;
      }
      T kernel[kTaps], grad_h[kHidden];

      for (int64_t d = 0; d < p.hidden; d += kHidden) {
        T grad_k[kTaps] = {};
        {
          T h[kRounds][kHidden];
          const E* from[kRounds];
#pragma unroll
          for (int r = 0; r < kRounds; ++r) {
            const int number = thread + r * kBackwardThreads;
            // Pixels outside the image have no kernels, and these are dropped below: any value will do.
            const int64_t row = max64(0, min64(corner.row + Around::row(number), p.height - 1));
            const int64_t column = max64(0, min64(corner.column + Around::column(number), p.width - 1));
            from[r] = image + row * p.x.row + column;
#pragma unroll
            for (int e = 0; e < kHidden; ++e)
              h[r][e] = d + e < p.hidden ? widen(static_cast<const E*>(p.hidden_bias)[d + e]) : T(0);
          }
          for (int64_t c = 0; c < p.channels; c += kStagedChannels) {
            const int channels = stage_weights(d, c);
#pragma unroll 4
            for (int m = 0; m < channels; ++m) {
#pragma unroll
              for (int r = 0; r < kRounds; ++r) {
                if (thread + r * kBackwardThreads < Around::kPixels) {
                  const T value = widen(*from[r]);
#pragma unroll
                  for (int e = 0; e < kHidden; ++e) h[r][e] = fma(s.weights[m][e], value, h[r][e]);
                }
                from[r] += p.x.channel;
              }
            }
            if (d > 0) continue;
            const E *window = x + c * p.x.channel, *gradient = grad + c * f.grad_y.channel;
#pragma unroll 1
            for (int m = 0; m < channels; ++m, window += p.x.channel, gradient += f.grad_y.channel) {
              const T g = real ? widen(*gradient) : T(0);
#pragma unroll
              for (int u = 0; u < K; ++u) {
                const E* const row = window + (u - kReach) * p.x.row;
#pragma unroll
                for (int v = 0; v < K; ++v) {
                  T value = 0;
                  if (row_in[u] && column_in[v]) value = widen(row[v - kReach]);
                  grad_k[u * K + v] = fma(g, value, grad_k[u * K + v]);
                }
              }
            }
          }
#pragma unroll
          for (int r = 0; r < kRounds; ++r) {
            const int number = thread + r * kBackwardThreads;
            if (number < Around::kPixels) {
#pragma unroll
              for (int e = 0; e < kHidden; ++e) s.hidden[e][number] = h[r][e];
            }
          }
        }
        if (!few) {
#pragma unroll
          for (int t = 0; t < kTaps; ++t) {
            if (d == 0) kept_grad_k[t * kBackwardThreads] = grad_k[t];
            grad_k[t] = kept_grad_k[t * kBackwardThreads];
          }
        }
        for (int n = thread; n < kTaps * kHidden; n += kBackwardThreads) {
          const int t = n / kHidden, e = n % kHidden;
          s.span[t][e] = d + e < p.hidden ? widen(static_cast<const E*>(p.span_weight)[t * p.hidden + d + e]) : T(0);
        }
        __syncthreads();
        WarpValues<T>& mine = s.values[warp];
#pragma unroll
        for (int e = 0; e < kHidden; ++e) {
          grad_h[e] = 0;
#pragma unroll
          for (int t = 0; t < kTaps; ++t) grad_h[e] = fma(s.span[t][e], grad_k[t], grad_h[e]);
          const T h = s.hidden[e][Around::own(thread)], q = sigmoid(h);
          grad_h[e] = real && d + e < p.hidden ? grad_h[e] * (q * (1 + h * (1 - q))) : T(0);
          mine.left[e][lane] = grad_h[e];
          if (!few && d + e < p.hidden) scratch[(d + e) * kBackwardThreads] = grad_h[e];
        }
        sum_products(
            s.values, p.channels, true,
            [&](int64_t begin, auto& rows, int to) {
              const E* from = x + begin * p.x.channel;
#pragma unroll
              for (int m = 0; m < kHidden; ++m, from += p.x.channel)
                rows[m][to] = real && begin + m < p.channels ? widen(*from) : T(0);
            },
            [&](int e, int64_t c, T sum) {
              if (d + e < p.hidden) keep(c < 0 ? f.plan.hidden_bias + d + e : (d + e) * p.channels + c, sum);
            });
#pragma unroll 1
        for (int begin = 0; begin < kTaps; begin += kHidden) {
#pragma unroll
          for (int t = 0; t < kTaps; ++t)
            if (t / kHidden * kHidden == begin) mine.left[t % kHidden][lane] = grad_k[t];
          sum_products(
              s.values, min64(kHidden, p.hidden - d), d == 0,
              [&](int64_t, auto& rows, int to) {
#pragma unroll
                for (int e = 0; e < kHidden; ++e) {
                  const T h = s.hidden[e][Around::own(thread)];
                  rows[e][to] = real ? h * sigmoid(h) : T(0);
                }
              },
              [&](int n, int64_t e, T sum) {
                const int t = begin + n;
                if (t < kTaps) keep(e < 0 ? f.plan.span_bias + t : f.plan.span_weight + t * p.hidden + d + e, sum);
              });
        }
        if (f.to.x.data == nullptr) {
          // Never read. Without a value here the last round's would be kept in registers all the while.
#pragma unroll
          for (int t = 0; t < kTaps; ++t) kernel[t] = 0;
          continue;
        }
        // sum_products ended with a barrier: all have read their own h.
        for (int n = thread; n < kHidden * Around::kPixels; n += kBackwardThreads) {
          T& h = s.hidden[n / Around::kPixels][n % Around::kPixels];
          h *= sigmoid(h);
        }
        __syncthreads();
#pragma unroll
        for (int t = 0; t < kTaps; ++t) {
          const int number = Around::reading(thread, t);
          kernel[t] = d == 0 ? widen(static_cast<const E*>(p.span_bias)[t]) : kept_kernel[t * kBackwardThreads];
#pragma unroll
          for (int e = 0; e < kHidden; ++e) kernel[t] = fma(s.span[t][e], s.hidden[e][number], kernel[t]);
          if (!few) kept_kernel[t * kBackwardThreads] = kernel[t];
        }
      }
      if (f.to.x.data == nullptr) continue;

      // Tap (u, v) of the pixel (u - K / 2, v - K / 2) before this one reads this one. Where that one lies outside the image,
      // by choice again: its kernel times 0 would keep what is not finite.
#pragma unroll
      for (int u = 0; u < K; ++u) {
#pragma unroll
        for (int v = 0; v < K; ++v)
          if (!row_in[K - 1 - u] || !column_in[K - 1 - v]) kernel[u * K + v] = 0;
      }
      E* to = static_cast<E*>(f.to.x.data) + at.image * f.to.x.batch + i * f.to.x.row + j * f.to.x.column;
      const E* from = grad;
      for (int64_t c = 0; c < p.channels; c += kStagedChannels) {
        const int channels = stage_weights(0, c);
#pragma unroll 1
        for (int m = 0; m < channels; ++m, from += f.grad_y.channel, to += f.to.x.channel) {
          T sum = 0;
#pragma unroll
          for (int u = 0; u < K; ++u) {
            const E* const row = from + (kReach - u) * f.grad_y.row;
#pragma unroll
            for (int v = 0; v < K; ++v) {
              T value = 0;
              if (row_in[K - 1 - u] && column_in[K - 1 - v]) value = widen(row[kReach - v]);
              sum = fma(kernel[u * K + v], value, sum);
            }
          }
          if (few) {
#pragma unroll
            for (int e = 0; e < kHidden; ++e) sum = fma(s.weights[m][e], grad_h[e], sum);
          } else {
            for (int64_t d = 0; d < p.hidden; ++d)
              sum = fma(widen(hidden_weight[d * p.channels + c + m]), scratch[d * kBackwardThreads], sum);
          }
          if (real) *to = narrow<E>(sum);
        }
      }
    }
  }
}

// Blocks that a multiprocessor is to hold: what the registers allow without spills.
template <class E, int K>
constexpr int kBackwardBlocks = sizeof(E) == 8 || K == 7 ? 2 : 3;

template <class E, int K>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks<E, K>)
    layer_backward_kernel(const __grid_constant__ BackwardCall f) {
  layer_backward<E, K>(f);
}

constexpr int kSumWarps = 16;  // 1024 records are 64 for each

// A lane has a place of the records, a warp every kSumWarps-th of them; in double, since 6000 tiles may have been added up.
template <class E>
__global__ void __launch_bounds__(32 * kSumWarps) layer_backward_sum_kernel(const __grid_constant__ BackwardCall f) {
  double* const shared = shared_memory<double>();
  const BackwardPlan& plan = f.plan;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int64_t begin = int64_t{blockIdx.x} * 32; begin < plan.record; begin += int64_t{gridDim.x} * 32) {
    const int64_t at = begin + lane;
    double sum = 0;
    if (at < plan.record) {
      const Compute<E>* from = static_cast<const Compute<E>*>(f.partial) + at;
#pragma unroll 8
      for (int64_t task = warp; task < plan.tasks; task += kSumWarps) sum += from[task * plan.record];
    }
    __syncthreads();  // the last sums have been read
    shared[warp * 32 + lane] = sum;
    __syncthreads();
    if (warp > 0 || at >= plan.record) continue;
    for (int w = 1; w < kSumWarps; ++w) sum += shared[w * 32 + lane];
    const auto put = [&](void* to, int64_t first) {
      static_cast<E*>(to)[at - first] = narrow<E>(static_cast<Compute<E>>(sum));
    };
    if (at < plan.hidden_bias)
      put(f.to.hidden_weight, 0);
    else if (at < plan.span_weight)
      put(f.to.hidden_bias, plan.hidden_bias);
    else if (at < plan.span_bias)
      put(f.to.span_weight, plan.span_weight);
    else
      put(f.to.span_bias, plan.span_bias);
  }
}

template <class E, int K>
cudaError_t launch_backward(const BackwardCall& f, cudaStream_t stream) {
  constexpr size_t kShared = sizeof(BackwardShared<Compute<E>, K>);
  static_assert(kShared <= 48 * 1024, "what every GPU gives a block without asking");
  return launch(layer_backward_kernel<E, K>, f.plan.tasks, kBackwardThreads, kShared, stream, f);
}

template <class E>
cudaError_t launch_backward(const BackwardCall& f, cudaStream_t stream) {
  const auto with_kernel = [&] {
    switch (f.p.kernel_size) {
      case 3: return launch_backward<E, 3>(f, stream);
      case 5: return launch_backward<E, 5>(f, stream);
      default: return launch_backward<E, 7>(f, stream);
    }
  };
  const cudaError_t error = with_kernel();
  if (error != cudaSuccess) return error;
  return launch(layer_backward_sum_kernel<E>, min64(ceil_div(f.plan.record, 32), kMostBlocks), 32 * kSumWarps,
                sizeof(double) * 32 * kSumWarps, stream, f);
}

}  // namespace lgld::cuda
