// Backward: u is computed again from the image, and with g_u = grad_y SiLU'(u) each channel's sums of g_u and g_u f' remain, a
// record for each tile of positions, and for grad_x the sum over channels of slope g_u. grad_y is read once.
//
// An element of grad_y costs some 23 operations beside its SiLU', twice a forward's, and about 3 more for the sums over a warp
// (9 shuffles for 8 sums of 8 positions a lane). Moved are grad_y, the image's rows twice, grad_x, and for grad_x inputs floats
// a position there and back. By an H200's peak rates a float element is 1.3 ps of memory against 0.9 ps of instructions; in 16
// bit instructions are the longer part.

#include "tile.cuh"

namespace lgld::cuda {
namespace {

constexpr int kSums = 8;  // what warp_sum_of_eight takes: 1 + features, for up to 3 image channels

template <class E>
constexpr int kLastLanes = sizeof(E) == 8 ? 2 : 4;  // sums of more channels don't fit a thread's registers

// g_u of a vector, in place of g.
template <class E, int kCount, class T>
__device__ __forceinline__ void through_silu(const T (&u)[kCount], T (&g)[kCount]) {
  T s[kCount];
  sigmoids<E>(u, s);
#pragma unroll
  for (int v = 0; v < kCount; ++v) g[v] *= silu_slope(u[v], s[v]);
}

template <class T>
__device__ __forceinline__ T* projected_at(const FfmCall<T>& f, int64_t chunk, int64_t k) {
  return f.m.projected + (chunk * f.a.shape.inputs + k) * f.a.shape.positions();
}

// Planes of grad_y, of any strides where kVectors is false. Sums over a warp's positions gather in shared memory, a record for
// each warp and channel, and are added up at the end.
template <class E, class T, int kIn, bool kVectors>
__global__ void __launch_bounds__(kFfmThreads)
    backward_planes(const __grid_constant__ FfmCall<T> f, const __grid_constant__ FfmMap grad_y) {
  constexpr int kLanes = FfmVectors<E, kVectors>::kLanes, kCount = FfmVectors<E, kVectors>::kCount, kRecord = ffm_record(kIn);
  const FfmShape& s = f.a.shape;
  const FfmPlanes plan = ffm_planes(s, kLanes, kCount);
  T* const folded = shared_memory<T>();
  T* const sums = folded + kFfmMostChunk * kRecord;  // [warp][channel][kSums]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64_t unit = blockIdx.x; unit < plan.units(); unit += gridDim.x) {
    const int64_t tile = quotient(unit, plan.chunks), chunk = unit - tile * plan.chunks, channel = chunk * plan.chunk;
    const int channels = static_cast<int>(min64(plan.chunk, s.channels - channel));
    __syncthreads();  // the last unit's map and sums have been read
    copy_folded(f, channel, channels, kRecord, folded);
    FfmPixels<E, T, kIn, kLanes, kCount> pixels;
    const E* from[kCount];
    Pack<E, kLanes> next[kCount];
    pixels.read(f, plan, tile, [&](int r, const FfmPosition& p) {
      from[r] = address<const E>(grad_y, p.image, channel, p.row, p.column);
      next[r] = *reinterpret_cast<const Pack<E, kLanes>*>(from[r]);
    });
    T back[kCount][kIn][kLanes] = {};
    __syncthreads();
    for (int c = 0; c < channels; ++c) {
      T a[kRecord], sum[kSums] = {};
      load_all(folded + c * kRecord, a);
      Pack<E, kLanes> now[kCount];
#pragma unroll
      for (int r = 0; r < kCount; ++r) {
        now[r] = next[r];
        from[r] += grad_y.channel;
        if (c + 1 < channels) next[r] = *reinterpret_cast<const Pack<E, kLanes>*>(from[r]);
      }
#pragma unroll
      for (int r = 0; r < kCount; ++r) {
        T u[kLanes], g[kLanes], row = 0;
        pixels.apply(a, r, u);
#pragma unroll
        for (int v = 0; v < kLanes; ++v) g[v] = pixels.real[r] ? widen(now[r].element[v]) : T(0);
        through_silu<E>(u, g);
#pragma unroll
        for (int v = 0; v < kLanes; ++v) {
          row += g[v];
          sum[kIn + 1] = fma(g[v], pixels.column_sin[r][v], sum[kIn + 1]);
          sum[kIn + 2] = fma(g[v], pixels.column_cos[r][v], sum[kIn + 2]);
#pragma unroll
          for (int k = 0; k < kIn; ++k) {
            sum[1 + k] = fma(g[v], pixels.x[r][k][v], sum[1 + k]);
            back[r][k][v] = fma(a[k], g[v], back[r][k][v]);
          }
        }
        sum[0] += row;
        sum[kIn + 3] = fma(row, pixels.row_sin[r], sum[kIn + 3]);
        sum[kIn + 4] = fma(row, pixels.row_cos[r], sum[kIn + 4]);
      }
      const T total = warp_sum_of_eight(sum);
      if (lane % 4 == 0) sums[(warp * kFfmMostChunk + c) * kSums + lane / 4] = total;
    }
    __syncthreads();
    write_sums<kIn>(f, tile, channel, channels, static_cast<int>(kFfmMostChunk), sums);
    if (f.m.projected != nullptr) {
#pragma unroll
      for (int r = 0; r < kCount; ++r)
        if (pixels.real[r]) {
          const int64_t at = plan.vector(tile, r, threadIdx.x) * kLanes;
#pragma unroll
          for (int k = 0; k < kIn; ++k) store_all(projected_at(f, chunk, k) + at, back[r][k]);
        }
    }
  }
}

// The channels of grad_y are neighbours. A thread keeps the folded map and the sums of kLanes channels in registers; what a
// position's channels give grad_x is added up over the threads that share it.
template <class E, class T, int kIn>
__global__ void __launch_bounds__(kFfmThreads)
    backward_last(const __grid_constant__ FfmCall<T> f, const __grid_constant__ FfmMap grad_y) {
  constexpr int kLanes = kLastLanes<E>, kRecord = ffm_record(kIn);
  const FfmShape& s = f.a.shape;
  const FfmLast plan = ffm_last(s, kLanes);
  T* const shared = shared_memory<T>();  // features, then sums [warp][channel][kSums]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, members = static_cast<int>(plan.members);
  for (int64_t unit = blockIdx.x; unit < plan.units(); unit += gridDim.x) {
    const int64_t tile = quotient(unit, plan.chunks), chunk = unit - tile * plan.chunks, first = tile * kFfmTile;
    const int64_t channel = plan.first_channel(chunk, threadIdx.x);
    const int channels = static_cast<int>(min64(plan.chunk, s.channels - chunk * plan.chunk));
    const int positions = static_cast<int>(min64(kFfmTile, plan.positions - first));
    const bool mine = channel < s.channels;
    __syncthreads();  // the last unit's sums have been read
    copy_features<E, kIn>(f, first, positions, shared);
    __syncthreads();
    T a[kIn + 5][kLanes], sum[kSums][kLanes] = {};
#pragma unroll
    for (int v = 0; v < kLanes; ++v) {
#pragma unroll
      for (int k = 0; k < kIn + 5; ++k) a[k][v] = mine ? f.m.folded[(channel + v) * kRecord + k] : T(0);
    }
    const E* const from = static_cast<const E*>(grad_y.data) + first * grad_y.column + channel;
    const auto fetch = [&](int p) {
      Pack<E, kLanes> pack{};
      if (mine && p < positions) pack = *reinterpret_cast<const Pack<E, kLanes>*>(from + p * grad_y.column);
      return pack;
    };
    // All threads of a warp go the same number of rounds: they add up together.
    const int rounds = (positions + plan.step() - 1) / plan.step();
    Pack<E, kLanes> next = fetch(plan.first(threadIdx.x));
    for (int round = 0; round < rounds; ++round) {
      const int p = plan.first(threadIdx.x) + round * plan.step();
      const Pack<E, kLanes> now = next;
      next = fetch(p + plan.step());
      T feature[kRecord], u[kLanes], g[kLanes], back[kIn] = {};
      load_all(shared + (p < positions ? p : positions - 1) * kRecord, feature);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) {
        g[v] = widen(now.element[v]);
        u[v] = a[kIn + 4][v];
#pragma unroll
        for (int k = 0; k < kIn + 4; ++k) u[v] = fma(a[k][v], feature[k], u[v]);
      }
      through_silu<E>(u, g);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) {
        if (p >= positions) g[v] = 0;  // also where u was not finite
        sum[0][v] += g[v];
#pragma unroll
        for (int k = 0; k < kIn + 4; ++k) {
          if (p < positions) sum[1 + k][v] = fma(g[v], feature[k], sum[1 + k][v]);
          if (k < kIn) back[k] = fma(a[k][v], g[v], back[k]);
        }
      }
      if (f.m.projected != nullptr) {
#pragma unroll
        for (int k = 0; k < kIn; ++k) {
          for (int distance = members / 2; distance > 0; distance /= 2)
            back[k] += __shfl_xor_sync(kWholeWarp, back[k], distance);
          if (p < positions && lane % members == 0) projected_at(f, chunk, k)[first + p] = back[k];
        }
      }
    }
    __syncthreads();  // the features have been read
#pragma unroll
    for (int v = 0; v < kLanes; ++v) {
#pragma unroll
      for (int e = 0; e < kIn + 5; ++e) {
        T total = sum[e][v];
        for (int distance = members; distance < kWarp; distance *= 2) total += __shfl_xor_sync(kWholeWarp, total, distance);
        if (lane < members) shared[(warp * static_cast<int>(plan.chunk) + lane * kLanes + v) * kSums + e] = total;
      }
    }
    __syncthreads();
    write_sums<kIn>(f, tile, chunk * plan.chunk, channels, static_cast<int>(plan.chunk), shared);
  }
}

// --- any number of image channels -------------------------------------------------------------------------------------

// g_u of a channel at a position.
template <class E, class T>
__device__ __forceinline__ T gradient_at(const FfmCall<T>& f, const FfmMap& grad_y, const FfmPosition& p, int64_t c) {
  T u[1] = {folded_at<E>(f, p, c)}, g[1] = {widen(*address<const E>(grad_y, p.image, c, p.row, p.column))};
  through_silu<E>(u, g);
  return g[0];
}

// A block for each channel of each tile: g_u of the tile's positions once, then a warp for each of the sums.
template <class E, class T>
__global__ void __launch_bounds__(kFfmThreads)
    general_sums(const __grid_constant__ FfmCall<T> f, const __grid_constant__ FfmMap grad_y) {
  __shared__ T gradient[kFfmTile];
  __shared__ FfmPosition at[kFfmTile];
  const FfmShape& s = f.a.shape;
  const int64_t n = s.inputs, units = f.m.tiles * s.channels;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t c = quotient(unit, f.m.tiles), tile = unit - c * f.m.tiles, first = tile * kFfmTile;
    const int positions = static_cast<int>(min64(kFfmTile, s.positions() - first));
    __syncthreads();  // the last unit's gradients have been read
    for (int i = threadIdx.x; i < positions; i += kFfmThreads) {
      at[i] = ffm_position(s, first + i);
      gradient[i] = gradient_at<E>(f, grad_y, at[i], c);
    }
    __syncthreads();
    for (int64_t e = warp; e < n + 5; e += kFfmWarps) {
      T sum = 0;
      for (int i = lane; i < positions; i += kWarp)
        sum = e == 0 ? sum + gradient[i] : fma(gradient[i], feature_at<E>(f, at[i], e - 1), sum);
      sum = warp_sum(sum);
      if (lane == 0) f.m.sums[unit * (n + 5) + e] = sum;
    }
  }
}

// A thread for each position and kPart of the image's channels; grad_y is read again for each part.
template <class E, class T>
__global__ void __launch_bounds__(kFfmThreads)
    general_project(const __grid_constant__ FfmCall<T> f, const __grid_constant__ FfmMap grad_y) {
  constexpr int kPart = 8;
  const FfmShape& s = f.a.shape;
  const int64_t n = s.inputs, positions = s.positions(), all = positions * ceil_div(n, kPart);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kFfmThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kFfmThreads + threadIdx.x; i < all; i += step) {
    const int64_t part = quotient(i, positions), position = i - part * positions;
    const FfmPosition p = ffm_position(s, position);
    T back[kPart] = {};
    for (int64_t c = 0; c < s.channels; ++c) {
      const T g = gradient_at<E>(f, grad_y, p, c);
      const T* const a = f.m.folded + c * ffm_record(n);
#pragma unroll
      for (int k = 0; k < kPart; ++k)
        if (part * kPart + k < n) back[k] = fma(a[part * kPart + k], g, back[k]);
    }
#pragma unroll
    for (int k = 0; k < kPart; ++k)
      if (part * kPart + k < n) projected_at(f, 0, part * kPart + k)[position] = back[k];
  }
}

// --- grad_x -----------------------------------------------------------------------------------------------------------

// Every element of grad_x, 0 where the grid has no pixel: a thread for each pixel of the image, or for kLanes neighbours of a
// row. kIn: the number of image channels where a thread can keep their features, else 0.
template <class E, class T, int kIn, int kLanes>
__global__ void __launch_bounds__(kFfmThreads)
    finish_grad_x(const __grid_constant__ FfmCall<T> f, const __grid_constant__ FfmMap grad_x) {
  const FfmShape& s = f.a.shape;
  const int64_t per_row = s.width / kLanes, per_image = s.height * per_row, all = s.batch * per_image;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kFfmThreads;
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * kFfmThreads + threadIdx.x; t < all; t += step) {
    const int64_t image = quotient(t, per_image), rest = t - image * per_image, i = quotient(rest, per_row);
    const int64_t left = (rest - i * per_row) * kLanes, row = quotient(i, s.stride);
    const bool in_grid = row * s.stride == i;
    int64_t column = quotient(left + s.stride - 1, s.stride);  // the next one of the grid
    if constexpr (kIn > 0) {
      T values[kIn][kLanes] = {};
#pragma unroll
      for (int v = 0; v < kLanes; ++v) {
        if (!in_grid || column * s.stride != left + v) continue;
        const FfmPosition p{image, row, column};
        T feature[kIn + 4];
#pragma unroll
        for (int e = 0; e < kIn + 4; ++e) feature[e] = feature_at<E>(f, p, e);
        const int64_t position = (image * s.out_height + row) * s.out_width + column;
#pragma unroll
        for (int k = 0; k < kIn; ++k) {
          const T* const a = f.m.correction + k * (kIn + 5);
          T sum = -a[kIn + 4];
#pragma unroll
          for (int e = 0; e < kIn + 4; ++e) sum = fma(-a[e], feature[e], sum);
          for (int64_t chunk = 0; chunk < f.m.chunks; ++chunk) sum += projected_at(f, chunk, k)[position];
          values[k][v] = sum;
        }
        ++column;
      }
#pragma unroll
      for (int k = 0; k < kIn; ++k) store<E, kLanes>(address<E>(grad_x, image, k, i, left), values[k]);
    } else {
      static_assert(kLanes == 1);
      const FfmPosition p{image, row, column};
      const int64_t position = (image * s.out_height + row) * s.out_width + column, features = s.features();
      for (int64_t k = 0; k < s.inputs; ++k) {
        T value[1] = {0};
        if (in_grid && column * s.stride == left) {
          const T* const a = f.m.correction + k * (features + 1);
          value[0] = -a[features];
          for (int64_t e = 0; e < features; ++e) value[0] = fma(-a[e], feature_at<E>(f, p, e), value[0]);
          value[0] += projected_at(f, 0, k)[position];
        }
        store<E, 1>(address<E>(grad_x, image, k, i, left), value);
      }
    }
  }
}

// The tiles and chunks that the sums of a call are kept for, and the layout that the pass takes.
struct Pass {
  FfmLayout layout;
  bool any;
  int64_t tiles, chunks;
};

template <class E>
constexpr bool has_vectors(int64_t inputs) {
  return sizeof(E) < 8 || inputs != 1;
}

template <class E>
Pass pass_of(const FfmShape& s, const FfmMap& grad_y) {
  if (s.inputs != 1 && s.inputs != 3) return {FfmLayout::kPlanesByOne, true, ceil_div(s.positions(), kFfmTile), 1};
  FfmLayout layout = ffm_layout(s, grad_y, sizeof(E), FfmVectors<E, true>::kLanes, kLastLanes<E>);
  // Vectors of doubles of a single image channel take registers that spill; one by one they don't.
  if (layout == FfmLayout::kPlanes && !has_vectors<E>(s.inputs)) layout = FfmLayout::kPlanesByOne;
  if (layout == FfmLayout::kLast) {
    const FfmLast p = ffm_last(s, kLastLanes<E>);
    return {layout, false, p.tiles, p.chunks};
  }
  const FfmPlanes p = layout == FfmLayout::kPlanes ? ffm_planes(s, FfmVectors<E, true>::kLanes, FfmVectors<E, true>::kCount)
                                                   : ffm_planes(s, 1, FfmVectors<E, false>::kCount);
  return {layout, false, p.tiles, p.chunks};
}

template <class E, class T, int kIn>
cudaError_t run_pass(const FfmCall<T>& call, const Pass& pass, const FfmMap& grad_y, cudaStream_t stream) {
  constexpr size_t kRecord = ffm_record(kIn), kWarpSums = kFfmWarps * kFfmMostChunk * kSums;
  const int64_t blocks = blocks_for(pass.tiles * pass.chunks);
  static_assert(kWarpSums <= kFfmTile * kRecord);
  if (pass.layout == FfmLayout::kLast)
    return launch(backward_last<E, T, kIn>, blocks, kFfmThreads, sizeof(T) * (kFfmTile * kRecord), stream, call, grad_y);
  const auto kernel =
      pass.layout == FfmLayout::kPlanes ? backward_planes<E, T, kIn, has_vectors<E>(kIn)> : backward_planes<E, T, kIn, false>;
  return launch(kernel, blocks, kFfmThreads, sizeof(T) * (kFfmMostChunk * kRecord + kWarpSums), stream, call, grad_y);
}

}  // namespace

size_t ffm_backward_workspace(const FfmArguments& a, const FfmMap& grad_y, bool need_x) {
  return with_dtype(a.type, [&](auto element) {
    const Pass pass = pass_of<decltype(element)>(a.shape, grad_y);
    FfmMemory<Compute<decltype(element)>> memory{};
    return ffm_memory(a.shape, a.training, pass.tiles, pass.chunks, need_x, nullptr, &memory);
  });
}

cudaError_t ffm_backward(const FfmArguments& a, const FfmMap& grad_y, const FfmMap& grad_x, const FfmGradients& gradients,
                         void* workspace, cudaStream_t stream) {
  return with_dtype(a.type, [&](auto element) {
    using E = decltype(element);
    using T = Compute<E>;
    const FfmShape& s = a.shape;
    const Pass pass = pass_of<E>(s, grad_y);
    FfmCall<T> call{a, {}};
    ffm_memory(s, a.training, pass.tiles, pass.chunks, grad_x.data != nullptr, workspace, &call.m);
    cudaError_t status = ffm_prepare<E>(call, nullptr, nullptr, stream);
    if (status != cudaSuccess) return status;
    if (pass.any) {
      status = launch(general_sums<E, T>, blocks_for(pass.tiles * s.channels), kFfmThreads, 0, stream, call, grad_y);
      if (status == cudaSuccess && grad_x.data != nullptr)
        status = launch(general_project<E, T>, blocks_for(ceil_div(s.positions() * ceil_div(s.inputs, 8), kFfmThreads)),
                        kFfmThreads, 0, stream, call, grad_y);
    } else {
      status = s.inputs == 1 ? run_pass<E, T, 1>(call, pass, grad_y, stream) : run_pass<E, T, 3>(call, pass, grad_y, stream);
    }
    if (status == cudaSuccess) status = ffm_finish_backward(call, gradients, stream);
    if (status != cudaSuccess || grad_x.data == nullptr) return status;
    constexpr int kLanes = 16 / static_cast<int>(sizeof(E));
    const bool vectors = !pass.any && ffm_whole_vectors(grad_x, s.batch, s.inputs, s.height, s.width, sizeof(E), kLanes);
    const auto finish = [&](auto* kernel) {
      const int64_t threads = s.batch * s.height * (s.width / (vectors ? kLanes : 1));
      return launch(kernel, blocks_for(ceil_div(threads, kFfmThreads)), kFfmThreads, 0, stream, call, grad_x);
    };
    if (pass.any) return finish(finish_grad_x<E, T, 0, 1>);
    if (s.inputs == 1) return finish(vectors ? finish_grad_x<E, T, 1, kLanes> : finish_grad_x<E, T, 1, 1>);
    return finish(vectors ? finish_grad_x<E, T, 3, kLanes> : finish_grad_x<E, T, 3, 1>);
  });
}

}  // namespace lgld::cuda
