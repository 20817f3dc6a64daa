// Forward and grad_x by vectors of channels: of maps and results whose channels are neighbours, or of planes that are
// transposed on the way in and out.
#pragma once
#include "pixel_axes.h"
#include "pixel_copies.h"
#include "task.h"

namespace lgld {
namespace {

// The map or the weights as a task's pixels read them: in place, or copies of what is read of them.
template <class T, class S>
Strided<const T> pixels_of(const Planes<S>& src, const PixelRegion& region, int64_t row, int64_t col, int64_t channels,
                           bool pads, T* copy) {
  if constexpr (std::is_same_v<S, T>) {
    if (region.channels == 0) return {src.data, 0, src.channel, src.row, src.column};
  }
  return copy_region(src, Region(src, row, region.rows, col, region.columns, pads, false), channels, copy);
}

// A task's results, pixels of `channels` neighbours each, to planes from `corner` on.
template <class T, class S>
void transpose_results(const T* pixels, int64_t channels, const Task& t, const Strided<S>& result, S* corner) {
  // Whole rows without anything between them are one.
  const bool joined = t.cols == result.row;
  const int64_t rows = joined ? 1 : t.rows, count = joined ? t.rows * t.cols : t.cols;
  for (int64_t i = 0; i < rows; ++i)
    transpose_to(pixels + i * count * channels, channels, count, channels,
                 RowCursor<S>{corner + i * result.row, result.channel, channels, 0, channels});
}

// The kernel for what a dtype is computed in.
inline auto pixel_kernel(float) { return LGLD_COMPILED(pixels_f32); }
inline auto pixel_kernel(double) { return LGLD_COMPILED(pixels_f64); }

// The rows and the columns of the map that taps may read. The taps that a forward pass of planes has outside the map are
// multiplied by zero, as by the definition, which an infinite weight makes NaN.
inline Extent rows_of(const Involution2dPlan& p, int64_t height) { return p.transposes ? kAnywhere : Extent{0, height}; }
inline Extent columns_of(const Involution2dPlan& p, int64_t width) { return p.pads ? kAnywhere : Extent{0, width}; }

// Both passes: `each_phase(task, run)` calls run(rows, columns) for the axes of every phase of a task's pixels; `window` is the
// first row and column of the map that the task reads, `weights` the same of weight.
template <class S, class Window, class EachPhase>
void pixel_tasks(const Involution2dPlan& p, const Strided<const S>& map, const Strided<const S>& weight,
                 const Strided<S>& result, bool grad_x, int64_t begin, int64_t end, void* memory, Window window,
                 EachPhase each_phase) {
  using T = Compute<S>;
  const Involution2dShape& s = p.shape;
  const int64_t group_channels = s.group_channels(), taps = s.taps();
  const int64_t height = grad_x ? s.out_height : s.height, width = grad_x ? s.out_width : s.width;
  // What is copied, is copied a block of channels at a time; in place they are read all at once, those of all the task's
  // groups.
  const int64_t block = p.pixels.channels == 0 ? group_channels : p.planes;
  PixelTap* list = scratch_at<PixelTap>(memory, 0);
  AxisTap* axis_taps = scratch_at<AxisTap>(memory, taps * kPixelTapBytes);

  for (int64_t index = begin; index < end; ++index) {
    const Task t = make_task(p, index, grad_x ? s.height : s.out_height, grad_x ? s.width : s.out_width);
    const auto [row, col] = window(t);
    const int64_t weight_row = grad_x ? row : t.row, weight_col = grad_x ? col : t.col;
    const Planes<S> weights = planes_of(weight, t.image, t.group * taps, s.out_height, s.out_width);
    const Strided<const T> w =
        pixels_of(weights, p.pixel_weights, weight_row, weight_col, taps, p.pads, scratch_at<T>(memory, p.other_at));
    for (int64_t c0 = 0; c0 < group_channels; c0 += block) {
      const int64_t channels = group_channels - c0 < block ? group_channels - c0 : block;
      const int64_t channel = t.group * group_channels + c0;
      const Planes<S> planes = planes_of(map, t.image, channel, height, width);
      T* const copy = scratch_at<T>(memory, p.map_at);
      // Groups that are computed one after the other read what lies side by side; grad_x reads each tap's of another pixel.
      const bool fetch = !grad_x && s.groups > 1 && p.task_groups == 1 && p.pixel_weights.channels == 0 && w.channel == 1;
      const PixelGroups groups{t.groups, channels, taps * w.channel, fetch};
      const auto run = [&](const Strided<const T>& m, const PixelResult& out) LGLD_INLINE_LAMBDA {
        each_phase(t, axis_taps, [&](const Axis& rows, const Axis& columns) LGLD_INLINE_LAMBDA {
          pixel_kernel(T{})(rows, columns, s.kernel_w, m, w, out, groups, list);
        });
      };
      if (p.transposes) {
        T* const staged = scratch_at<T>(memory, p.result_at);
        const Region region(planes, row, p.pixels.rows, col, p.pixels.columns, p.pads, !grad_x);
        run(transpose_region(planes, region, channels, copy),
            {staged - (t.row * t.cols + t.col) * channels, t.cols * channels, channels, kDtype<T>});
        transpose_results(staged, channels, t, result, corner_of(result, t, channel));
      } else {
        run(pixels_of(planes, p.pixels, row, col, channels, p.pads, copy),
            {result.data + t.image * result.batch + channel, result.row, result.column, kDtype<S>});
      }
    }
  }
}

struct Corner2d {
  int64_t row, col;
};

template <class S>
void forward_pixels(const Involution2dPlan& p, const Strided<const S>& x, const Strided<const S>& weight, const Strided<S>& y,
                    int64_t begin, int64_t end, void* memory) {
  const Involution2dShape& s = p.shape;
  const auto window = [&](const Task& t) { return Corner2d{t.row * s.stride_h - s.pad_h, t.col * s.stride_w - s.pad_w}; };
  pixel_tasks(p, x, weight, y, false, begin, end, memory, window, [&](const Task& t, AxisTap* taps, auto run) {
    run(forward_axis(taps, t.row, t.rows, s.kernel_h, s.stride_h, s.pad_h, s.dilation_h, rows_of(p, s.height)),
        forward_axis(taps + s.kernel_h, t.col, t.cols, s.kernel_w, s.stride_w, s.pad_w, s.dilation_w, columns_of(p, s.width)));
  });
}

// The rows of a phase of a task of grad_x, and the columns.
inline Axis grad_x_rows(const Involution2dPlan& p, const Task& t, int64_t phase, AxisTap* taps) {
  const Involution2dShape& s = p.shape;
  return grad_x_axis(taps, t.row, t.rows, phase, s.kernel_h, s.stride_h, s.pad_h, s.dilation_h, {0, s.out_height});
}

inline Axis grad_x_columns(const Involution2dPlan& p, const Task& t, int64_t phase, AxisTap* taps) {
  const Involution2dShape& s = p.shape;
  const Extent map = columns_of(p, s.out_width);
  return grad_x_axis(taps, t.col, t.cols, phase, s.kernel_w, s.stride_w, s.pad_w, s.dilation_w, map);
}

template <class S>
void grad_x_pixels(const Involution2dPlan& p, const Strided<const S>& grad_y, const Strided<const S>& weight,
                   const Strided<S>& result, int64_t begin, int64_t end, void* memory) {
  const Involution2dShape& s = p.shape;
  const auto window = [&](const Task& t) {
    return Corner2d{floor_div(t.row + s.pad_h - (s.kernel_h - 1) * s.dilation_h, s.stride_h),
                    floor_div(t.col + s.pad_w - (s.kernel_w - 1) * s.dilation_w, s.stride_w)};
  };
  pixel_tasks(p, grad_y, weight, result, true, begin, end, memory, window, [&](const Task& t, AxisTap* taps, auto run) {
    for (int64_t i = 0; i < s.stride_h && i < t.rows; ++i)
      for (int64_t j = 0; j < s.stride_w && j < t.cols; ++j)
        run(grad_x_rows(p, t, i, taps), grad_x_columns(p, t, j, taps + s.kernel_h));
  });
}

}  // namespace
}  // namespace lgld
