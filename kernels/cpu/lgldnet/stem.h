// The two stems: from the image to the local and the global stream's first map.
#pragma once
#include "activation.h"

namespace lgld {
namespace {

// Every `step`-th pixel of one row of one channel, as floats; bytes keep their values, the weights are scaled instead.
void read_row(const LgldnetImage& image, int64_t channel, int64_t row, int64_t step, int64_t count, float* to) {
  const int64_t begin = channel * image.channel + row * image.row, stride = image.column * step;
  if (image.bytes) {
    const uint8_t* from = static_cast<const uint8_t*>(image.data) + begin;
    for (int64_t k = 0; k < count; ++k) to[k] = static_cast<float>(from[k * stride]);
  } else {
    const float* from = static_cast<const float*>(image.data) + begin;
    if (stride == 1) {
      __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
    } else {
      for (int64_t k = 0; k < count; ++k) to[k] = from[k * stride];
    }
  }
}

// The rows that row i of a 3x3 convolution with stride 2 and padding 1 sees: channel, then row, each beginning in the padding.
void read_window_rows(const LgldnetPlan& p, const LgldnetImage& image, int64_t i, float* rows, int64_t pitch) {
  const LgldnetGeometry& g = p.geometry;
  for (int64_t channel = 0; channel < g.in_channels; ++channel)
    for (int64_t u = 0; u < 3; ++u, rows += pitch) {
      const int64_t row = 2 * i - 1 + u;
      if (row < 0 || row >= g.height) {
        zero_floats(rows, 2 * p.width + 1);
        continue;
      }
      rows[0] = 0.0f;
      read_row(image, channel, row, 1, g.width, rows + 1);
      if (g.width < 2 * p.width) rows[2 * p.width] = 0.0f;
    }
}

// out[j] = SiLU(shift + sum_t kernel[j][t] * y[j + t]) for one row of pixels and kVectors vectors of channels.
template <int kVectors>
void involve_row(const float* const (&y)[3], const float* kernel, int64_t kernel_pitch, const float* shift, int64_t pixels,
                 int64_t columns, float* out) {
  for (int64_t j = 0; j < pixels; ++j, kernel += kernel_pitch) {
    F acc[kVectors];
    unroll<kVectors>([&](auto n) LGLD_INLINE_LAMBDA { acc[n] = F::load(shift + n * F::kLanes); });
    unroll<3>([&](auto u) LGLD_INLINE_LAMBDA {
      const float* at = y[u] + j * columns;
      unroll<3>([&](auto t) LGLD_INLINE_LAMBDA {
        const F k = F::broadcast(kernel[u * 3 + t]);
        unroll<kVectors>([&](auto n)
                             LGLD_INLINE_LAMBDA { acc[n] = F::fma(k, F::load(at + t * columns + n * F::kLanes), acc[n]); });
      });
    });
    unroll<kVectors>([&](auto n) LGLD_INLINE_LAMBDA { silu(acc[n]).store(out + j * columns + n * F::kLanes); });
  }
}

// conv3x3 stride 2, involution with the kernels that its 16 hidden maps make, BatchNorm, SiLU, row by row: of the convolution's
// output three rows exist at a time.
void local_stem(const LgldnetCall& call, int64_t task, float* scratch) {
  const LgldnetPlan& p = *call.plan;
  const LgldnetPacked& at = p.packed;
  const float* w = call.packed;
  const int64_t columns = p.padded, width = p.width, in = p.geometry.in_channels, scale = call.image.bytes;
  const int64_t image_pitch = (2 * width + 1 + 15) / 16 * 16, ring_row = (width + 2) * columns;
  float* image = scratch;
  float* ring = image + 3 * in * image_pitch;
  float* hidden = ring + 3 * ring_row;
  float* kernel = hidden + width * p.padded_hidden;
  for (int k = 0; k < 3; ++k) {
    zero_floats(ring + k * ring_row, columns);
    zero_floats(ring + k * ring_row + (width + 1) * columns, columns);
  }
  const Rows window{image, 2, in * 3, 3, image_pitch};
  const RowRange range = rows_of(task, p.stem_rows, p.height);
  for (int64_t i = range.begin - 1; i <= range.end; ++i) {
    float* y = ring + (i + 3) % 3 * ring_row;
    const bool inside = i >= 0 && i < p.height;
    if (inside) {
      read_window_rows(p, call.image, i, image, image_pitch);
      gemm(window, width, w + at.stem[scale], columns, w + at.stem_bias, 0, y + columns, columns);
    } else {
      zero_floats(y, ring_row);
    }
    if (i > range.begin) {
      const float* const rows[3] = {ring + (i + 1) % 3 * ring_row, ring + (i + 2) % 3 * ring_row, y};
      float* out = call.workspace + p.stem_map + (i - 1 + 2) * p.stem_row + 2 * columns;
      for_vectors(columns / F::kLanes, [&](auto n, int64_t first) {
        const int64_t c = first * F::kLanes;
        const float* const from[3] = {rows[0] + c, rows[1] + c, rows[2] + c};
        involve_row<n.value>(from, kernel, p.padded_taps, w + at.stem_shift + c, width, columns, out + c);
      });
    }
    if (i >= range.begin && i < range.end) {
      gemm(window, width, w + at.hidden[scale], p.padded_hidden, w + at.hidden_bias, 0, hidden, p.padded_hidden);
      silu_rows(hidden, width * p.padded_hidden);
      gemm({hidden, p.padded_hidden, 1, p.hidden, 0}, width, w + at.span, p.padded_taps, w + at.span_bias, 0, kernel,
           p.padded_taps);
    }
  }
}

// Where pixel (i, j) stands in maps of 16 grids (i mod 4, j mod 4).
LGLD_INLINE int64_t grid_row(int64_t i, int64_t grid, int64_t row, int64_t border) {
  return i % 4 * 4 * grid + (i / 4 + border) * row;
}
LGLD_INLINE int64_t grid_column(int64_t j, int64_t grid, int64_t columns, int64_t border) {
  return j % 4 * grid + (j / 4 + border) * columns;
}

// SiLU(W x + row term + column term) of the pixels with even row and column, straight into the grids.
void global_stem(const LgldnetCall& call, int64_t task, float* scratch) {
  const LgldnetPlan& p = *call.plan;
  const int64_t columns = p.padded, width = p.width, in = p.geometry.in_channels, pitch = (width + 15) / 16 * 16;
  const float* weight = call.packed + p.packed.mixer[call.image.bytes];
  const RowRange range = rows_of(task, p.mixer_rows, p.height);
  for (int64_t i = range.begin; i < range.end; ++i) {
    for (int64_t channel = 0; channel < in; ++channel)
      read_row(call.image, channel, 2 * i, 2, width, scratch + channel * pitch);
    const float* row_term = call.tables + i * columns;
    float* out_row = call.workspace + p.mixer_map + grid_row(i, p.grid, p.grid_columns * columns, 2);
    for (int64_t j = 0; j < width; ++j) {
      const float* column_term = call.tables + (p.height + j) * columns;
      float* out = out_row + grid_column(j, p.grid, columns, 2);
      for_vectors(columns / F::kLanes, [&](auto n, int64_t first) LGLD_INLINE_LAMBDA {
        const int64_t c = first * F::kLanes;
        F z[n.value];
        unroll<n.value>([&](auto k) LGLD_INLINE_LAMBDA {
          z[k] = F::load(row_term + c + k * F::kLanes) + F::load(column_term + c + k * F::kLanes);
        });
        for (int64_t channel = 0; channel < in; ++channel) {
          const F x = F::broadcast(scratch[channel * pitch + j]);
          unroll<n.value>([&](auto k) LGLD_INLINE_LAMBDA {
            z[k] = F::fma(x, F::load(weight + channel * columns + c + k * F::kLanes), z[k]);
          });
        }
        unroll<n.value>([&](auto k) LGLD_INLINE_LAMBDA { silu(z[k]).store(out + c + k * F::kLanes); });
      });
    }
  }
}

}  // namespace
}  // namespace lgld
