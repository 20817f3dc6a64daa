// What stands behind the two streams: the gates, from the channels' means alone, and the head on the blended maps.
#pragma once
#include "local.h"
#include "stem.h"

namespace lgld {
namespace {

LGLD_INLINE double sigmoid(double x) { return 1.0 / (1.0 + __builtin_exp(-x)); }

// Mean of one channel over all pixels, from the tasks' sums.
double mean_of(const float* sums, int64_t tasks, int64_t columns, int64_t channel, int64_t pixels) {
  double sum = 0.0;
  for (int64_t t = 0; t < tasks; ++t) sum += sums[t * columns + channel];
  return sum / static_cast<double>(pixels);
}

// SE's and LGFM's weights, multiplied out: the blended map is local * factors[0] + context * factors[1].
void gates(const LgldnetCall& call, int64_t, float*) {
  const LgldnetPlan& p = *call.plan;
  const LgldnetParameters& at = p.parameters;
  const float* w = call.parameters;
  const int64_t c = p.geometry.channels, d = p.hidden, columns = p.padded, pixels = p.height * p.width;
  float* local_factor = call.workspace + p.blend;
  float* context_factor = local_factor + columns;
  float* local_mean = context_factor + columns;
  float* context_mean = local_mean + columns;
  for (int64_t k = 0; k < c; ++k) {
    local_mean[k] =
        static_cast<float>(mean_of(call.workspace + p.local_sums, p.stages[kLocalFeatures].tasks, columns, k, pixels));
    context_mean[k] =
        static_cast<float>(mean_of(call.workspace + p.context_sums, p.stages[kNearContext].tasks, columns, k, pixels));
    context_factor[k] = w[at.excite_bias + k];
  }
  for (int64_t e = 0; e < d; ++e) {
    double hidden = w[at.squeeze_bias + e];
    for (int64_t k = 0; k < c; ++k) hidden += static_cast<double>(w[at.squeeze_weight + e * c + k]) * context_mean[k];
    hidden *= sigmoid(hidden);
    for (int64_t k = 0; k < c; ++k) context_factor[k] += static_cast<float>(w[at.excite_weight + k * d + e] * hidden);
  }
  double fusion[2] = {w[at.fusion_bias], w[at.fusion_bias + 1]};
  for (int64_t k = 0; k < c; ++k) {
    const double gate = sigmoid(context_factor[k]);
    context_factor[k] = static_cast<float>(gate);
    for (int64_t n = 0; n < 2; ++n)
      fusion[n] += static_cast<double>(w[at.fusion_weight + n * 2 * c + k]) * local_mean[k] +
                   w[at.fusion_weight + n * 2 * c + c + k] * gate * context_mean[k];
  }
  const double local_weight = sigmoid(fusion[0] - fusion[1]);  // softmax of two
  const double context_weight = sigmoid(fusion[1] - fusion[0]);
  for (int64_t k = 0; k < c; ++k) {
    local_factor[k] = static_cast<float>(local_weight);
    context_factor[k] = static_cast<float>(context_weight * context_factor[k]);
  }
}

// Channel sums of SiLU(W (local * factor + context * factor) + b); the blended map and the head's exist for a strip at a time.
void head(const LgldnetCall& call, int64_t task, float* scratch) {
  const LgldnetPlan& p = *call.plan;
  const int64_t columns = p.padded, context_row = p.context_columns * columns;
  const float* local_factor = call.workspace + p.blend;
  const float* context_factor = local_factor + columns;
  float *blended = scratch, *result = blended + p.strip * columns;
  float* sums = call.workspace + p.head_sums + task * columns;
  zero_floats(sums, columns);
  const RowRange range = rows_of(task, p.head_rows, p.height);
  for (int64_t i = range.begin; i < range.end; ++i) {
    const float* context = call.workspace + p.context_map + grid_row(i, p.context_grid, context_row, 0);
    const float* local = call.workspace + p.local_map + i * p.width * columns;
    for (int64_t j = 0; j < p.width; j += p.strip) {
      const int64_t pixels = smaller(p.strip, p.width - j);
      for (int64_t k = 0; k < pixels; ++k) {
        const float *from = local + (j + k) * columns, *other = context + grid_column(j + k, p.context_grid, columns, 0);
        for (int64_t c = 0; c < columns; c += F::kLanes)
          F::fma(F::load(from + c), F::load(local_factor + c), F::load(other + c) * F::load(context_factor + c))
              .store(blended + k * columns + c);
      }
      gemm({blended, columns, 1, p.geometry.channels, 0}, pixels, call.packed + p.packed.head, columns,
           call.packed + p.packed.head_bias, 0, result, columns);
      silu_and_sum(result, pixels, columns, nullptr, sums);
    }
  }
}

void logits(const LgldnetCall& call, int64_t, float*) {
  const LgldnetPlan& p = *call.plan;
  const LgldnetParameters& at = p.parameters;
  const int64_t c = p.geometry.channels;
  for (int64_t n = 0; n < p.geometry.classes; ++n) call.logits[n] = call.parameters[at.class_bias + n];
  for (int64_t k = 0; k < c; ++k)
    call.features[k] =
        static_cast<float>(mean_of(call.workspace + p.head_sums, p.stages[kHead].tasks, p.padded, k, p.height * p.width));
  for (int64_t n = 0; n < p.geometry.classes; ++n) {
    double sum = call.parameters[at.class_bias + n];
    for (int64_t k = 0; k < c; ++k) sum += static_cast<double>(call.parameters[at.class_weight + n * c + k]) * call.features[k];
    call.logits[n] = static_cast<float>(sum);
  }
}

}  // namespace
}  // namespace lgld
