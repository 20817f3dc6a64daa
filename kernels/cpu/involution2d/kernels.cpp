// Involution for one instruction set: compiled once per header of kernels/cpu/simd, named by LGLD_VARIANT.
#include LGLD_SIMD_HEADER

#include "correlate.h"
#include "involution2d.h"
#include "pack.h"
#include "reduce.h"

namespace lgld {
namespace {

constexpr int kWeightChannels = 16;

struct Task {
  int64_t image, group, row, rows, col, cols;  // a tile of the result
};

Task make_task(const Involution2dPlan& p, int64_t index, int64_t height, int64_t width) {
  Task t;
  t.col = index % p.col_tiles * p.col_tile;
  index /= p.col_tiles;
  t.row = index % p.row_tiles * p.row_tile;
  index /= p.row_tiles;
  t.group = index % p.shape.groups;
  t.image = index / p.shape.groups;
  t.rows = height - t.row < p.row_tile ? height - t.row : p.row_tile;
  t.cols = width - t.col < p.col_tile ? width - t.col : p.col_tile;
  return t;
}

template <class T>
struct Scratch {
  TapRun* runs;
  T *map, *weight;
  Scratch(const Involution2dPlan& p, void* memory) {
    constexpr int64_t kLine = 64;
    char* at = static_cast<char*>(memory);
    runs = reinterpret_cast<TapRun*>(at);
    at += ceil_div(p.shape.taps() * static_cast<int64_t>(sizeof(TapRun)), kLine) * kLine;
    map = reinterpret_cast<T*>(at);
    weight = reinterpret_cast<T*>(at + ceil_div(p.planes * p.map.plane_pitch * static_cast<int64_t>(sizeof(T)), kLine) * kLine);
  }
};

template <class T>
const T* plane_of(const Strided<const T>& t, int64_t image, int64_t channel) {
  return t.data + image * t.batch + channel * t.channel;
}

template <class T>
T* plane_of(const Strided<T>& t, int64_t image, int64_t channel) {
  return t.data + image * t.batch + channel * t.channel;
}

// Planes [channel, channel + count) of x around the tile's window.
template <class T>
void pack_x(const Involution2dPlan& p, const Strided<const T>& x, const Task& t, int64_t channel, int64_t count, T* strip) {
  const Involution2dShape& s = p.shape;
  for (int64_t c = 0; c < count; ++c) {
    const Plane<T> plane{plane_of(x, t.image, channel + c), x.row, x.column, s.height, s.width};
    pack_plane(plane, t.row * s.stride_h - s.pad_h, t.col * s.stride_w - s.pad_w, s.stride_w, p.map,
               strip + c * p.map.plane_pitch);
  }
}

// Where tap (u, v) of the tile's first output stands in a strip of x.
int64_t strip_offset(const Involution2dPlan& p, int64_t u, int64_t v) {
  const Involution2dShape& s = p.shape;
  const int64_t column = v * s.dilation_w;
  return u * s.dilation_h * p.map.row_pitch + column % s.stride_w * p.map.pitch + column / s.stride_w;
}

// The packed strip as a dense tile's map: every element that is read exists.
template <class T>
MapView<T> packed_view(const StripLayout& layout, const T* strip) {
  constexpr int64_t kAny = int64_t{1} << 40;
  return {strip, layout.row_pitch, layout.plane_pitch, 0, kAny, 0, kAny};
}

// The caller's tensor as a dense tile's map, the first tap of the tile's first output reading element (row, column).
template <class T>
MapView<T> direct_view(const Strided<const T>& map, int64_t image, int64_t channel, int64_t row, int64_t column, int64_t height,
                       int64_t width) {
  return {plane_of(map, image, channel) + row * map.row + column,
          map.row,
          map.channel,
          -row,
          height - row,
          -column,
          width - column};
}

// Packing costs a pass that masked loads make unnecessary. A block of channels that is not whole is packed all the same: its
// missing planes are read, though not used.
template <class T>
bool reads_directly(const Involution2dPlan& p, const Strided<const T>& map, int64_t channels) {
  return kMaskedWindows && p.dense && map.column == 1 && channels == kChannelBlock;
}

template <class T>
void dense_dispatch(const Involution2dPlan& p, const MapView<T>& map, const WeightMaps<T>& weight, const Strided<T>& result,
                    int64_t channel, int64_t channels, const Task& t) {
  const int64_t k = p.shape.kernel_h;
  const auto run = k == 3 ? dense_rows<T, 3> : k == 5 ? dense_rows<T, 5> : dense_rows<T, 7>;
  run(map, weight, plane_of(result, t.image, channel) + t.row * result.row + t.col, result.row, result.channel, t.rows, t.cols,
      channels);
}

template <class T>
void forward(const Involution2dPlan& p, Strided<const T> x, Strided<const T> weight, Strided<T> y, int64_t begin, int64_t end,
             void* memory) {
  using V = Vec<T>;
  const Involution2dShape& s = p.shape;
  const Scratch<T> scratch(p, memory);
  const int64_t group_channels = s.group_channels(), taps = s.taps();
  // Taps whose columns differ by a multiple of the stride stand in the same phase of the strip, one after the other.
  int64_t period = 1;
  while (period * s.dilation_w % s.stride_w != 0) ++period;
  int64_t runs = 0;
  for (int64_t u = 0; u < s.kernel_h; ++u)
    for (int64_t start = 0; start < period && start < s.kernel_w; ++start)
      for (int64_t v = start; v < s.kernel_w; v += period)
        runs = append_tap(scratch.runs, runs, strip_offset(p, u, v), (u * s.kernel_w + v) * weight.channel);

  for (int64_t index = begin; index < end; ++index) {
    const Task t = make_task(p, index, s.out_height, s.out_width);
    const T* w = plane_of(weight, t.image, t.group * taps) + t.row * weight.row + t.col;
    for (int64_t c0 = 0; c0 < group_channels; c0 += p.planes) {
      const int64_t channels = group_channels - c0 < p.planes ? group_channels - c0 : p.planes;
      const int64_t channel = t.group * group_channels + c0;
      const bool direct = reads_directly(p, x, channels);
      if (!direct) pack_x(p, x, t, channel, channels, scratch.map);
      if (p.dense) {
        const MapView<T> map = direct ? direct_view(x, t.image, channel, t.row - s.pad_h, t.col - s.pad_w, s.height, s.width)
                                      : packed_view(p.map, scratch.map);
        dense_dispatch(p, map, {w, weight.channel, weight.row, false}, y, channel, channels, t);
        continue;
      }
      T* out = plane_of(y, t.image, channel) + t.row * y.row + t.col;
      for (int64_t i = 0; i < t.rows; ++i) {
        for (int64_t j = 0; j < t.cols; j += V::kLanes) {
          const int lanes = lanes_left<T>(t.cols - j);
          const auto run = lanes < V::kLanes ? sparse_vector<T, true> : sparse_vector<T, false>;
          run(scratch.map + i * s.stride_h * p.map.row_pitch + j, p.map.plane_pitch, w + i * weight.row + j, scratch.runs, runs,
              out + i * y.row + j, y.channel, 1, channels, lanes);
        }
      }
    }
  }
}

// grad_x[c, p] = sum_t weight[t, o] * grad_y[c, o] over the outputs o that read pixel p with tap t: o = (p + pad - t *
// dilation) / stride where that is whole. Rows and columns outside grad_y are zeros of both strips.
template <class T>
void grad_x(const Involution2dPlan& p, Strided<const T> grad_y, Strided<const T> weight, Strided<T> result, int64_t begin,
            int64_t end, void* memory) {
  using V = Vec<T>;
  const Involution2dShape& s = p.shape;
  const Scratch<T> scratch(p, memory);
  const int64_t group_channels = s.group_channels(), taps = s.taps();
  const int64_t reach_h = (s.kernel_h - 1) * s.dilation_h, reach_w = (s.kernel_w - 1) * s.dilation_w;

  for (int64_t index = begin; index < end; ++index) {
    const Task t = make_task(p, index, s.height, s.width);
    const int64_t row0 = floor_div(t.row + s.pad_h - reach_h, s.stride_h);
    const int64_t col0 = floor_div(t.col + s.pad_w - reach_w, s.stride_w);
    for (int64_t k = 0; k < taps; ++k) {
      const Plane<T> plane{plane_of(weight, t.image, t.group * taps + k), weight.row, weight.column, s.out_height, s.out_width};
      if (p.dense) {
        // The window is mirrored: the strip's first tap is the kernel's last.
        const int64_t mirrored = taps - 1 - k;
        pack_plane(plane, row0 + mirrored / s.kernel_w, col0 + mirrored % s.kernel_w, 1, p.weight,
                   scratch.weight + mirrored * p.weight.plane_pitch);
      } else {
        pack_plane(plane, row0, col0, 1, p.weight, scratch.weight + k * p.weight.plane_pitch);
      }
    }
    for (int64_t c0 = 0; c0 < group_channels; c0 += p.planes) {
      const int64_t channels = group_channels - c0 < p.planes ? group_channels - c0 : p.planes;
      const int64_t channel = t.group * group_channels + c0;
      const bool direct = reads_directly(p, grad_y, channels);
      for (int64_t c = 0; c < (direct ? 0 : channels); ++c) {
        const Plane<T> plane{plane_of(grad_y, t.image, channel + c), grad_y.row, grad_y.column, s.out_height, s.out_width};
        pack_plane(plane, row0, col0, 1, p.map, scratch.map + c * p.map.plane_pitch);
      }
      if (p.dense) {
        const MapView<T> map = direct ? direct_view(grad_y, t.image, channel, row0, col0, s.out_height, s.out_width)
                                      : packed_view(p.map, scratch.map);
        dense_dispatch(p, map, {scratch.weight, p.weight.plane_pitch, p.weight.row_pitch, true}, result, channel, channels, t);
        continue;
      }
      T* out = plane_of(result, t.image, channel) + t.row * result.row + t.col;
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
              count = append_tap(scratch.runs, count, at, (u * s.kernel_w + v) * p.weight.plane_pitch + at);
            }
          }
          const int64_t outputs = ceil_div(t.cols - phase, s.stride_w);
          for (int64_t j = 0; j < outputs; j += V::kLanes) {
            const int lanes = lanes_left<T>(outputs - j);
            sparse_vector<T, false>(scratch.map + j, p.map.plane_pitch, scratch.weight + j, scratch.runs, count,
                                    out + i * result.row + phase + j * s.stride_w, result.channel, s.stride_w, channels, lanes);
          }
        }
      }
    }
  }
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

template <class T>
void grad_weight(const Involution2dPlan& p, Strided<const T> grad_y, Strided<const T> x, Strided<T> result, int64_t begin,
                 int64_t end, void* memory) {
  using V = Vec<T>;
  const Involution2dShape& s = p.shape;
  const Scratch<T> scratch(p, memory);
  const int64_t group_channels = s.group_channels(), taps = s.taps();
  // One offset a tap, in the room that the other passes have runs in.
  int64_t* offset = reinterpret_cast<int64_t*>(scratch.runs);
  for (int64_t t = 0; t < taps; ++t) offset[t] = strip_offset(p, t / s.kernel_w, t % s.kernel_w);

  for (int64_t index = begin; index < end; ++index) {
    const Task t = make_task(p, index, s.out_height, s.out_width);
    T* out = plane_of(result, t.image, t.group * taps) + t.row * result.row + t.col;
    for (int64_t c0 = 0; c0 < group_channels; c0 += p.planes) {
      const int64_t channels = group_channels - c0 < p.planes ? group_channels - c0 : p.planes;
      const int64_t channel = t.group * group_channels + c0;
      const bool direct = kMaskedWindows && p.dense && x.column == 1;
      if (!direct) pack_x(p, x, t, channel, channels, scratch.map);
      const MapView<T> map = direct ? direct_view(x, t.image, channel, t.row - s.pad_h, t.col - s.pad_w, s.height, s.width)
                                    : packed_view(p.map, scratch.map);
      const T* grad = plane_of(grad_y, t.image, channel) + t.row * grad_y.row + t.col;
      for (int64_t i = 0; i < t.rows; ++i) {
        const T* row = scratch.map + i * s.stride_h * p.map.row_pitch;
        for (int64_t j = 0; j < t.cols; j += V::kLanes) {
          const int lanes = lanes_left<T>(t.cols - j);
          const T* g = grad + i * grad_y.row + j;
          T* at = out + i * result.row + j;
          if (p.dense) {
            dense_grad_weight(s.kernel_h, map, i, j, g, grad_y.channel, channels, c0 == 0, at, result.channel, lanes);
            continue;
          }
          for (int64_t k = 0; k < taps; k += kSparseTaps)
            sparse_taps(row + j, p.map.plane_pitch, offset + k, taps - k, g, grad_y.channel, channels, c0 == 0,
                        at + k * result.channel, result.channel, lanes);
        }
      }
    }
  }
}

}  // namespace

#define LGLD_CONCAT_(a, b) a##b
#define LGLD_CONCAT(a, b) LGLD_CONCAT_(a, b)

extern const Involution2dKernels LGLD_CONCAT(involution2d_, LGLD_VARIANT);
const Involution2dKernels LGLD_CONCAT(involution2d_, LGLD_VARIANT) = {
    Vec<float>::kLanes, Vec<double>::kLanes, kRowBlock,          kChannelBlock,   kSparseChannelBlock, kWeightChannels,
    forward<float>,     grad_x<float>,       grad_weight<float>, forward<double>, grad_x<double>,      grad_weight<double>,
};

}  // namespace lgld
