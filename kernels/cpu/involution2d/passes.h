// The three passes: a task's tiles, what is packed for them, and which kernel computes them. Each kernels_<dtype>.cpp has them
// for its dtype, so that several compile at a time.
#pragma once
#include "channels_last.h"
#include "correlate.h"
#include "involution2d.h"
#include "reduce.h"
#include "reduce_pixels.h"
#include "reduce_taps.h"
#include "task.h"

namespace lgld {
namespace {

constexpr int kWeightChannels = 16;

// Planes [channel, channel + count) of x around the tile's window.
template <bool kZeroRows = true, class T, class S>
void pack_x(const Involution2dPlan& p, const Strided<const S>& x, const Task& t, int64_t channel, int64_t count, T* strip) {
  const Involution2dShape& s = p.shape;
  pack_planes<kZeroRows>(planes_of(x, t.image, channel, s.height, s.width), count,
                         {t.row * s.stride_h - s.pad_h, t.col * s.stride_w - s.pad_w, s.stride_w}, p.map, strip);
}

// Tiles compute a whole block of channels and store those that exist. Where a group has no whole block the strips of the others
// are never packed.
template <class T>
void clear_missing_planes(const Involution2dPlan& p, T* strips) {
  const int64_t channels = p.shape.group_channels();
  if (!p.direct && channels < p.planes)
    zero_vectors(strips + channels * p.map.plane_pitch, (p.planes - channels) * p.map.plane_pitch);
}

// Where tap (u, v) of the tile's first output stands in a strip of x.
inline int64_t strip_offset(const Involution2dPlan& p, int64_t u, int64_t v) {
  const Involution2dShape& s = p.shape;
  const int64_t column = v * s.dilation_w;
  return u * s.dilation_h * p.map.row_pitch + column % s.stride_w * p.map.pitch + column / s.stride_w;
}

// The taps of a forward pass that stand one after the other in a strip, as runs: those whose columns differ by a multiple of
// the stride share a phase.
inline int64_t forward_runs(const Involution2dPlan& p, int64_t weight_tap, TapRun* list) {
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

template <class M, class W, class S>
void dense_dispatch(const Involution2dPlan& p, const MapView<M>& map, const WeightMaps<W>& weight, S* out, int64_t out_row,
                    int64_t out_plane, int64_t channels, const Task& t) {
  const int64_t k = p.shape.kernel_h;
  if constexpr (!std::is_same_v<W, Compute<W>>) {
    // Larger windows widen their weights once for all channels, see dense_rows_keeping. With K = 3 there are 9 multiply-adds
    // for a weight and channel, too few to be worth it.
    dense_rows<3, M, W, S>(map, weight, out, out_row, out_plane, t.rows, t.cols, channels);
  } else {
    const auto run = k == 3 ? dense_rows<3, M, W, S> : k == 5 ? dense_rows<5, M, W, S> : dense_rows<7, M, W, S>;
    run(map, weight, out, out_row, out_plane, t.rows, t.cols, channels);
  }
}

// All channels of a task, the map read in place from element (row, col) of its planes on. Where the last block of channels is
// not whole it begins earlier and computes some channels again.
template <class W, class S>
void dense_direct(const Involution2dPlan& p, const Strided<const S>& map, int64_t row, int64_t col, int64_t height,
                  int64_t width, const WeightMaps<W>& weight, const Strided<S>& result, const Task& t, void* memory) {
  const int64_t group_channels = p.shape.group_channels();
  for (int64_t c = 0; c < group_channels; c += kChannelBlock) {
    const int64_t channel =
        t.group * group_channels + (c + kChannelBlock <= group_channels ? c : group_channels - kChannelBlock);
    const MapView<S> view = direct_view(planes_of(map, t.image, channel, height, width), row, col);
    if constexpr (std::is_same_v<S, Compute<S>>) {
      const Target<S> out(p, result, t, channel, memory);
      dense_dispatch(p, view, weight, out.data, out.row, out.plane, kChannelBlock, t);
      out.finish(p, result, t, channel, kChannelBlock);
    } else {
      dense_dispatch(p, view, weight, corner_of(result, t, channel), result.row, result.channel, kChannelBlock, t);
    }
  }
}

// The weights of a forward tile.
template <class S>
WeightMaps<S> weights_in_place(const Involution2dPlan& p, const Strided<const S>& weight, const Task& t) {
  return {corner_of(weight, t, t.group * p.shape.taps()), weight.channel, weight.row, false};
}

template <class S>
WeightMaps<Compute<S>> packed_weights(const Involution2dPlan& p, const Strided<const S>& weight, const Task& t, void* memory) {
  Compute<S>* strips = scratch_at<Compute<S>>(memory, p.other_at);
  const int64_t taps = p.shape.taps();
  pack_planes(planes_of(weight, t.image, t.group * taps, p.shape.out_height, p.shape.out_width), taps, {t.row, t.col, 1},
              p.other, strips);
  return {strips, p.other.plane_pitch, p.other.row_pitch, true};
}

template <class S>
WeightMaps<Compute<S>> forward_weights(const Involution2dPlan& p, const Strided<const S>& weight, const Task& t, void* memory) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    if (!p.packs_other) return weights_in_place(p, weight, t);
  }
  return packed_weights(p, weight, t, memory);
}

// A block of channels of a forward tile where the window is not dense. `map`: their strips.
template <class T, class W, class S>
void sparse_rows(const Involution2dPlan& p, const T* map, const WeightMaps<W>& weight, const TapRun* runs, int64_t count,
                 S* out, int64_t out_row, int64_t out_plane, int64_t channels, const Task& t) {
  constexpr int kLanes = Vec<T>::kLanes;
  for (int64_t i = 0; i < t.rows; ++i)
    for (int64_t j = 0; j < t.cols; j += kLanes) {
      const int lanes = lanes_left<T>(t.cols - j);
      const auto run = lanes < kLanes && !weight.slack ? sparse_vector<T, true, W, S> : sparse_vector<T, false, W, S>;
      run(map + i * p.shape.stride_h * p.map.row_pitch + j, p.map.plane_pitch, weight.data + i * weight.row + j, runs, count,
          out + i * out_row + j, out_plane, 1, channels, lanes);
    }
}

template <class S>
void forward(const Involution2dPlan& p, Strided<const S> x, Strided<const S> weight, Strided<S> y, int64_t begin, int64_t end,
             void* memory) {
  using T = Compute<S>;
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
  clear_missing_planes(p, strips);

  for (int64_t index = begin; index < end; ++index) {
    Task t = make_task(p, index, s.out_height, s.out_width);
    if constexpr (kMaskedWindows) {
      if (p.direct) {
        // All blocks of channels read the weights under the tile.
        const int64_t most = kWeightBytes / (s.taps() * t.cols * static_cast<int64_t>(sizeof(S)));
        if (!p.packs_other && !p.stages_result) index = merge_below(p, index, end, s.out_height, most, t);
        const int64_t row = t.row - s.pad_h, col = t.col - s.pad_w;
        if constexpr (!std::is_same_v<S, T>) {
          if (!p.packs_other && s.kernel_h > 3) {
            const int64_t channel = t.group * group_channels;
            const MapView<S> view = direct_view(planes_of(x, t.image, channel, s.height, s.width), row, col);
            const auto rows = s.kernel_h == 5 ? dense_rows_keeping<5, S> : dense_rows_keeping<7, S>;
            rows(view, weights_in_place(p, weight, t), corner_of(y, t, channel), y.row, y.channel, t.rows, t.cols,
                 group_channels);
            continue;
          }
        }
        if (!p.packs_other) {
          dense_direct(p, x, row, col, s.height, s.width, weights_in_place(p, weight, t), y, t, memory);
          continue;
        }
        // A few rows at a time, whose packed weights stay in the first two caches.
        for (int64_t i = 0; i < t.rows; i += p.other.rows) {
          Task part = t;
          part.row += i, part.rows = t.rows - i < p.other.rows ? t.rows - i : p.other.rows;
          dense_direct(p, x, row + i, col, s.height, s.width, packed_weights(p, weight, part, memory), y, part, memory);
        }
        continue;
      }
    }
    const auto each_block = [&](const auto& run) {
      for (int64_t c0 = 0; c0 < group_channels; c0 += p.planes) {
        const int64_t channels = group_channels - c0 < p.planes ? group_channels - c0 : p.planes;
        const int64_t channel = t.group * group_channels + c0;
        pack_x(p, x, t, channel, channels, strips);
        run(channel, channels);
      }
    };
    if constexpr (!std::is_same_v<S, T>) {
      if (!p.packs_other) {
        const WeightMaps<S> w = weights_in_place(p, weight, t);
        each_block([&](int64_t channel, int64_t channels) {
          sparse_rows(p, strips, w, list, runs, corner_of(y, t, channel), y.row, y.channel, channels, t);
        });
        continue;
      }
    }
    const WeightMaps<T> w = forward_weights(p, weight, t, memory);
    each_block([&](int64_t channel, int64_t channels) {
      const Target<S> out(p, y, t, channel, memory);
      if (p.dense) {
        dense_dispatch(p, packed_view(p.map, strips), w, out.data, out.row, out.plane, channels, t);
      } else {
        sparse_rows(p, strips, w, list, runs, out.data, out.row, out.plane, channels, t);
      }
      out.finish(p, y, t, channel, channels);
    });
  }
}

// The taps of grad_x that the pixels of one phase have, as runs, from the phase's first pixel on: in strips of grad_y and of
// weights, which have the same layout.
inline int64_t grad_x_runs(const Involution2dPlan& p, const Axis& rows, const Axis& columns, int64_t row0, int64_t col0,
                           TapRun* list) {
  int64_t count = 0;
  for (const AxisTap* u = rows.taps; u < rows.taps + rows.tap_count; ++u)
    for (const AxisTap* v = columns.taps; v < columns.taps + columns.tap_count; ++v) {
      const int64_t at = (u->map - row0) * p.map.row_pitch + (v->map - col0);
      count = append_tap(list, count, at, (u->tap * p.shape.kernel_w + v->tap) * p.other.plane_pitch + at);
    }
  return count;
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
  AxisTap* axes = scratch_at<AxisTap>(memory, taps * kTapRunBytes);
  clear_missing_planes(p, strips);
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
    const WeightMaps<T> w{weights, p.other.plane_pitch, p.other.row_pitch, true};
    if constexpr (kMaskedWindows) {
      if (p.direct) {
        dense_direct(p, grad_y, row0, col0, s.out_height, s.out_width, w, result, t, memory);
        continue;
      }
    }
    for (int64_t c0 = 0; c0 < group_channels; c0 += p.planes) {
      const int64_t channels = group_channels - c0 < p.planes ? group_channels - c0 : p.planes;
      const int64_t channel = t.group * group_channels + c0;
      const Target<S> out(p, result, t, channel, memory);
      pack_planes(planes_of(grad_y, t.image, channel, s.out_height, s.out_width), channels, {row0, col0, 1}, p.map, strips);
      if (p.dense) {
        dense_dispatch(p, packed_view(p.map, strips), w, out.data, out.row, out.plane, channels, t);
        out.finish(p, result, t, channel, channels);
        continue;
      }
      // Where results have two phases of columns each is contiguous for now, with room for whole vectors.
      const bool by_phase = p.result.phases > 1;
      const int64_t out_step = by_phase ? 1 : s.stride_w, out_phase = by_phase ? p.result.pitch : 1;
      for (int64_t a = 0; a < s.stride_h && a < t.rows; ++a) {
        const Axis rows = grad_x_rows(p, t, a, axes);
        for (int64_t b = 0; b < s.stride_w && b < t.cols; ++b) {
          const Axis columns = grad_x_columns(p, t, b, axes + s.kernel_h);
          const int64_t count = grad_x_runs(p, rows, columns, row0, col0, list);
          for (int64_t i = 0; i < rows.count; ++i)
            for (int64_t j = 0; j < columns.count; j += V::kLanes) {
              const int lanes = by_phase ? V::kLanes : lanes_left<T>(columns.count - j);
              const int64_t at = i * p.map.row_pitch + j;
              sparse_vector<T, false, T, T>(strips + at, p.map.plane_pitch, weights + at, list, count,
                                            out.data + (a + i * s.stride_h) * out.row + b * out_phase + j * out_step, out.plane,
                                            out_step, channels, lanes);
            }
        }
      }
      out.finish(p, result, t, channel, channels);
    }
  }
}

// The kernel for the taps of a dense window. Maps of 16 bit are read in place where K = 3 alone.
template <bool kEdge, class T, class M, class E>
auto tap_rows_of(int64_t k) {
  if constexpr (std::is_same_v<M, T>) {
    return k == 3   ? dense_tap_rows<3, kEdge, T, M, E>
           : k == 5 ? dense_tap_rows<5, kEdge, T, M, E>
                    : dense_tap_rows<7, kEdge, T, M, E>;
  } else {
    return dense_tap_rows<3, kEdge, T, M, E>;
  }
}

template <class T, class M, class E>
auto outside_rows_of(int64_t k) {
  return k == 3 ? outside_tap_rows<3, T, M, E> : k == 5 ? outside_tap_rows<5, T, M, E> : outside_tap_rows<7, T, M, E>;
}

// A block of channels' share in the gradients of a task's dense windows.
template <class M, class E>
void dense_grad_weight(int64_t k, const MapView<M>& map, const WeightMaps<M>& grad, E* out, int64_t out_row, int64_t out_plane,
                       const Task& t, int64_t channels, bool first) {
  using T = Compute<M>;
  constexpr int kLanes = Vec<T>::kLanes;
  for (int64_t r = 0; r < t.rows + k - 1; ++r)
    for (int64_t j = 0; j < t.cols; j += kLanes) {
      const int lanes = lanes_left<T>(t.cols - j);
      const TapSums<M, E> sums{grad.data + j, grad.row, grad.tap, channels, first, out + j, out_row, out_plane, lanes};
      if (r < map.first_row || r >= map.last_row) {
        outside_rows_of<T, M, E>(k)(sums, r, t.rows);
        continue;
      }
      const DenseMap<M> tile = tile_at(map, r, j, 1);
      const bool inside = tile.has_columns(2 * kLanes);
      const bool readable = lanes == kLanes || grad.slack;
      const auto run = inside && readable ? tap_rows_of<false, T, M, E>(k) : tap_rows_of<true, T, M, E>(k);
      run(tile, sums, r, t.rows);
    }
}

// Planes of grad_y under a tile, read in place or from strips that are packed here.
template <class S>
WeightMaps<S> grad_in_place(const Strided<const S>& grad_y, const Task& t, int64_t channel) {
  return {corner_of(grad_y, t, channel), grad_y.channel, grad_y.row, false};
}

template <class S>
WeightMaps<Compute<S>> grad_planes(const Involution2dPlan& p, const Strided<const S>& grad_y, const Task& t, int64_t channel,
                                   int64_t channels, void* memory) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    if (!p.packs_other) return grad_in_place(grad_y, t, channel);
  }
  Compute<S>* strips = scratch_at<Compute<S>>(memory, p.other_at);
  pack_planes<false>(planes_of(grad_y, t.image, channel, p.shape.out_height, p.shape.out_width), channels, {t.row, t.col, 1},
                     p.other, strips);
  return {strips, p.other.plane_pitch, p.other.row_pitch, true};
}

template <class S>
void grad_weight_taps(const Involution2dPlan& p, const Strided<const S>& grad_y, const Strided<const S>& x,
                      const Strided<S>& result, int64_t begin, int64_t end, void* memory) {
  using T = Compute<S>;
  const Involution2dShape& s = p.shape;
  T* strips = scratch_at<T>(memory, p.map_at);
  for (int64_t index = begin; index < end; ++index) {
    const Task t = make_task(p, index, s.out_height, s.out_width);
    const int64_t channels = s.group_channels(), channel = t.group * channels;
    pack_planes(planes_of(x, t.image, channel, s.height, s.width), channels,
                {t.row * s.stride_h - s.pad_h, t.col * s.stride_w - s.pad_w, 1}, p.map, strips);
    const Planes<S> planes = planes_of(grad_y, t.image, channel, s.out_height, s.out_width);
    const Strided<const T> grad = pixels_of(planes, p.pixels, t.row, t.col, channels, false, scratch_at<T>(memory, p.other_at));
    const auto run = s.stride_w == 1   ? s.kernel_h == 5 ? sum_tap_tile<T, S, 5, 1> : sum_tap_tile<T, S, 7, 1>
                     : s.kernel_h == 5 ? sum_tap_tile<T, S, 5, 2>
                                       : sum_tap_tile<T, S, 7, 2>;
    run(p, strips, grad, result, t);
  }
}

// E: what results are staged in where they are, S for 16 bit where all channels are summed in one go and T otherwise.
template <class S, class E>
void grad_weight_tiles(const Involution2dPlan& p, const Strided<const S>& grad_y, const Strided<const S>& x,
                       const Strided<S>& result, int64_t begin, int64_t end, void* memory) {
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
    const Target<S, E> out(p, result, t, t.group * taps, memory);
    for (int64_t c0 = 0; c0 < group_channels; c0 += p.planes) {
      const int64_t channels = group_channels - c0 < p.planes ? group_channels - c0 : p.planes;
      const int64_t channel = t.group * group_channels + c0;
      const auto dense = [&](const auto& map, const auto& grad) LGLD_INLINE_LAMBDA {
        dense_grad_weight(s.kernel_h, map, grad, out.data, out.row, out.plane, t, channels, c0 == 0);
      };
      if constexpr (kMaskedWindows && std::is_same_v<S, E>) {
        if (p.direct) {
          const Planes<S> planes = planes_of(x, t.image, channel, s.height, s.width);
          const MapView<S> map = direct_view(planes, t.row - s.pad_h, t.col - s.pad_w);
          if constexpr (std::is_same_v<S, T>) {
            dense(map, grad_planes(p, grad_y, t, channel, channels, memory));
          } else {
            dense(map, grad_in_place(grad_y, t, channel));
          }
          continue;
        }
      }
      const WeightMaps<T> grad = grad_planes(p, grad_y, t, channel, channels, memory);
      if (p.dense) {
        pack_x<false>(p, x, t, channel, channels, strips);
        MapView<T> map = packed_view(p.map, strips);
        map.first_row = s.pad_h - t.row, map.last_row = s.height + s.pad_h - t.row;
        dense(map, grad);
        continue;
      }
      pack_x(p, x, t, channel, channels, strips);
      for (int64_t i = 0; i < t.rows; ++i)
        for (int64_t j = 0; j < t.cols; j += V::kLanes)
          for (int64_t k = 0; k < taps; k += kSparseTaps)
            sparse_taps(strips + i * s.stride_h * p.map.row_pitch + j, p.map.plane_pitch, offset + k, taps - k,
                        grad.data + i * grad.row + j, grad.tap, channels, c0 == 0, out.data + k * out.plane + i * out.row + j,
                        out.plane, lanes_left<T>(t.cols - j));
    }
    out.finish(p, result, t, t.group * taps, taps);
  }
}

template <class S>
void grad_weight(const Involution2dPlan& p, Strided<const S> grad_y, Strided<const S> x, Strided<S> result, int64_t begin,
                 int64_t end, void* memory) {
  using T = Compute<S>;
  if (p.sums_lanes) {
    grad_weight_pixels(p, grad_y, x, result, begin, end);
    return;
  }
  if constexpr (kVectorPixels<T> > 0) {
    if (p.sums_rows) {
      grad_weight_taps(p, grad_y, x, result, begin, end, memory);
      return;
    }
  }
  if constexpr (!std::is_same_v<S, T>) {
    if (p.sums_whole) {
      grad_weight_tiles<S, S>(p, grad_y, x, result, begin, end, memory);
      return;
    }
  }
  grad_weight_tiles<S, T>(p, grad_y, x, result, begin, end, memory);
}

}  // namespace
}  // namespace lgld
