// Both gradients of 3 x 3 windows with "same" padding on NCHW maps, grad_y and x read once for both; index.h says how.
//
// The window of grad_x in grad_y is the one of grad_weight in x: x's and grad_y's planes are staged alike, by the same copies.
// Each channel costs a thread 2 * 3 * (rows + 2) + rows loads from shared memory for rows * 18 multiply-adds.
#include "weights.cuh"

namespace lgld::cuda {
namespace {

template <class E, int kRows, int kPixels, int kMostThreads, int kStages>
__global__ void __launch_bounds__(kMostThreads, kBlocksTogether)
    gradients_kernel(const __grid_constant__ TileArguments a, const __grid_constant__ GradientArguments g, int64_t first) {
  constexpr int kKernel = 3, kTaps = kKernel * kKernel, kSize = sizeof(E);
  constexpr bool kPairs = kPixels == 2;
  unsigned char* const shared = shared_memory<unsigned char>();
  const Tiling& t = a.tiling;
  const int stage_elements = t.stage_bytes / kSize, plane_elements = t.map.bytes / kSize;
  const int64_t plane = elements(t.map.height, t.map.width);  // of all maps and of the results
  // As in apply_kernel, the thread finds its place anew around the weights.
  {
    const Place<E, 1> place(a, block_number(first), hidden_thread());
    const E* gradient = static_cast<const E*>(a.other) + place.channel * plane;
    const E* from = place.map;
    E* staged = reinterpret_cast<E*>(shared) + place.plane * plane_elements;
#pragma unroll 1
    for (int n = 0; n < kStages - 1; ++n) {
      if (n < place.spot.channels) {
        place.copier.run(t.map, staged, from);
        place.copier.run(t.map, staged + t.planes * plane_elements, gradient);
      }
      close_group();
      from += plane, gradient += plane, staged += stage_elements;
    }
  }
  Weights<E, kKernel, kRows, kPixels> weights;
  weights.load_mirrored(t, g.weight, find_spot(t, block_number(first), hidden_thread()));

  const Place<E, 1> place(a, block_number(first), hidden_thread());
  const Spot& spot = place.spot;
  E* const staged = reinterpret_cast<E*>(shared) + place.plane * plane_elements;
  const int at = staged_at(t.map, 1, spot.tile_row, spot.tile_column, spot.row, spot.column);
  E* out = static_cast<E*>(g.grad_x) + place.channel * plane + elements(spot.row, t.out_width) + spot.column;
  const int rows = spot.column < t.out_width ? t.out_height - spot.row : 0;  // of this thread that exist
  const bool second = spot.column + 1 < t.out_width;
  const E* from = place.map + (kStages - 1) * plane;
  const E* gradient_from = static_cast<const E*>(a.other) + (place.channel + kStages - 1) * plane;
  Compute<E> sum[kRows][kPixels][kTaps] = {};
  const auto copy = [&](int stage) {
    place.copier.run(t.map, staged + stage * stage_elements, from);
    place.copier.run(t.map, staged + stage * stage_elements + t.planes * plane_elements, gradient_from);
    from += plane, gradient_from += plane;
  };
  each_step<kStages>(t.slice_channels, spot.channels, copy, [&](int stage) {
    const E* x = staged + stage * stage_elements + at;
    const E* grad = x + t.planes * plane_elements;
    Compute<E> gradient[kRows][kPixels], back[kRows][kPixels] = {};
    // The pixel itself is its window's middle: in 16 bits the first of a pair, since the window starts with a second.
#pragma unroll
    for (int o = 0; o < kRows; ++o) read_staged<kPairs, false>(grad + (o + 1) * t.map.pitch + 1, gradient[o]);
#pragma unroll
    for (int r = 0; r < kRows + kKernel - 1; ++r) {
      Compute<E> window[kPixels + kKernel - 1], grad_window[kPixels + kKernel - 1];
      read_staged<kPairs, true>(x, window);
      read_staged<kPairs, true>(grad, grad_window);
      x += t.map.pitch, grad += t.map.pitch;
#pragma unroll
      for (int u = 0; u < kKernel; ++u) {
        const int o = r - u;
        if (o < 0 || o >= kRows) continue;
#pragma unroll
        for (int v = 0; v < kKernel; ++v)
#pragma unroll
          for (int p = 0; p < kPixels; ++p) {
            sum[o][p][u * kKernel + v] += gradient[o][p] * window[p + v];
            back[o][p] += weights.tap[o][p][u * kKernel + v] * grad_window[p + v];
          }
      }
    }
    write_rows<E, kRows, kPixels>(out, back, rows, second, t.out_width, a.out_pairs);
    out += plane;
  });
  write_sums<E, kRows, kPixels, kTaps>(a, find_spot(t, block_number(first), hidden_thread()), sum);
}

}  // namespace

template <class E>
cudaError_t launch_gradients(const TileArguments& a, const GradientArguments& g, cudaStream_t stream) {
  constexpr TileKernel k = gradients_kernel_of(sizeof(E));
  const Tiling& t = a.tiling;
  const int threads = t.lanes * t.thread_rows * t.planes;
  return launch_in_pieces(t.blocks, [&](int64_t first, unsigned blocks) {
    return launch(gradients_kernel<E, k.rows, k.pixels, k.most_threads, k.stages>, blocks, threads, t.stage_bytes * k.stages,
                  stream, a, g, first);
  });
}

template cudaError_t launch_gradients<float>(const TileArguments& a, const GradientArguments& g, cudaStream_t stream);
template cudaError_t launch_gradients<__half>(const TileArguments& a, const GradientArguments& g, cudaStream_t stream);
template cudaError_t launch_gradients<__nv_bfloat16>(const TileArguments& a, const GradientArguments& g, cudaStream_t stream);

}  // namespace lgld::cuda
