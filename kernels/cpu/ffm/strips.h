// Strips of rows: what a task works through, and the room that a thread packs one's pixels in.
#pragma once
#include "ffm.h"

namespace lgld {
namespace {

template <class T>
LGLD_INLINE T as(T value, T) {
  return value;
}
LGLD_INLINE float as(Float16 value, float) { return widen(value); }
LGLD_INLINE float as(BFloat16 value, float) { return widen(value); }

int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));

template <class T>
LGLD_INLINE Vec<T> broadcast(double value) {
  return Vec<T>::broadcast(static_cast<T>(value));
}

// A strip of rows of one image.
struct Strip {
  int64_t image, row, rows;
};

LGLD_INLINE Strip strip_at(const FfmPlan& p, int64_t index) {
  const int64_t row = index % p.row_tiles * p.row_tile, left = p.shape.out_height - row;
  return {index / p.row_tiles, row, left < p.row_tile ? left : p.row_tile};
}

// f(strip, its number) for the strips of task t.
template <class F>
LGLD_INLINE void each_strip(const FfmPlan& p, int64_t t, F f) {
  const int64_t begin = t * p.strips_per_task, end = begin + p.strips_per_task;
  for (int64_t index = begin; index < (end < p.strips ? end : p.strips); ++index) f(strip_at(p, index), index);
}

// Room for sums, then planes [inputs][rows][out_width], then the columns' sin and cos, then a row for results; zeros behind
// each of the three, so that whole vectors can be read.
template <class T>
struct Scratch {
  T *planes, *sin, *cos, *row;
  Vec<T>* sums;
  int64_t width, inputs;

  Scratch(const FfmPlan& p, const FfmFold& fold, void* memory) : width(p.shape.out_width), inputs(p.shape.inputs) {
    sums = static_cast<Vec<T>*>(memory);
    planes = reinterpret_cast<T*>(static_cast<char*>(memory) + kSumVectors * inputs * 64);
    sin = planes + inputs * p.plane + kLine<T>;
    cos = sin + width;
    row = cos + width + kLine<T>;
    for (int64_t k = 0; k < kLine<T>; ++k) cos[width + k] = row[width + k] = T(0);
    for (int64_t j = 0; j < width; ++j) {
      sin[j] = static_cast<T>(fold.columns[j]);
      cos[j] = static_cast<T>(fold.columns[width + j]);
    }
  }

  // Packs the strip's pixels, less the centre. A plane is as long as the strip's rows.
  template <class E>
  void pack(const FfmPlan& p, const Strided<const E>& x, const Strip& t, const double* centre) {
    const int64_t step = p.shape.stride * x.column;
    T* out = planes;
    for (int64_t k = 0; k < inputs; ++k) {
      const T middle = static_cast<T>(centre[k]);
      for (int64_t r = 0; r < t.rows; ++r) {
        const E* in = x.data + t.image * x.batch + k * x.channel + (t.row + r) * p.shape.stride * x.row;
        if (step == 2) {  // a constant step is one the compiler has shuffles for
          for (int64_t j = 0; j < width; ++j) out[j] = as(in[2 * j], T{}) - middle;
        } else {
          for (int64_t j = 0; j < width; ++j) out[j] = as(in[j * step], T{}) - middle;
        }
        out += width;
      }
    }
    for (int64_t k = 0; k < kLine<T>; ++k) out[k] = T(0);
  }
};

}  // namespace
}  // namespace lgld
