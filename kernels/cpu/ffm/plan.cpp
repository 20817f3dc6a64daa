#include <algorithm>
#include <cmath>

#include "ffm.h"

namespace lgld {
namespace {

constexpr int64_t kCacheLine = 64;

int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t k = 0; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

}  // namespace

FfmPlan plan_ffm(const FfmShape& s, bool is_double) {
  FfmPlan p{};
  p.shape = s;
  const int64_t element = is_double ? sizeof(double) : sizeof(float);
  // A packed strip, the gradient's projection and a few rows besides stay in L1 with 8 rows of 112 pixels of 3 channels.
  constexpr int64_t kStripElements = 4096;
  p.row_tile = std::clamp<int64_t>(kStripElements / (s.inputs * s.out_width), 1, 8);
  p.row_tile = std::min(p.row_tile, s.out_height);
  p.row_tiles = ceil_of(s.out_height, p.row_tile);
  p.strips = s.batch * p.row_tiles;
  p.strips_per_task = std::max<int64_t>(1, ceil_of(p.strips, kMostTasks));
  p.tasks = ceil_of(p.strips, p.strips_per_task);
  p.plane = p.row_tile * s.out_width;
  p.moments = s.pairs() + 5 * s.inputs;
  p.sums = s.channels * (1 + s.features());
  p.projected = p.strips * s.inputs * p.plane;
  // Packed planes, two rows of position terms, two rows of results, sums of a block of channels; a cache line or two behind
  // each, since whole vectors are read.
  const int64_t vectors = kSumVectors * s.inputs * kCacheLine;
  const int64_t elements = s.inputs * p.plane + 4 * s.out_width;
  p.scratch_bytes = ceil_of(elements * element, kCacheLine) * kCacheLine + vectors + 12 * kCacheLine;
  return p;
}

void ffm_positions(const FfmShape& s, double* rows, double* columns) {
  const double two_pi = 2 * std::acos(-1.0);
  const auto fill = [&](int64_t count, int64_t extent, double* table) {
    for (int64_t i = 0; i < count; ++i) {
      const double phase = two_pi * static_cast<double>(i * s.stride) / static_cast<double>(extent);
      table[i] = std::sin(phase);
      table[count + i] = std::cos(phase);
    }
  };
  fill(s.out_height, s.height, rows);
  if (s.width == s.height) {
    std::copy(rows, rows + 2 * s.out_height, columns);
  } else {
    fill(s.out_width, s.width, columns);
  }
}

void ffm_feature_statistics(const FfmPlan& plan, const FfmFold& fold, const double* partial, double* mean, double* covariance) {
  const FfmShape& s = plan.shape;
  const int64_t n = s.inputs, features = s.features(), pairs = s.pairs();
  const double positions = static_cast<double>(s.positions());
  const auto total = [&](int64_t k) {
    double sum = 0;
    for (int64_t t = 0; t < plan.tasks; ++t) sum += partial[t * plan.moments + k];
    return sum / positions;
  };
  const auto cov = [&](int64_t a, int64_t b) -> double& { return covariance[a * features + b]; };
  for (int64_t k = 0; k < n; ++k) mean[k] = total(pairs + k);
  const double* tables[4] = {fold.rows, fold.rows + s.out_height, fold.columns, fold.columns + s.out_width};
  for (int64_t t = 0; t < 4; ++t) {
    const int64_t count = t < 2 ? s.out_height : s.out_width;
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += tables[t][i];
    mean[n + t] = sum / static_cast<double>(count);
  }
  int64_t pair = 0;
  for (int64_t a = 0; a < n; ++a)
    for (int64_t b = a; b < n; ++b) cov(a, b) = cov(b, a) = total(pair++) - mean[a] * mean[b];
  for (int64_t a = 0; a < n; ++a)
    for (int64_t t = 0; t < 4; ++t) cov(a, n + t) = cov(n + t, a) = total(pairs + n * (1 + t) + a) - mean[a] * mean[n + t];
  for (int64_t t = 0; t < 4; ++t)
    for (int64_t v = 0; v < 4; ++v) {
      if (t / 2 != v / 2) {
        cov(n + t, n + v) = 0;  // a row's term and a column's: the mean of the products is the product of the means
        continue;
      }
      const int64_t count = t < 2 ? s.out_height : s.out_width;
      double sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += (tables[t][i] - mean[n + t]) * (tables[v][i] - mean[n + v]);
      cov(n + t, n + v) = sum / static_cast<double>(count);
    }
  for (int64_t k = 0; k < n; ++k) mean[k] += fold.centre[k];
}

void ffm_batch_statistics(const FfmShape& s, const FfmParameters& p, const double* mean, const double* covariance,
                          double* z_mean, double* z_var) {
  const int64_t features = s.features();
  for (int64_t c = 0; c < s.channels; ++c) {
    const double *w = p.weight + c * features, m = p.modulation[c];
    z_mean[c] = m * (dot(w, mean, features) + p.bias[c]);
    double square = 0;
    for (int64_t k = 0; k < features; ++k) square += w[k] * dot(covariance + k * features, w, features);
    z_var[c] = m * m * (square < 0 ? 0 : square);  // rounding may make nothing a little less; NaN stays
  }
}

void ffm_fold(const FfmShape& s, const FfmParameters& p, const double* z_mean, const double* z_var, const double* centre,
              double* slope, double* offset) {
  const int64_t features = s.features();
  for (int64_t c = 0; c < s.channels; ++c) {
    const double* w = p.weight + c * features;
    const double scale = (p.bn_weight ? p.bn_weight[c] : 1.0) / std::sqrt(z_var[c] + p.eps);
    for (int64_t k = 0; k < features; ++k) slope[c * features + k] = scale * p.modulation[c] * w[k];
    const double middle = p.modulation[c] * (dot(w, centre, s.inputs) + p.bias[c]) - z_mean[c];
    offset[c] = scale * middle + (p.bn_bias ? p.bn_bias[c] : 0.0);
  }
}

// With h = w . f + b, z = m h, z^ = (z - mean) / sigma, u = gamma z^ + beta and N positions, BatchNorm's gradient is
//   g_z = gamma / sigma (g_u - m0 - m1 z^),   m0 = mean(g_u), m1 = mean(g_u z^)                     (S. Ioffe, C. Szegedy,
//   2015)
// and with f~ = f - mean(f), in which z^ = m / sigma w . f~ and whose sum is 0,
//   sum g_z = 0,   sum g_z f~_k = gamma / sigma (sum g_u f~_k - m1 m / sigma N (Cov w)_k).
// Where the statistics are constants, g_z = gamma / sigma g_u.
void ffm_gradients(const FfmPlan& plan, const FfmParameters& p, const double* z_mean, const double* z_var, const double* centre,
                   const double* mean, const double* covariance, const double* slope, const double* partial,
                   const FfmGradients& g) {
  const FfmShape& s = plan.shape;
  const int64_t n = s.inputs, features = s.features(), record = 1 + features;
  const double positions = static_cast<double>(s.positions());
  const bool training = mean != nullptr;
  std::fill(g.slope, g.slope + n * features, 0.0);
  std::fill(g.offset, g.offset + n, 0.0);
  for (int64_t c = 0; c < s.channels; ++c) {
    const double* w = p.weight + c * features;
    double* moment = g.weight + c * features;  // sum g_u f'_k, then of f~ or f
    const double sigma = std::sqrt(z_var[c] + p.eps), m = p.modulation[c];
    const double gain = (p.bn_weight ? p.bn_weight[c] : 1.0) / sigma;
    double total = 0;
    for (int64_t t = 0; t < plan.tasks; ++t) total += partial[t * plan.sums + c * record];
    for (int64_t k = 0; k < features; ++k) {
      double sum = 0;
      for (int64_t t = 0; t < plan.tasks; ++t) sum += partial[t * plan.sums + c * record + 1 + k];
      const double middle = (training ? mean[k] : 0.0) - (k < n ? centre[k] : 0.0);
      moment[k] = sum - middle * total;
    }
    const double along = dot(w, moment, features);  // sum g_u (h - mean(h)), or sum g_u (h - b)
    g.bn_bias[c] = total;
    if (!training) {
      const double h = along + p.bias[c] * total;
      g.bn_weight[c] = (m * h - z_mean[c] * total) / sigma;
      g.modulation[c] = gain * h;
      g.bias[c] = gain * m * total;
      for (int64_t k = 0; k < features; ++k) moment[k] *= gain * m;
      continue;
    }
    const double m0 = total / positions, m1 = m / sigma * along / positions;
    g.bn_weight[c] = m1 * positions;
    g.bias[c] = 0;
    // sum g_z h = w . sum g_z f~ = gain along (1 - var / sigma^2), without the cancellation
    g.modulation[c] = gain * along * p.eps / (sigma * sigma);
    for (int64_t k = 0; k < n; ++k) {
      const double back = slope[c * features + k];
      g.offset[k] += back * m0;
      for (int64_t l = 0; l < features; ++l) g.slope[k * features + l] += back * m1 * m / sigma * w[l];
    }
    for (int64_t k = 0; k < features; ++k)
      moment[k] = m * gain * (moment[k] - m1 * m / sigma * positions * dot(covariance + k * features, w, features));
  }
  if (!training) return;
  // The correction is a map of f~; f~ = f' - (mean - centre).
  for (int64_t k = 0; k < n; ++k)
    for (int64_t l = 0; l < features; ++l) g.offset[k] -= g.slope[k * features + l] * (mean[l] - (l < n ? centre[l] : 0.0));
}

}  // namespace lgld
