// Folding: from the published parameters to what the kernels read. Everything in double, rounded to float once, at the end.
#include <cmath>

#include "lgldnet.h"

namespace lgld {
namespace {

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Buffers begin on cache lines.
struct Layout {
  int64_t at = 0;
  int64_t take(int64_t floats) {
    const int64_t begin = at;
    at += round_up(floats, 16);
    return begin;
  }
};

// Per channel y = scale * x + shift, from a BatchNorm's [weight, bias, mean, variance].
struct Norm {
  const float* p;
  int64_t channels;
  double eps;
  double scale(int64_t c) const {
    return static_cast<double>(p[c]) / std::sqrt(static_cast<double>(p[3 * channels + c]) + eps);
  }
  double shift(int64_t c) const { return p[channels + c] - p[2 * channels + c] * scale(c); }
};

// Element (k, n) of a matrix of `depth` rows stored in panels.
struct Panels {
  float* data;
  int64_t depth, columns, width;  // columns: all, padding included; width: of a whole panel
  float& at(int64_t k, int64_t n) const {
    const int64_t panel = n / width, begin = panel * width;
    const int64_t w = columns - begin < width ? columns - begin : width;
    return data[begin * depth + k * w + (n - begin)];
  }
};

// Winograd's matrix G for one dimension: row p holds the powers of point p over the product of its distances to the others.
template <int kPairs>
void kernel_transform(const double (&points)[kPairs], int taps, double (&g)[2 * kPairs + 2][5]) {
  constexpr int n = 2 * kPairs + 2;
  double all[n - 1] = {0.0};
  for (int k = 0; k < kPairs; ++k) all[1 + 2 * k] = points[k], all[2 + 2 * k] = -points[k];
  for (int i = 0; i < n - 1; ++i) {
    double distances = 1.0, power = 1.0;
    for (int j = 0; j < n - 1; ++j)
      if (j != i) distances *= all[i] - all[j];
    for (int t = 0; t < taps; ++t, power *= all[i]) g[i][t] = power / distances;
  }
  for (int t = 0; t < taps; ++t) g[n - 1][t] = t == taps - 1 ? 1.0 : 0.0;
}

// All frequencies of the convolutions [co][ci][taps][taps], as one matrix [ci][co] in panels for each.
template <int kPairs>
void pack_winograd(const double (&points)[kPairs], int taps, const double* weight, int64_t channels, int64_t columns,
                   int64_t width, float* packed) {
  constexpr int n = 2 * kPairs + 2;
  double g[n][5];
  kernel_transform<kPairs>(points, taps, g);
  for (int64_t co = 0; co < channels; ++co)
    for (int64_t ci = 0; ci < channels; ++ci) {
      const double* w = weight + (co * channels + ci) * taps * taps;
      double half[n][5];
      for (int i = 0; i < n; ++i)
        for (int v = 0; v < taps; ++v) {
          half[i][v] = 0.0;
          for (int u = 0; u < taps; ++u) half[i][v] += g[i][u] * w[u * taps + v];
        }
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j) {
          double sum = 0.0;
          for (int v = 0; v < taps; ++v) sum += g[j][v] * half[i][v];
          const Panels panels{packed + (i * n + j) * channels * columns, channels, columns, width};
          panels.at(ci, co) = static_cast<float>(sum);
        }
    }
}

}  // namespace

LgldnetParameters lgldnet_parameters(int64_t in, int64_t c, int64_t classes) {
  int64_t at = 0;
  const auto take = [&](int64_t count) {
    at += count;
    return at - count;
  };
  const int64_t d = c / 4;
  LgldnetParameters p{};
  p.stem_weight = take(c * in * 9), p.stem_bias = take(c);
  p.reduce_weight = take(d * c), p.reduce_bias = take(d);
  p.mix_weight = take(d * d), p.mix_bias = take(d), p.span_weight = take(9 * d), p.span_bias = take(9);
  p.local_norm = take(4 * c);
  p.fourier_real = take(c / 2), p.fourier_imag = take(c / 2);
  p.mixer_weight = take(c * (in + 4)), p.mixer_bias = take(c), p.global_norm = take(4 * c);
  p.dw3_weight = take(c * 9), p.dw3_bias = take(c), p.pw3_weight = take(c * c), p.pw3_bias = take(c);
  p.dw5_weight = take(c * 25), p.dw5_bias = take(c), p.pw5_weight = take(c * c), p.pw5_bias = take(c);
  p.project_weight = take(2 * c * c);
  for (int k = 0; k < 3; ++k) p.dilated_weight[k] = take(c * c * 9), p.dilated_bias[k] = take(c);
  p.compress_weight = take(3 * c * c), p.compress_bias = take(c);
  p.squeeze_weight = take(d * c), p.squeeze_bias = take(d), p.excite_weight = take(c * d), p.excite_bias = take(c);
  p.fusion_weight = take(4 * c), p.fusion_bias = take(2);
  p.head_weight = take(c * c), p.head_bias = take(c), p.head_norm = take(4 * c);
  p.class_weight = take(classes * c), p.class_bias = take(classes);
  p.eps = take(3);
  p.count = at;
  return p;
}

LgldnetPacked lgldnet_packed(const LgldnetGeometry& g, const LgldnetVectors& v) {
  const int64_t c = g.channels, columns = round_up(c, v.lanes), hidden = round_up(c / 4, v.lanes);
  const int64_t taps = round_up(9, v.lanes);
  Layout layout;
  LgldnetPacked p{};
  for (int k = 0; k < 2; ++k) p.stem[k] = layout.take(g.in_channels * 9 * columns);
  for (int k = 0; k < 2; ++k) p.hidden[k] = layout.take(g.in_channels * 9 * hidden);
  p.stem_bias = layout.take(columns), p.hidden_bias = layout.take(hidden);
  p.span = layout.take(c / 4 * taps), p.span_bias = layout.take(taps), p.stem_shift = layout.take(columns);
  for (int k = 0; k < 2; ++k) p.mixer[k] = layout.take(g.in_channels * columns);
  p.dw3 = layout.take(9 * columns), p.dw5 = layout.take(25 * columns);
  p.pw3 = layout.take(c * columns), p.pw3_bias = layout.take(columns);
  p.pw5 = layout.take(c * columns), p.pw5_bias = layout.take(columns);
  p.project = layout.take(2 * c * columns);
  p.wide = layout.take(64 * c * columns), p.near = layout.take(36 * c * columns);
  for (int u = 0; u < 5; ++u) p.wide_taps[u] = layout.take(kWideTaps[u].count * c * columns);
  p.near_taps = layout.take(9 * c * columns);
  p.context_bias = layout.take(columns);
  p.head = layout.take(c * columns), p.head_bias = layout.take(columns);
  p.count = layout.at;
  return p;
}

int64_t lgldnet_fold_scratch(const LgldnetGeometry& g) {
  const int64_t context = g.channels * g.channels * (9 + 25), stem = g.channels * g.in_channels * 9 + g.channels * g.channels;
  return context > stem ? context : stem;
}

void lgldnet_fold(const LgldnetGeometry& g, const LgldnetVectors& v, const float* parameters, double* scratch, float* out) {
  const LgldnetParameters at = lgldnet_parameters(g.in_channels, g.channels, g.classes);
  const LgldnetPacked packed = lgldnet_packed(g, v);
  const int64_t c = g.channels, d = c / 4, in = g.in_channels, width = v.lanes * v.panel_vectors;
  const int64_t columns = round_up(c, v.lanes), hidden = round_up(d, v.lanes), taps = round_up(9, v.lanes);
  const auto* p = parameters;
  for (int64_t i = 0; i < packed.count; ++i) out[i] = 0.0f;
  const auto norm = [&](int64_t offset, int which) { return Norm{p + offset, c, p[at.eps + which]}; };

  // Stem: out = sum_t k_t (s y)_t + shift, y = conv(x); and hidden = mix(reduce(y)), which has the same window on the image.
  const Norm local = norm(at.local_norm, 0);
  for (int which = 0; which < 2; ++which) {
    const double unit = which == 0 ? 1.0 : 1.0 / 255.0;
    const Panels stem{out + packed.stem[which], in * 9, columns, width}, mlp{out + packed.hidden[which], in * 9, hidden, width};
    for (int64_t k = 0; k < in * 9; ++k) {
      for (int64_t n = 0; n < c; ++n)
        stem.at(k, n) = static_cast<float>(local.scale(n) * p[at.stem_weight + n * in * 9 + k] * unit);
      double* reduced = scratch;
      for (int64_t e = 0; e < d; ++e) {
        reduced[e] = 0.0;
        for (int64_t n = 0; n < c; ++n)
          reduced[e] += static_cast<double>(p[at.reduce_weight + e * c + n]) * p[at.stem_weight + n * in * 9 + k];
      }
      for (int64_t n = 0; n < d; ++n) {
        double sum = 0.0;
        for (int64_t e = 0; e < d; ++e) sum += p[at.mix_weight + n * d + e] * reduced[e];
        mlp.at(k, n) = static_cast<float>(sum * unit);
      }
    }
  }
  for (int64_t n = 0; n < c; ++n) {
    out[packed.stem_bias + n] = static_cast<float>(local.scale(n) * p[at.stem_bias + n]);
    out[packed.stem_shift + n] = static_cast<float>(local.shift(n));
  }
  for (int64_t n = 0; n < d; ++n) {
    double sum = p[at.mix_bias + n];
    for (int64_t e = 0; e < d; ++e) {
      double reduced = p[at.reduce_bias + e];
      for (int64_t m = 0; m < c; ++m) reduced += static_cast<double>(p[at.reduce_weight + e * c + m]) * p[at.stem_bias + m];
      sum += p[at.mix_weight + n * d + e] * reduced;
    }
    out[packed.hidden_bias + n] = static_cast<float>(sum);
  }
  const Panels span{out + packed.span, d, taps, width};
  for (int64_t t = 0; t < 9; ++t) {
    for (int64_t e = 0; e < d; ++e) span.at(e, t) = p[at.span_weight + t * d + e];
    out[packed.span_bias + t] = p[at.span_bias + t];
  }

  const Norm global = norm(at.global_norm, 1);
  for (int which = 0; which < 2; ++which)
    for (int64_t k = 0; k < in; ++k)
      for (int64_t n = 0; n < c; ++n) {
        const double omega = n < c / 2 ? p[at.fourier_real + n] : p[at.fourier_imag + n - c / 2];
        const double w = global.scale(n) * omega * p[at.mixer_weight + n * (in + 4) + k];
        out[packed.mixer[which] + k * columns + n] = static_cast<float>(which == 0 ? w : w / 255.0);
      }

  // Local features: the depthwise biases pass through the pointwise convolutions.
  const auto branch = [&](int64_t dw_weight, int64_t dw_bias, int64_t pw_weight, int64_t pw_bias, int64_t area, int64_t dw,
                          int64_t pw, int64_t bias) {
    const Panels pointwise{out + pw, c, columns, width};
    for (int64_t n = 0; n < c; ++n) {
      for (int64_t t = 0; t < area; ++t) out[dw + t * columns + n] = p[dw_weight + n * area + t];
      double sum = p[pw_bias + n];
      for (int64_t k = 0; k < c; ++k) {
        pointwise.at(k, n) = p[pw_weight + n * c + k];
        sum += static_cast<double>(p[pw_weight + n * c + k]) * p[dw_bias + k];
      }
      out[bias + n] = static_cast<float>(sum);
    }
  };
  branch(at.dw3_weight, at.dw3_bias, at.pw3_weight, at.pw3_bias, 9, packed.dw3, packed.pw3, packed.pw3_bias);
  branch(at.dw5_weight, at.dw5_bias, at.pw5_weight, at.pw5_bias, 25, packed.dw5, packed.pw5, packed.pw5_bias);
  const Panels project{out + packed.project, 2 * c, columns, width};
  for (int64_t n = 0; n < c; ++n)
    for (int64_t k = 0; k < 2 * c; ++k) project.at(k, n) = p[at.project_weight + n * 2 * c + k];

  // Context: compress times dilated convolution k; those of dilation 4 and 8 together are 5x5 on the coarser grids.
  double *near = scratch, *wide = scratch + c * c * 9;
  for (int64_t i = 0; i < c * c * 25; ++i) wide[i] = 0.0;
  for (int k = 2; k >= 0; --k)  // dilation 2 last: its sums stay in `near`
    for (int64_t co = 0; co < c; ++co) {
      double* row = near + co * c * 9;
      for (int64_t i = 0; i < c * 9; ++i) row[i] = 0.0;
      for (int64_t m = 0; m < c; ++m) {
        const double w = p[at.compress_weight + co * 3 * c + k * c + m];
        const float* dilated = p + at.dilated_weight[k] + m * c * 9;
        for (int64_t i = 0; i < c * 9; ++i) row[i] += w * dilated[i];
      }
      if (k == 0) continue;
      for (int64_t ci = 0; ci < c; ++ci)
        for (int u = 0; u < 3; ++u)
          for (int t = 0; t < 3; ++t)
            wide[(co * c + ci) * 25 + (2 + (u - 1) * k) * 5 + 2 + (t - 1) * k] += row[ci * 9 + u * 3 + t];
    }
  pack_winograd<3>(kPoints5, 5, wide, c, columns, width, out + packed.wide);
  pack_winograd<2>(kPoints3, 3, near, c, columns, width, out + packed.near);
  for (int u = 0; u < 5; ++u) {
    const LgldnetTaps& taps = kWideTaps[u];
    const Panels row{out + packed.wide_taps[u], taps.count * c, columns, width};
    for (int64_t k = 0; k < row.depth; ++k)
      for (int64_t co = 0; co < c; ++co)
        row.at(k, co) = static_cast<float>(wide[(co * c + k % c) * 25 + u * 5 + 2 + taps.first + k / c * taps.step]);
  }
  for (int64_t t = 0; t < 9; ++t) {
    const Panels tap{out + packed.near_taps + t * c * columns, c, columns, width};
    for (int64_t ci = 0; ci < c; ++ci)
      for (int64_t co = 0; co < c; ++co) tap.at(ci, co) = static_cast<float>(near[(co * c + ci) * 9 + t]);
  }
  for (int64_t co = 0; co < c; ++co) {
    double sum = p[at.compress_bias + co];
    for (int k = 0; k < 3; ++k)
      for (int64_t m = 0; m < c; ++m)
        sum += static_cast<double>(p[at.compress_weight + co * 3 * c + k * c + m]) * p[at.dilated_bias[k] + m];
    out[packed.context_bias + co] = static_cast<float>(sum);
  }

  const Norm last = norm(at.head_norm, 2);
  const Panels head{out + packed.head, c, columns, width};
  for (int64_t n = 0; n < c; ++n) {
    for (int64_t k = 0; k < c; ++k) head.at(k, n) = static_cast<float>(last.scale(n) * p[at.head_weight + n * c + k]);
    out[packed.head_bias + n] = static_cast<float>(last.scale(n) * p[at.head_bias + n] + last.shift(n));
  }
}

void lgldnet_tables(const LgldnetPlan& plan, const float* p, float* tables) {
  const LgldnetGeometry& g = plan.geometry;
  const LgldnetParameters& at = plan.parameters;
  const int64_t c = g.channels, features = g.in_channels + 4;
  const Norm global{p + at.global_norm, c, p[at.eps + 1]};
  float* row_terms = tables;
  float* column_terms = tables + plan.height * plan.padded;
  for (int64_t i = 0; i < plan.tables; ++i) tables[i] = 0.0f;
  // The published code computes angles and sines in float32; the angles here are its, so that the terms are.
  const auto fill = [&](float* terms, int64_t count, int64_t extent, int64_t feature, bool shift) {
    for (int64_t i = 0; i < count; ++i) {
      const float angle = 6.2831853071795864769f * static_cast<float>(2 * i) / static_cast<float>(extent);
      const double sine = static_cast<float>(std::sin(static_cast<double>(angle)));
      const double cosine = static_cast<float>(std::cos(static_cast<double>(angle)));
      for (int64_t n = 0; n < c; ++n) {
        const double omega = n < c / 2 ? p[at.fourier_real + n] : p[at.fourier_imag + n - c / 2];
        const float* w = p + at.mixer_weight + n * features + g.in_channels + feature;
        double term = w[0] * sine + w[1] * cosine;
        if (shift) term += p[at.mixer_bias + n];
        term *= omega * global.scale(n);
        if (shift) term += global.shift(n);
        terms[i * plan.padded + n] = static_cast<float>(term);
      }
    }
  };
  fill(row_terms, plan.height, g.height, 0, true);
  fill(column_terms, plan.width, g.width, 2, false);
}

}  // namespace lgld
