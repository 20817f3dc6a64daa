// Sums over the image that the features' mean and covariance follow from, in double.
#pragma once
#include "strips.h"

namespace lgld {
namespace {

template <class T, class E>
void centre(const FfmPlan& p, Strided<const E> x, double* result) {
  const FfmShape& s = p.shape;
  const int64_t images = (s.batch + 3) / 4, rows = (s.out_height + 7) / 8, columns = (s.out_width + 7) / 8;
  for (int64_t k = 0; k < s.inputs; ++k) {
    double sum = 0;
    int64_t count = 0;
    for (int64_t b = 0; b < s.batch; b += images)
      for (int64_t i = 0; i < s.out_height; i += rows)
        for (int64_t j = 0; j < s.out_width; j += columns, ++count)
          sum += as(x.data[b * x.batch + k * x.channel + s.stride * (i * x.row + j * x.column)], T{});
    result[k] = static_cast<T>(sum / static_cast<double>(count));
  }
}

template <class A, class B>
LGLD_INLINE double dot(const A* a, const B* b, int64_t n) {
  using V = Vec<double>;
  V sum[2] = {V::zero(), V::zero()};
  int64_t i = 0;
  for (; i + 2 * V::kLanes <= n; i += 2 * V::kLanes) {
    sum[0] = V::fma(V::load(a + i), V::load(b + i), sum[0]);
    sum[1] = V::fma(V::load(a + i + V::kLanes), V::load(b + i + V::kLanes), sum[1]);
  }
  for (; i < n; i += V::kLanes) {
    const int lanes = static_cast<int>(n - i < V::kLanes ? n - i : V::kLanes);
    sum[0] = V::fma(V::load_partial(a + i, lanes), V::load_partial(b + i, lanes), sum[0]);
  }
  return horizontal_sum<double>(sum[0] + sum[1]);
}

template <class A>
LGLD_INLINE double total(const A* a, int64_t n) {
  using V = Vec<double>;
  V sum[2] = {V::zero(), V::zero()};
  int64_t i = 0;
  for (; i + 2 * V::kLanes <= n; i += 2 * V::kLanes) {
    sum[0] = sum[0] + V::load(a + i);
    sum[1] = sum[1] + V::load(a + i + V::kLanes);
  }
  for (; i < n; i += V::kLanes)
    sum[0] = sum[0] + V::load_partial(a + i, static_cast<int>(n - i < V::kLanes ? n - i : V::kLanes));
  return horizontal_sum<double>(sum[0] + sum[1]);
}

template <class T, class E>
void moments(const FfmPlan& p, Strided<const E> x, const FfmFold& fold, double* partial, int64_t begin, int64_t end,
             void* memory) {
  const FfmShape& s = p.shape;
  const int64_t n = s.inputs, width = s.out_width;
  Scratch<T> scratch(p, fold, memory);
  for (int64_t t = begin; t < end; ++t) {
    double* products = partial + t * p.moments;
    for (int64_t k = 0; k < p.moments; ++k) products[k] = 0;
    each_strip(p, t, [&](const Strip& strip, int64_t) {
      scratch.pack(p, x, strip, fold.centre);
      const int64_t plane = strip.rows * width;
      int64_t pair = 0;
      for (int64_t a = 0; a < n; ++a)
        for (int64_t b = a; b < n; ++b) products[pair++] += dot(scratch.planes + a * plane, scratch.planes + b * plane, plane);
      double *sums = products + pair, *row_sin = sums + n, *row_cos = row_sin + n, *col_sin = row_cos + n,
             *col_cos = col_sin + n;
      for (int64_t k = 0; k < n; ++k)
        for (int64_t r = 0; r < strip.rows; ++r) {
          const T* row = scratch.planes + k * plane + r * width;
          const double sum = total(row, width);
          sums[k] += sum;
          row_sin[k] += sum * fold.rows[strip.row + r];
          row_cos[k] += sum * fold.rows[s.out_height + strip.row + r];
          col_sin[k] += dot(row, fold.columns, width);
          col_cos[k] += dot(row, fold.columns + width, width);
        }
    });
  }
}

}  // namespace
}  // namespace lgld
