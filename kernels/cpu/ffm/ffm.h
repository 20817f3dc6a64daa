// LGLD-Net's Fourier feature mixer on the CPU: position terms, 1x1 projection, modulation, BatchNorm and SiLU in one pass.
//
//   f[i,j]   = (x[.., s i, s j], sin 2 pi s i / H, cos 2 pi s i / H, sin 2 pi s j / W, cos 2 pi s j / W)
//   z[c,i,j] = m_c (sum_k w[c,k] f_k[i,j] + b_c)         F = inputs + 4 features; m = (real, imag), one factor a channel
//   y        = SiLU(gamma_c (z - mean_c) / sqrt(var_c + eps) + beta_c)
//
// z is linear in f, so the batch statistics follow from the mean and covariance of the features, and a pixel costs `inputs` + 2
// multiply-adds a channel: u[c,i,j] = slope[c] . f + offset[c], everything folded in double on each call. Backward computes u
// again from the image; with g_u = g SiLU'(u) it needs the sums of g_u and g_u f alone and reads the output's gradient once.
#pragma once
#include <cstdint>

#include "../../ffm_shape.h"
#include "../simd/half.h"
#include "../strided.h"

namespace lgld {

// Work is shared out in strips of rows of one image; a task is a run of strips, and there are at most kMostTasks of them, so
// that the sums that tasks leave stay small. A function of the shape alone.
struct FfmPlan {
  FfmShape shape;
  int64_t row_tile, row_tiles, strips;
  int64_t strips_per_task, tasks;
  int64_t plane;          // elements between planes of a packed strip: row_tile * out_width
  int64_t moments;        // doubles that a task of `moments` leaves
  int64_t sums;           // doubles that a task of `backward` leaves: channels * (1 + features)
  int64_t projected;      // elements that `backward` leaves for grad_x, in the arithmetic's type
  int64_t scratch_bytes;  // a thread, aligned to 64
};
constexpr int64_t kMostTasks = 64;
// Vectors of sums for each channel of the image that a thread's scratch has room for.
constexpr int64_t kSumVectors = 4;

// The folded map u[c] = slope[c] . f' + offset[c], where f' has `centre` taken from the image's features.
struct FfmFold {
  const double* rows;     // [2][out_height]: sin, cos
  const double* columns;  // [2][out_width]
  const double* centre;   // [inputs], representable in the arithmetic's type
  const double* slope;    // [channels][features]
  const double* offset;   // [channels]
};

// grad_x[k] = projected[k] - (slope[k] . f' + offset[k])
struct FfmCorrection {
  const double* slope;   // [inputs][features]
  const double* offset;  // [inputs]
};

// One instruction set's kernels for tensors of E, computing in T. Each runs tasks [begin, end).
template <class T, class E>
struct FfmTyped {
  using Arithmetic = T;
  using Element = E;
  // A mean of a few of the pixels, to take from all of them before they are multiplied.
  void (*centre)(const FfmPlan&, Strided<const E> x, double* centre);
  // Sums over each task's pixels, in double: products of pairs of channels, channels, channels times each position term.
  void (*moments)(const FfmPlan&, Strided<const E> x, const FfmFold&, double* partial, int64_t begin, int64_t end,
                  void* scratch);
  void (*forward)(const FfmPlan&, Strided<const E> x, const FfmFold&, Strided<E> y, int64_t begin, int64_t end, void* scratch);
  // Sums of g_u and g_u f' over each task's pixels into partial[task][c][1 + features]; sum_c slope[c,k] g_u[c] of each pixel
  // into `projected`, unless it is null.
  void (*backward)(const FfmPlan&, Strided<const E> x, const FfmFold&, Strided<const E> grad_y, double* partial, T* projected,
                   int64_t begin, int64_t end, void* scratch);
  // Every element of grad_x: 0 where the grid has no pixel.
  void (*grad_x)(const FfmPlan&, Strided<const E> x, const FfmFold&, const FfmCorrection&, const T* projected,
                 Strided<E> grad_x, int64_t begin, int64_t end, void* scratch);
};

struct FfmKernels {
  FfmTyped<float, float> f32;
  FfmTyped<double, double> f64;
  FfmTyped<float, Float16> f16;
  FfmTyped<float, BFloat16> bf16;
};

FfmPlan plan_ffm(const FfmShape& shape, bool is_double);

// --- what surrounds the passes, in double -----------------------------------------------------------------------------

// The layer's parameters, gathered by the caller; bn_weight and bn_bias may be null (1 and 0).
struct FfmParameters {
  const double *weight, *bias, *modulation;  // [channels][features], [channels], [channels]
  const double *bn_weight, *bn_bias;         // [channels]
  double eps;
};

// sin and cos of the rows' and the columns' phases.
void ffm_positions(const FfmShape& shape, double* rows, double* columns);

// Mean [features] and covariance [features][features] of the features, from all tasks' moments in order.
void ffm_feature_statistics(const FfmPlan& plan, const FfmFold& fold, const double* partial, double* mean, double* covariance);

// Mean and (biased) variance of z, [channels] each.
void ffm_batch_statistics(const FfmShape& shape, const FfmParameters& p, const double* mean, const double* covariance,
                          double* z_mean, double* z_var);

// slope [channels][features] and offset [channels] of an FfmFold with this centre.
void ffm_fold(const FfmShape& shape, const FfmParameters& p, const double* z_mean, const double* z_var, const double* centre,
              double* slope, double* offset);

struct FfmGradients {
  double *weight, *bias, *modulation, *bn_weight, *bn_bias;  // shaped as the parameters
  double *slope, *offset;                                    // an FfmCorrection
};

// All gradients from the tasks' sums. `mean` and `covariance` are those of the features in training, and null where the
// statistics are constants.
void ffm_gradients(const FfmPlan& plan, const FfmParameters& p, const double* z_mean, const double* z_var, const double* centre,
                   const double* mean, const double* covariance, const double* slope, const double* partial,
                   const FfmGradients& gradients);

}  // namespace lgld
