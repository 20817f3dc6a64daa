// y = SiLU(slope . f' + offset): the image is read once, nothing but y is written.
//
// An output costs inputs + 2 multiply-adds, two more for each vector of a row, and a SiLU of some 10 operations, two of them
// (in 16 bit one and a half) on the special-function units, a quarter of whose rate the other units have. It moves one element
// of y and stride * inputs / channels of x, 6 / 64 in LGLD-Net, whose rows are read whole and whose other rows are not. By an
// H200's peak rates (4 TB/s copied, 132 x 128 lanes at 1.75 GHz) a float output is 1.1 ps of memory against 0.4 ps of
// instructions, a 16-bit one 0.55 against 0.4: bound by memory in both, in 16 bit with little to spare.
#include "tile.cuh"

namespace lgld::cuda {
namespace {

// Planes of y, of any strides where kVectors is false. A thread keeps the features of its positions in registers.
template <class E, class T, int kIn, bool kVectors>
__global__ void __launch_bounds__(kFfmThreads)
    forward_planes(const __grid_constant__ FfmCall<T> f, const __grid_constant__ FfmMap y) {
  constexpr int kLanes = FfmVectors<E, kVectors>::kLanes, kCount = FfmVectors<E, kVectors>::kCount, kRecord = ffm_record(kIn);
  const FfmShape& s = f.a.shape;
  const FfmPlanes plan = ffm_planes(s, kLanes, kCount);
  T* const folded = shared_memory<T>();
  for (int64_t unit = blockIdx.x; unit < plan.units(); unit += gridDim.x) {
    const int64_t tile = quotient(unit, plan.chunks), channel = (unit - tile * plan.chunks) * plan.chunk;
    const int channels = static_cast<int>(min64(plan.chunk, s.channels - channel));
    __syncthreads();  // the last unit's map has been read
    copy_folded(f, channel, channels, kRecord, folded);
    FfmPixels<E, T, kIn, kLanes, kCount> pixels;
    E* out[kCount];
    pixels.read(f, plan, tile, [&](int r, const FfmPosition& p) { out[r] = address<E>(y, p.image, channel, p.row, p.column); });
    __syncthreads();
    for (int c = 0; c < channels; ++c) {
      T a[kRecord];
      load_all(folded + c * kRecord, a);
#pragma unroll
      for (int r = 0; r < kCount; ++r) {
        T u[kLanes], sigmoid[kLanes];
        pixels.apply(a, r, u);
        sigmoids<E>(u, sigmoid);
#pragma unroll
        for (int v = 0; v < kLanes; ++v) u[v] = silu_of(u[v], sigmoid[v]);
        if (pixels.real[r]) store<E, kLanes>(out[r], u);
        out[r] += y.channel;
      }
    }
  }
}

// Channels of y are neighbours. A thread keeps the folded map of 16 bytes of channels in registers; the tile's features, of
// which its threads read the same ones, lie in shared memory.
template <class E, class T, int kIn>
__global__ void __launch_bounds__(kFfmThreads)
    forward_last(const __grid_constant__ FfmCall<T> f, const __grid_constant__ FfmMap y) {
  constexpr int kLanes = 16 / static_cast<int>(sizeof(E)), kRecord = ffm_record(kIn);
  const FfmShape& s = f.a.shape;
  const FfmLast plan = ffm_last(s, kLanes);
  T* const features = shared_memory<T>();
  for (int64_t unit = blockIdx.x; unit < plan.units(); unit += gridDim.x) {
    const int64_t tile = quotient(unit, plan.chunks);
    const int64_t channel = plan.first_channel(unit - tile * plan.chunks, threadIdx.x), first = tile * kFfmTile;
    const int positions = static_cast<int>(min64(kFfmTile, plan.positions - first));
    __syncthreads();  // the last unit's features have been read
    copy_features<E, kIn>(f, first, positions, features);
    __syncthreads();
    if (channel >= s.channels) continue;
    T a[kRecord][kLanes];
#pragma unroll
    for (int v = 0; v < kLanes; ++v) {
#pragma unroll
      for (int k = 0; k < kIn + 5; ++k) a[k][v] = f.m.folded[(channel + v) * kRecord + k];
    }
    for (int p = plan.first(threadIdx.x); p < positions; p += plan.step()) {
      T feature[kRecord], u[kLanes], sigmoid[kLanes];
      load_all(features + p * kRecord, feature);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) {
        u[v] = a[kIn + 4][v];
#pragma unroll
        for (int k = 0; k < kIn + 4; ++k) u[v] = fma(a[k][v], feature[k], u[v]);
      }
      sigmoids<E>(u, sigmoid);
#pragma unroll
      for (int v = 0; v < kLanes; ++v) u[v] = silu_of(u[v], sigmoid[v]);
      store<E, kLanes>(static_cast<E*>(y.data) + (first + p) * y.column + channel, u);
    }
  }
}

// Any number of image channels: a thread for each element of y, neighbours in the order in which y's memory has them.
template <class E, class T>
__global__ void __launch_bounds__(kFfmThreads)
    general_forward(const __grid_constant__ FfmCall<T> f, const __grid_constant__ FfmMap y) {
  const FfmShape& s = f.a.shape;
  const int64_t positions = s.positions(), all = positions * s.channels;
  const bool last = y.channel == 1;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kFfmThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kFfmThreads + threadIdx.x; i < all; i += step) {
    const int64_t slow = quotient(i, last ? s.channels : positions), fast = i - slow * (last ? s.channels : positions);
    const int64_t c = last ? fast : slow;
    const FfmPosition p = ffm_position(s, last ? slow : fast);
    T u[1] = {folded_at<E>(f, p, c)}, sigmoid[1];
    sigmoids<E>(u, sigmoid);
    u[0] = silu_of(u[0], sigmoid[0]);
    store<E, 1>(address<E>(y, p.image, c, p.row, p.column), u);
  }
}

}  // namespace

size_t ffm_forward_workspace(const FfmArguments& a) {
  return with_dtype(a.type, [&](auto e) {
    FfmMemory<Compute<decltype(e)>> memory{};
    return ffm_memory(a.shape, a.training, 0, 0, false, nullptr, &memory);
  });
}

cudaError_t ffm_forward(const FfmArguments& a, const FfmMap& y, void* mean, void* var, void* workspace, cudaStream_t stream) {
  return with_dtype(a.type, [&](auto element) {
    using E = decltype(element);
    using T = Compute<E>;
    const FfmShape& s = a.shape;
    FfmCall<T> call{a, {}};
    ffm_memory(s, a.training, 0, 0, false, workspace, &call.m);
    const cudaError_t status = ffm_prepare<E>(call, mean, var, stream);
    if (status != cudaSuccess || s.batch == 0) return status;
    const auto run = [&](auto inputs) {
      constexpr int kIn = decltype(inputs)::value;
      constexpr int kLanes = FfmVectors<E, true>::kLanes;
      const FfmLayout layout = ffm_layout(s, y, sizeof(E), kLanes, kLanes);
      if (layout == FfmLayout::kLast)
        return launch(forward_last<E, T, kIn>, blocks_for(ffm_last(s, kLanes).units()), kFfmThreads,
                      kFfmTile * ffm_record(kIn) * sizeof(T), stream, call, y);
      const bool vectors = layout == FfmLayout::kPlanes;
      const FfmPlanes plan =
          vectors ? ffm_planes(s, kLanes, FfmVectors<E, true>::kCount) : ffm_planes(s, 1, FfmVectors<E, false>::kCount);
      return launch(vectors ? forward_planes<E, T, kIn, true> : forward_planes<E, T, kIn, false>, blocks_for(plan.units()),
                    kFfmThreads, kFfmMostChunk * ffm_record(kIn) * sizeof(T), stream, call, y);
    };
    if (s.inputs == 1) return run(std::integral_constant<int, 1>{});
    if (s.inputs == 3) return run(std::integral_constant<int, 3>{});
    return launch(general_forward<E, T>, blocks_for(ceil_div(s.positions() * s.channels, kFfmThreads)), kFfmThreads, 0, stream,
                  call, y);
  });
}

}  // namespace lgld::cuda
