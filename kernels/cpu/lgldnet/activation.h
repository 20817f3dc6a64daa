// SiLU over rows of a buffer, and loops over a pixel's vectors of channels.
#pragma once
#include "gemm.h"
#include "simd/math.h"

namespace lgld {
namespace {

// f(Int<count>, first vector) in groups of four while there are four, then one by one: independent chains hide the latencies of
// SiLU's polynomial.
template <class Function>
LGLD_INLINE void for_vectors(int64_t vectors, Function&& f) {
  int64_t v = 0;
  for (; v + 4 <= vectors; v += 4) f(Int<4>{}, v);
  for (; v < vectors; ++v) f(Int<1>{}, v);
}

void silu_rows(float* p, int64_t floats) {
  for_vectors(floats / F::kLanes, [&](auto n, int64_t first) LGLD_INLINE_LAMBDA {
    float* at = p + first * F::kLanes;
    unroll<n.value>([&](auto k) LGLD_INLINE_LAMBDA { silu(F::load(at + k * F::kLanes)).store(at + k * F::kLanes); });
  });
}

void zero_floats(float* p, int64_t floats) {
  for (int64_t k = 0; k < floats; ++k) p[k] = 0.0f;
}

LGLD_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows [begin, end) of a task.
struct RowRange {
  int64_t begin, end;
};
LGLD_INLINE RowRange rows_of(int64_t task, int64_t rows, int64_t height) {
  return {task * rows, smaller((task + 1) * rows, height)};
}

}  // namespace
}  // namespace lgld
