// Which kernel runs: K x K windows on dense maps have theirs, everything else the general one.
#include "../common/dtype.cuh"
#include "general.cuh"
#include "involution2d.h"
#include "launchers.h"

namespace lgld::cuda {

namespace {

// Below so many blocks, channels are split: some for each of the multiprocessors that large GPUs have (132 to 148), so that the
// last ones to end are a small part. Shapes, strides and alignment decide, never the GPU, so that results don't
// depend on it.
constexpr int64_t kEnoughBlocks = 768, kEnoughReduceBlocks = 256;
constexpr int64_t kLeastSliceChannels = 8;

constexpr int element_bytes(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

// Whether `m` is [batch, channels, height, width] without gaps, in that order; strides of dimensions of size 1 mean nothing.
template <class M>
bool is_dense(const M& m, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  return (width == 1 || m.column == 1) && (height == 1 || m.row == width) && (channels == 1 || m.channel == height * width) &&
         (batch == 1 || m.batch == channels * height * width);
}

// Whether a pixel's channels are neighbours, and whole vectors of them are aligned wherever they start.
template <class M>
bool has_vectors(const M& m, int bytes) {
  const auto whole = [bytes](int64_t stride) { return stride * bytes % 16 == 0; };
  return m.channel == 1 && whole(m.batch) && whole(m.row) && whole(m.column) && reinterpret_cast<uint64_t>(m.data) % 16 == 0;
}

template <class M>
int32_t copy_of(const M& m, int64_t width, int bytes) {
  return copy_bytes(reinterpret_cast<uint64_t>(m.data), width, bytes);
}

enum class Way { kTiles, kPixels, kGeneral };

struct Choice {
  Way way;
  TileArguments tiles;    // kTiles
  PixelArguments pixels;  // kPixels
  int64_t slices;         // kGeneral, grad_weight
};

Choice choose_apply(const Involution2dParams& p, bool mirrored) {
  const Involution2dShape& s = p.shape;
  Choice choice{Way::kGeneral, {}, {}, 1};
  const int bytes = element_bytes(p.dtype), kernel = static_cast<int>(s.kernel_h), stride = static_cast<int>(s.stride_h);
  if (!has_tile_kernel(s, bytes)) return choice;
  const TilePass pass = mirrored ? TilePass::kGradX : TilePass::kForward;
  const TileAxis rows = tile_axis(pass, s.height, s.out_height, kernel, stride, s.pad_h);
  const TileAxis columns = tile_axis(pass, s.width, s.out_width, kernel, stride, s.pad_w);
  const int64_t out_height = mirrored ? s.height : s.out_height, out_width = mirrored ? s.width : s.out_width;
  if (is_dense(p.a, s.batch, s.channels, rows.map, columns.map) &&
      is_dense(p.b, s.batch, s.groups * s.taps(), s.out_height, s.out_width) &&
      is_dense(p.out, s.batch, s.channels, out_height, out_width)) {
    const TilingRequest request{s.batch,
                                s.groups,
                                s.group_channels(),
                                rows.map,
                                columns.map,
                                rows.origin,
                                columns.origin,
                                rows.outputs,
                                columns.outputs,
                                copy_of(p.a, columns.map, bytes),
                                0,
                                ceil_div(s.group_channels(), kLeastSliceChannels),
                                kEnoughBlocks};
    if (!fits(request) || out_height * out_width > kLargestPlane) return choice;
    choice.way = Way::kTiles;
    choice.tiles = {plan_tiles(request, tile_kernel(kernel, bytes, pass, stride)),
                    p.a.data,
                    p.b.data,
                    p.out.data,
                    nullptr,
                    copy_of(p.out, out_width, bytes) >= 2 * bytes,
                    static_cast<int32_t>(out_height),
                    static_cast<int32_t>(out_width)};
  } else if (stride == 1 && has_vectors(p.a, bytes) && has_vectors(p.out, bytes) && s.group_channels() * bytes % 16 == 0) {
    choice.way = Way::kPixels;
    choice.pixels = {plan_pixels(s.batch, s.channels, out_height, out_width, kernel, bytes),
                     p.a,
                     p.b,
                     p.out,
                     rows.map,
                     columns.map,
                     rows.origin,
                     columns.origin,
                     out_height,
                     out_width,
                     s.group_channels()};
  }
  return choice;
}

cudaError_t apply(const Involution2dParams& p, bool mirrored, cudaStream_t stream) {
  const Choice choice = choose_apply(p, mirrored);
  const int kernel = static_cast<int>(p.shape.kernel_h), stride = static_cast<int>(p.shape.stride_h);
  switch (choice.way) {
    case Way::kTiles:
      return with_dtype(p.dtype,
                        [&](auto e) { return launch_apply<decltype(e)>(kernel, stride, mirrored, choice.tiles, stream); });
    case Way::kPixels:
      return with_dtype(p.dtype,
                        [&](auto e) { return launch_pixels_apply<decltype(e)>(kernel, mirrored, choice.pixels, stream); });
    default: return mirrored ? general_grad_x(p, stream) : general_forward(p, stream);
  }
}

// Of sums over channels: copies of x have `copy` bytes, those of grad_y `other_copy`.
TilingRequest request_reduce(const Involution2dShape& s, int32_t copy, int32_t other_copy) {
  return {s.batch,
          s.groups,
          s.group_channels(),
          s.height,
          s.width,
          s.pad_h,
          s.pad_w,
          s.out_height,
          s.out_width,
          copy,
          other_copy,
          ceil_div(s.group_channels(), 2 * kLeastSliceChannels),
          kEnoughReduceBlocks};
}

Choice choose_reduce(const Involution2dParams& p) {
  const Involution2dShape& s = p.shape;
  Choice choice{Way::kGeneral, {}, {}, 1};
  const int bytes = element_bytes(p.dtype);
  const int64_t sums = s.batch * s.groups * s.taps() * s.out_height * s.out_width;
  // A warp of sums for every warp that large GPUs hold, or 32 channels for each sum, whichever comes first.
  constexpr int64_t kEnoughSums = int64_t{1} << 18;
  if (sums > 0) choice.slices = max64(1, min64(ceil_div(kEnoughSums, sums), s.group_channels() / 32));
  if (!has_tile_kernel(s, bytes)) return choice;
  const int kernel = static_cast<int>(s.kernel_h), stride = static_cast<int>(s.stride_h);
  if (is_dense(p.b, s.batch, s.channels, s.height, s.width) && is_dense(p.a, s.batch, s.channels, s.out_height, s.out_width) &&
      is_dense(p.out, s.batch, s.groups * s.taps(), s.out_height, s.out_width)) {
    const TilingRequest request = request_reduce(s, copy_of(p.b, s.width, bytes), copy_of(p.a, s.out_width, bytes));
    if (!fits(request)) return choice;
    choice.way = Way::kTiles;
    choice.tiles = {plan_tiles(request, tile_kernel(kernel, bytes, TilePass::kGradWeight, stride)),
                    p.b.data,
                    p.a.data,
                    p.out.data,
                    p.scratch,
                    copy_of(p.out, s.out_width, bytes) >= 2 * bytes,
                    0,
                    0};
    choice.slices = choice.tiles.tiling.slices;
  } else if (stride == 1 && choice.slices == 1 && has_vectors(p.a, bytes) && has_vectors(p.b, bytes) &&
             s.group_channels() * bytes % 16 == 0) {
    choice.way = Way::kPixels;
  }
  return choice;
}

Choice choose_gradients(const Involution2dGradients& p) {
  const Involution2dShape& s = p.shape;
  Choice choice{Way::kGeneral, {}, {}, 1};
  const int bytes = element_bytes(p.dtype);
  const auto dense = [&](const auto& m, int64_t channels) { return is_dense(m, s.batch, channels, s.height, s.width); };
  const int64_t maps = s.groups * s.taps();
  if (!has_involution2d_gradients(s, p.dtype) || !dense(p.x, s.channels) || !dense(p.grad_y, s.channels) ||
      !dense(p.weight, maps) || !dense(p.grad_x, s.channels) || !dense(p.grad_weight, maps))
    return choice;
  const auto copy = [&](const auto& m) { return copy_of(m, s.width, bytes); };
  // A tile of grad_y has the pixels around it, too: it lies as x's does, and counts as no other map.
  const TilingRequest request = request_reduce(s, copy(p.x) < copy(p.grad_y) ? copy(p.x) : copy(p.grad_y), 0);
  choice.way = Way::kTiles;
  choice.tiles = {plan_tiles(request, gradients_kernel_of(bytes)),
                  p.x.data,
                  p.grad_y.data,
                  p.grad_weight.data,
                  p.scratch,
                  copy(p.grad_weight) >= 2 * bytes && copy(p.grad_x) >= 2 * bytes,
                  static_cast<int32_t>(s.height),
                  static_cast<int32_t>(s.width)};
  choice.slices = choice.tiles.tiling.slices;
  return choice;
}

// Of grad_weight's sums over parts of the channels.
int64_t scratch_bytes(const Involution2dShape& s, Dtype dtype, int64_t slices) {
  const int64_t sums = s.batch * s.groups * s.taps() * s.out_height * s.out_width;
  return slices == 1 ? 0 : slices * sums * (dtype == Dtype::kFloat64 ? 8 : 4);
}

}  // namespace

cudaError_t involution2d(const Involution2dParams& p, cudaStream_t stream) { return apply(p, false, stream); }

cudaError_t involution2d_grad_x(const Involution2dParams& p, cudaStream_t stream) { return apply(p, true, stream); }

cudaError_t involution2d_grad_weight(const Involution2dParams& p, cudaStream_t stream) {
  const Involution2dShape& s = p.shape;
  const Choice choice = choose_reduce(p);
  const int kernel = static_cast<int>(s.kernel_h), stride = static_cast<int>(s.stride_h);
  if (choice.way == Way::kGeneral) return general_grad_weight(p, choice.slices, stream);
  if (choice.way == Way::kPixels) {
    const PixelReduceArguments a{p.b,          p.a,         p.out,    s.height,           s.width, s.pad_h, s.pad_w,
                                 s.out_height, s.out_width, s.groups, s.group_channels(), 0,       0};
    return with_dtype(p.dtype, [&](auto e) { return launch_pixels_reduce<decltype(e)>(kernel, a, s.batch, stream); });
  }
  const cudaError_t error =
      with_dtype(p.dtype, [&](auto e) { return launch_reduce<decltype(e)>(kernel, stride, choice.tiles, stream); });
  return error != cudaSuccess || choice.slices == 1 ? error : sum_slices(p, choice.slices, stream);
}

int64_t involution2d_scratch_bytes(const Involution2dParams& p) {
  return scratch_bytes(p.shape, p.dtype, choose_reduce(p).slices);
}

bool has_involution2d_gradients(const Involution2dShape& s, Dtype dtype) {
  const int bytes = element_bytes(dtype);
  return has_gradients_kernel(s, bytes) && fits(request_reduce(s, bytes, bytes));
}

int64_t involution2d_gradients_scratch_bytes(const Involution2dGradients& p) {
  return scratch_bytes(p.shape, p.dtype, choose_gradients(p).slices);
}

cudaError_t involution2d_gradients(const Involution2dGradients& p, cudaStream_t stream) {
  const Choice choice = choose_gradients(p);
  if (choice.way != Way::kTiles) return cudaErrorInvalidValue;
  const cudaError_t error = with_dtype(p.dtype, [&](auto e) {
    if constexpr (sizeof(e) == 8)
      return cudaErrorInvalidValue;  // has_gradients_kernel
    else
      return launch_gradients<decltype(e)>(choice.tiles, {p.weight.data, p.grad_x.data}, stream);
  });
  if (error != cudaSuccess || choice.slices == 1) return error;
  return sum_slices({p.shape, p.dtype, p.grad_y, p.x, p.grad_weight, p.scratch}, choice.slices, stream);
}

}  // namespace lgld::cuda
