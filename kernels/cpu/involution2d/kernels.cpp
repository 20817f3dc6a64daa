// Involution for one instruction set: compiled once per header of kernels/cpu/simd, named by LGLD_VARIANT.
#include LGLD_SIMD_HEADER

#include "channels_last.h"
#include "correlate.h"
#include "involution2d.h"
#include "reduce.h"
#include "task.h"

namespace lgld {
namespace {

constexpr int kWeightChannels = 16;

// Planes [channel, channel + count) of x around the tile's window.
template <class T, class S>
void pack_x(const Involution2dPlan& p, const Strided<const S>& x, const Task& t, int64_t channel, int64_t count, T* strip) {
  const Involution2dShape& s = p.shape;
  pack_planes(planes_of(x, t.image, channel, s.height, s.width), count,
              {t.row * s.stride_h - s.pad_h, t.col * s.stride_w - s.pad_w, s.stride_w}, p.map, strip);
}

// Where tap (u, v) of the tile's first output stands in a strip of x.
int64_t strip_offset(const Involution2dPlan& p, int64_t u, int64_t v) {
  const Involution2dShape& s = p.shape;
  const int64_t column = v * s.dilation_w;
  return u * s.dilation_h * p.map.row_pitch + column % s.stride_w * p.map.pitch + column / s.stride_w;
}

// The taps of a forward pass that stand one after the other in a strip, as runs: those whose columns differ by a multiple of
// the stride share a phase.
int64_t forward_runs(const Involution2dPlan& p, int64_t weight_tap, TapRun* list) {
  const Involution2dShape& s = p.shape;
  int64_t period = 1;
  while (period * s.dilation_w % s.stride_w != 0) ++period;
  int64_t runs = 0;
  for (int64_t u = 0; u < s.kernel_h; ++u)
    for (int64_t start = 0; start < period && start < s.kernel_w; ++start)
      for (int64_t v = start; v < s.kernel_w; v += period)
        runs = append_tap(list, runs, strip_offset(p, u, v), (u * s.kernel_w + v) * weight_tap);
  return runs;
}

// The packed strip as a dense tile's map: every element that is read exists.
template <class T>
MapView<T> packed_view(const StripLayout& layout, const T* strip) {
  constexpr int64_t kAny = int64_t{1} << 40;
  return {strip, layout.row_pitch, layout.plane_pitch, 0, kAny, 0, kAny};
}

// The caller's tensor as a dense tile's map, the first tap of the tile's first output reading element (row, column).
template <class T>
MapView<T> direct_view(const Planes<T>& map, int64_t row, int64_t column) {
  return {map.data + row * map.row + column, map.row, map.channel, -row, map.height - row, -column, map.width - column};
}

// Packing costs a pass that masked loads make unnecessary.
template <class T, class S>
constexpr bool kReadsDirectly = kMaskedWindows && std::is_same_v<S, T>;

// The view that dense tiles have of planes [channel, channel + planes) of the map from element (row, col) on: of the tensor
// itself or of strips that are packed here.
template <class T, class S>
MapView<T> dense_view(const Involution2dPlan& p, const Planes<S>& map, int64_t planes, int64_t row, int64_t col, T* strips) {
  if constexpr (kReadsDirectly<T, S>) {
    // A block of channels that is not whole is packed all the same: its missing planes are read, though not used.
    if (map.column == 1 && planes == kChannelBlock) return direct_view(map, row, col);
  }
  pack_planes(map, planes, {row, col, 1}, p.map, strips);
  return packed_view(p.map, strips);
}

template <class T>
void dense_dispatch(const Involution2dPlan& p, const MapView<T>& map, const WeightMaps<T>& weight, T* out, int64_t out_row,
                    int64_t out_plane, int64_t channels, const Task& t) {
  const int64_t k = p.shape.kernel_h;
  const auto run = k == 3 ? dense_rows<T, 3> : k == 5 ? dense_rows<T, 5> : dense_rows<T, 7>;
  run(map, weight, out, out_row, out_plane, t.rows, t.cols, channels);
}

// The weights of a forward tile, read in place or from strips that are packed here.
template <class T, class S>
WeightMaps<T> forward_weights(const Involution2dPlan& p, const Strided<const S>& weight, const Task& t, T* strips) {
  const int64_t taps = p.shape.taps();
  if constexpr (std::is_same_v<S, T>) {
    if (!p.packs_other)
      return {weight.data + t.image * weight.batch + t.group * taps * weight.channel + t.row * weight.row + t.col,
              weight.channel, weight.row, false};
  }
  pack_planes(planes_of(weight, t.image, t.group * taps, p.shape.out_height, p.shape.out_width), taps, {t.row, t.col, 1},
              p.other, strips);
  return {strips, p.other.plane_pitch, p.other.row_pitch, true};
}

template <class S>
void forward(const Involution2dPlan& p, Strided<const S> x, Strided<const S> weight, Strided<S> y, int64_t begin, int64_t end,
             void* memory) {
  using T = Compute<S>;
  using V = Vec<T>;
  const Involution2dShape& s = p.shape;
  if (p.channels_last) {
    forward_pixels(p, x, weight, y, begin, end, memory);
    return;
  }
  TapRun* list = scratch_at<TapRun>(memory, 0);
  T* strips = scratch_at<T>(memory, p.map_at);
  const int64_t group_channels = s.group_channels();
  int64_t runs = 0;
  if (!p.dense) runs = forward_runs(p, p.packs_other ? p.other.plane_pitch : weight.channel, list);

  for (int64_t index = begin; index < end; ++index) {
    const Task t = make_task(p, index, s.out_height, s.out_width);
    const WeightMaps<T> w = forward_weights(p, weight, t, scratch_at<T>(memory, p.other_at));
    for (int64_t c0 = 0; c0 < group_channels; c0 += p.planes) {
      const int64_t channels = group_channels - c0 < p.planes ? group_channels - c0 : p.planes;
      const int64_t channel = t.group * group_channels + c0;
      const Target<S> out(p, y, t, channel, memory);
      if (p.dense) {
        const Planes<S> planes = planes_of(x, t.image, channel, s.height, s.width);
        const MapView<T> map = dense_view(p, planes, channels, t.row - s.pad_h, t.col - s.pad_w, strips);
        dense_dispatch(p, map, w, out.data, out.row, out.plane, channels, t);
      } else {
        pack_x(p, x, t, channel, channels, strips);
        for (int64_t i = 0; i < t.rows; ++i)
          for (int64_t j = 0; j < t.cols; j += V::kLanes) {
            const int lanes = lanes_left<T>(t.cols - j);
            const auto run = lanes < V::kLanes && !w.slack ? sparse_vector<T, true> : sparse_vector<T, false>;
            run(strips + i * s.stride_h * p.map.row_pitch + j, p.map.plane_pitch, w.data + i * w.row + j, list, runs,
                out.data + i * out.row + j, out.plane, 1, channels, lanes);
          }
      }
      out.finish(p, y, t, channel, channels);
    }
  }
}

// grad_x[c, p] = sum_t weight[t, o] * grad_y[c, o] over the outputs o that read pixel p with tap t: o = (p + pad - t *
// dilation) / stride where that is whole. Rows and columns outside grad_y are zeros of both strips.
template <class S>
void grad_x(const Involution2dPlan& p, Strided<const S> grad_y, Strided<const S> weight, Strided<S> result, int64_t begin,
            int64_t end, void* memory) {
  using T = Compute<S>;
  using V = Vec<T>;
  const Involution2dShape& s = p.shape;
  if (p.channels_last) {
    grad_x_pixels(p, grad_y, weight, result, begin, end, memory);
    return;
  }
  TapRun* list = scratch_at<TapRun>(memory, 0);
  T* strips = scratch_at<T>(memory, p.map_at);
  T* weights = scratch_at<T>(memory, p.other_at);
  const int64_t group_channels = s.group_channels(), taps = s.taps();
  const int64_t reach_h = (s.kernel_h - 1) * s.dilation_h, reach_w = (s.kernel_w - 1) * s.dilation_w;

  for (int64_t index = begin; index < end; ++index) {
    const Task t = make_task(p, index, s.height, s.width);
    const int64_t row0 = floor_div(t.row + s.pad_h - reach_h, s.stride_h);
    const int64_t col0 = floor_div(t.col + s.pad_w - reach_w, s.stride_w);
    for (int64_t k = 0; k < taps; ++k) {
      // Dense windows are mirrored: the strip's first tap is the kernel's last.
      const int64_t at = p.dense ? taps - 1 - k : k;
      const int64_t down = p.dense ? at / s.kernel_w : 0, along = p.dense ? at % s.kernel_w : 0;
      pack_planes(planes_of(weight, t.image, t.group * taps + k, s.out_height, s.out_width), 1, {row0 + down, col0 + along, 1},
                  p.other, weights + at * p.other.plane_pitch);
    }
    for (int64_t c0 = 0; c0 < group_channels; c0 += p.planes) {
      const int64_t channels = group_channels - c0 < p.planes ? group_channels - c0 : p.planes;
      const int64_t channel = t.group * group_channels + c0;
      const Target<S> out(p, result, t, channel, memory);
      const Planes<S> planes = planes_of(grad_y, t.image, channel, s.out_height, s.out_width);
      if (p.dense) {
        const MapView<T> map = dense_view(p, planes, channels, row0, col0, strips);
        dense_dispatch(p, map, {weights, p.other.plane_pitch, p.other.row_pitch, true}, out.data, out.row, out.plane, channels,
                       t);
        out.finish(p, result, t, channel, channels);
        continue;
      }
      pack_planes(planes, channels, {row0, col0, 1}, p.map, strips);
      for (int64_t i = 0; i < t.rows; ++i) {
        for (int64_t phase = 0; phase < s.stride_w && phase < t.cols; ++phase) {
          int64_t count = 0;
          for (int64_t u = 0; u < s.kernel_h; ++u) {
            const int64_t row = t.row + i + s.pad_h - u * s.dilation_h;
            if (row % s.stride_h != 0) continue;
            for (int64_t v = s.kernel_w - 1; v >= 0; --v) {
              const int64_t col = t.col + phase + s.pad_w - v * s.dilation_w;
              if (col % s.stride_w != 0) continue;
              const int64_t at = (row / s.stride_h - row0) * p.map.row_pitch + (col / s.stride_w - col0);
              count = append_tap(list, count, at, (u * s.kernel_w + v) * p.other.plane_pitch + at);
            }
          }
          const int64_t outputs = ceil_div(t.cols - phase, s.stride_w);
          for (int64_t j = 0; j < outputs; j += V::kLanes) {
            const int lanes = lanes_left<T>(outputs - j);
            sparse_vector<T, false>(strips + j, p.map.plane_pitch, weights + j, list, count,
                                    out.data + i * out.row + phase + j * s.stride_w, out.plane, s.stride_w, channels, lanes);
          }
        }
      }
      out.finish(p, result, t, channel, channels);
    }
  }
}

// Planes of grad_y under a tile, read in place or from strips that are packed here.
template <class T, class S>
WeightMaps<T> grad_planes(const Involution2dPlan& p, const Strided<const S>& grad_y, const Task& t, int64_t channel,
                          int64_t channels, T* strips) {
  if constexpr (std::is_same_v<S, T>) {
    if (!p.packs_other) return {corner_of(grad_y, t, channel), grad_y.channel, grad_y.row, false};
  }
  pack_planes(planes_of(grad_y, t.image, channel, p.shape.out_height, p.shape.out_width), channels, {t.row, t.col, 1}, p.other,
              strips);
  return {strips, p.other.plane_pitch, p.other.row_pitch, true};
}

template <class T>
void dense_grad_weight(int64_t k, const MapView<T>& map, int64_t i, int64_t j, const T* grad, int64_t grad_plane,
                       int64_t channels, bool first, T* out, int64_t tap_stride, int lanes) {
  const DenseMap<T> tile = tile_at(map, i, j, static_cast<int>(k));
  const bool inside =
      tile.first_row == 0 && tile.last_row == k && tile.first_column == 0 && tile.last_column == 2 * Vec<T>::kLanes;
  const bool whole = inside && lanes == Vec<T>::kLanes;
  const auto run = k == 3   ? (whole ? dense_tap_rows<T, 3, false> : dense_tap_rows<T, 3, true>)
                   : k == 5 ? (whole ? dense_tap_rows<T, 5, false> : dense_tap_rows<T, 5, true>)
                            : (whole ? dense_tap_rows<T, 7, false> : dense_tap_rows<T, 7, true>);
  run(tile, grad, grad_plane, channels, first, out, tap_stride, lanes);
}

template <class S>
void grad_weight(const Involution2dPlan& p, Strided<const S> grad_y, Strided<const S> x, Strided<S> result, int64_t begin,
                 int64_t end, void* memory) {
  using T = Compute<S>;
  using V = Vec<T>;
  const Involution2dShape& s = p.shape;
  T* strips = scratch_at<T>(memory, p.map_at);
  const int64_t group_channels = s.group_channels(), taps = s.taps();
  // One offset a tap, in the room that the other passes have runs in.
  int64_t* offset = scratch_at<int64_t>(memory, 0);
  for (int64_t t = 0; t < taps; ++t) offset[t] = strip_offset(p, t / s.kernel_w, t % s.kernel_w);

  for (int64_t index = begin; index < end; ++index) {
    const Task t = make_task(p, index, s.out_height, s.out_width);
    const Target<S> out(p, result, t, t.group * taps, memory);
    for (int64_t c0 = 0; c0 < group_channels; c0 += p.planes) {
      const int64_t channels = group_channels - c0 < p.planes ? group_channels - c0 : p.planes;
      const int64_t channel = t.group * group_channels + c0;
      MapView<T> map = packed_view(p.map, strips);
      bool direct = false;
      if constexpr (kReadsDirectly<T, S>) {
        direct = p.dense && x.column == 1;
        if (direct) map = direct_view(planes_of(x, t.image, channel, s.height, s.width), t.row - s.pad_h, t.col - s.pad_w);
      }
      if (!direct) pack_x(p, x, t, channel, channels, strips);
      const WeightMaps<T> grad = grad_planes(p, grad_y, t, channel, channels, scratch_at<T>(memory, p.other_at));
      for (int64_t i = 0; i < t.rows; ++i) {
        const T* row = strips + i * s.stride_h * p.map.row_pitch;
        for (int64_t j = 0; j < t.cols; j += V::kLanes) {
          const int lanes = lanes_left<T>(t.cols - j);
          const T* g = grad.data + i * grad.row + j;
          T* at = out.data + i * out.row + j;
          if (p.dense) {
            dense_grad_weight(s.kernel_h, map, i, j, g, grad.tap, channels, c0 == 0, at, out.plane, lanes);
            continue;
          }
          for (int64_t k = 0; k < taps; k += kSparseTaps)
            sparse_taps(row + j, p.map.plane_pitch, offset + k, taps - k, g, grad.tap, channels, c0 == 0, at + k * out.plane,
                        out.plane, lanes);
        }
      }
    }
    out.finish(p, result, t, t.group * taps, taps);
  }
}

}  // namespace

#define LGLD_CONCAT_(a, b) a##b
#define LGLD_CONCAT(a, b) LGLD_CONCAT_(a, b)

template <class S>
constexpr Involution2dKernels::Passes<S> kPasses{forward<S>, grad_x<S>, grad_weight<S>};

extern const Involution2dKernels LGLD_CONCAT(involution2d_, LGLD_VARIANT);
const Involution2dKernels LGLD_CONCAT(involution2d_, LGLD_VARIANT) = {
    Vec<float>::kLanes,
    Vec<double>::kLanes,
    kRowBlock,
    kChannelBlock,
    kSparseChannelBlock,
    kWeightChannels,
    {kTileVectors * Vec<float>::kLanes, kTileVectors * Vec<double>::kLanes},
    kPasses<float>,
    kPasses<double>,
    kPasses<Float16>,
    kPasses<BFloat16>,
};

}  // namespace lgld
