// The passes of ffm.h. A strip's pixels are packed once, in the arithmetic's type and centred, and every channel reads them
// there.
#include LGLD_SIMD_HEADER

#include "../simd/math.h"
#include "moments.h"

namespace lgld {
namespace {

// Channels whose sums a backward tile keeps in registers: kIn + 3 each.
constexpr int kBlock = kVectorRegisters >= 32 ? 2 : 1;
static_assert(2 * kBlock <= kSumVectors);

// --- the map u --------------------------------------------------------------------------------------------------------

// The features of one vector of pixels of a packed row, and the folded map of one channel. kIn: the number of channels of the
// image where it is one of the usual ones, else 0.
template <class T, int kIn>
struct Pixels {
  const T *x, *sin, *cos;
  int64_t plane, inputs;
  LGLD_INLINE Vec<T> feature(int64_t k, int64_t j) const { return Vec<T>::load(x + k * plane + j); }
};

template <class T, int kIn>
struct Slope {
  static constexpr bool kFixed = kIn > 0;
  Vec<T> image[kFixed ? kIn : 1], sin, cos;
  const double* all;

  LGLD_INLINE Slope(const double* slope, int64_t inputs) : all(slope) {
    if constexpr (kFixed) unroll<kIn>([&](auto k) LGLD_INLINE_LAMBDA { image[k] = broadcast<T>(slope[k]); });
    sin = broadcast<T>(slope[inputs + 2]);
    cos = broadcast<T>(slope[inputs + 3]);
  }

  // slope . f + row at columns j, j + 1, ...
  LGLD_INLINE Vec<T> at(const Pixels<T, kIn>& pixels, Vec<T> row, int64_t j) const {
    using V = Vec<T>;
    V u = V::fma(sin, V::load(pixels.sin + j), V::fma(cos, V::load(pixels.cos + j), row));
    if constexpr (kFixed) {
      unroll<kIn>([&](auto k) LGLD_INLINE_LAMBDA { u = V::fma(image[k], pixels.feature(k, j), u); });
    } else {
      for (int64_t k = 0; k < pixels.inputs; ++k) u = V::fma(broadcast<T>(all[k]), pixels.feature(k, j), u);
    }
    return u;
  }
};

// What a row of the grid adds to slope . f: its position terms and the offset.
template <class T>
LGLD_INLINE Vec<T> row_term(const FfmFold& fold, const FfmShape& s, const double* slope, double offset, int64_t row) {
  return broadcast<T>(slope[s.inputs] * fold.rows[row] + slope[s.inputs + 1] * fold.rows[s.out_height + row] + offset);
}

// f(j, lanes) for the vectors of columns [begin, end) of a row; the last one may have fewer lanes, and its own copy of f.
template <class T, class F>
LGLD_INLINE void each_vector(int64_t begin, int64_t end, F f) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) f(j, Int<kLanes>{});
  if (j < end) f(j, static_cast<int>(end - j));
}

template <class V, class E>
LGLD_INLINE void store_lanes(V value, E* p, int lanes) {
  value.store_partial(p, lanes);
}
template <class V, class E>
LGLD_INLINE void store_lanes(V value, E* p, Int<V::kLanes>) {
  value.store(p);
}
template <class V, class E>
LGLD_INLINE V load_lanes(const E* p, int lanes) {
  return V::load_partial(p, lanes);
}
template <class V, class E>
LGLD_INLINE V load_lanes(const E* p, Int<V::kLanes>) {
  return V::load(p);
}

// The first `count` elements of a bundle: all but some of the last vector, at least.
template <class T, int N, class E>
LGLD_INLINE void store_bundle(const Bundle<T, N>& value, E* p, int64_t count) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  unroll<N - 1>([&](auto k) LGLD_INLINE_LAMBDA { value.at[k].store(p + k * kLanes); });
  const int64_t left = count - (N - 1) * kLanes;
  if (left >= kLanes) {
    value.at[N - 1].store(p + (N - 1) * kLanes);
  } else {
    value.at[N - 1].store_partial(p + (N - 1) * kLanes, static_cast<int>(left));
  }
}

// The image's usual numbers of channels have code of their own.
template <class F>
LGLD_INLINE void with_inputs(int64_t inputs, F f) {
  if (inputs == 3) {
    f(Int<3>{});
  } else if (inputs == 1) {
    f(Int<1>{});
  } else {
    f(Int<0>{});
  }
}

template <class E>
LGLD_INLINE E* row_of(const Strided<E>& t, int64_t image, int64_t channel, int64_t row) {
  return t.data + image * t.batch + channel * t.channel + row * t.row;
}

// --- forward ----------------------------------------------------------------------------------------------------------

template <class T, class E, int kIn>
__attribute__((noinline)) void forward_plane(const FfmPlan& p, const FfmFold& fold, const Scratch<T>& scratch,
                                             const Strip& strip, int64_t c, const Strided<E>& y) {
  const FfmShape& s = p.shape;
  const double* folded = fold.slope + c * s.features();
  const Slope<T, kIn> slope(folded, s.inputs);
  constexpr int64_t kLanes = Vec<T>::kLanes;
  E* const row_buffer = reinterpret_cast<E*>(scratch.row);
  for (int64_t r = 0; r < strip.rows; ++r) {
    const Pixels<T, kIn> pixels{scratch.planes + r * s.out_width, scratch.sin, scratch.cos, strip.rows * s.out_width, s.inputs};
    const Vec<T> row = row_term<T>(fold, s, folded, fold.offset[c], strip.row + r);
    E* const result = row_of(y, strip.image, c, strip.row + r);
    E* const out = y.column == 1 ? result : row_buffer;
    each_bundle<kBundle>(ceil_of(s.out_width, kLanes), [&](auto n, int64_t first) LGLD_INLINE_LAMBDA {
      const int64_t j = first * kLanes;
      const auto u = Bundle<T, n.value>::make([&](auto k) LGLD_INLINE_LAMBDA { return slope.at(pixels, row, j + k * kLanes); });
      store_bundle(silu(u), out + j, s.out_width - j);
    });
    if (y.column != 1)
      for (int64_t j = 0; j < s.out_width; ++j) result[j * y.column] = row_buffer[j];
  }
}

template <class T, class E>
void forward(const FfmPlan& p, Strided<const E> x, const FfmFold& fold, Strided<E> y, int64_t begin, int64_t end,
             void* memory) {
  Scratch<T> scratch(p, fold, memory);
  for (int64_t t = begin; t < end; ++t)
    each_strip(p, t, [&](const Strip& strip, int64_t) {
      scratch.pack(p, x, strip, fold.centre);
      with_inputs(p.shape.inputs, [&](auto inputs) {
        for (int64_t c = 0; c < p.shape.channels; ++c) forward_plane<T, E, inputs.value>(p, fold, scratch, strip, c, y);
      });
    });
}

// --- backward ---------------------------------------------------------------------------------------------------------

// Vectors whose products are added up before the sum joins that of the runs before: an error grows with the number of additions
// in a row, and 8 rows of 112 columns are 224 of them with 4 lanes.
constexpr int64_t kRun = 16;

// Sums over some pixels of g_u, g_u times the columns' terms and g_u times the image, one channel's: in registers, or those of
// the image in scratch where its number of channels is not known.
template <class T, int kIn>
struct Sums {
  Vec<T> all, col_sin, col_cos, image[kIn > 0 ? kIn : 1];
  Vec<T>* many;

  template <class F>
  static LGLD_INLINE void each_input(int64_t inputs, F f) {
    if constexpr (kIn > 0) {
      unroll<kIn>(f);
    } else {
      for (int64_t k = 0; k < inputs; ++k) f(k);
    }
  }
  LGLD_INLINE Vec<T>& at(int64_t k) {
    if constexpr (kIn > 0) {
      return image[k];
    } else {
      return many[k];
    }
  }
  LGLD_INLINE void clear(Vec<T>* room, int64_t inputs) {
    many = room;
    all = col_sin = col_cos = Vec<T>::zero();
    each_input(inputs, [&](auto k) LGLD_INLINE_LAMBDA { at(k) = Vec<T>::zero(); });
  }
  LGLD_INLINE void add(Sums& other, int64_t inputs) {
    all = all + other.all;
    col_sin = col_sin + other.col_sin;
    col_cos = col_cos + other.col_cos;
    each_input(inputs, [&](auto k) LGLD_INLINE_LAMBDA { at(k) = at(k) + other.at(k); });
  }
};

// kChannels planes of one strip from channel c on. `projected` has the packed planes' layout.
template <class T, class E, int kIn, int kChannels>
__attribute__((noinline)) void backward_planes(const FfmPlan& p, const FfmFold& fold, const Scratch<T>& scratch,
                                               const Strip& strip, int64_t c, const Strided<const E>& grad_y, double* record,
                                               T* projected) {
  using V = Vec<T>;
  static_assert(kChannels <= 2, "first and last are all of them");
  const FfmShape& s = p.shape;
  const int64_t features = s.features(), plane = strip.rows * s.out_width;
  const double* folded = fold.slope + c * features;
  const auto each = [&](auto f) LGLD_INLINE_LAMBDA { unroll<kChannels>(f); };
  const auto each_input = [&](auto f) LGLD_INLINE_LAMBDA { Sums<T, kIn>::each_input(s.inputs, f); };
  const Slope<T, kIn> first(folded, s.inputs), last(folded + (kChannels - 1) * features, s.inputs);
  const auto slope = [&](auto m) LGLD_INLINE_LAMBDA -> const Slope<T, kIn>& { return m.value == 0 ? first : last; };
  Sums<T, kIn> strip_sums[kChannels];
  V row_sin[kChannels], row_cos[kChannels];
  each([&](auto m) LGLD_INLINE_LAMBDA {
    strip_sums[m].clear(scratch.sums + 2 * m * s.inputs, s.inputs);
    row_sin[m] = row_cos[m] = V::zero();
  });
  E* const row_buffer = reinterpret_cast<E*>(scratch.row);
  for (int64_t r = 0; r < strip.rows; ++r) {
    const Pixels<T, kIn> pixels{scratch.planes + r * s.out_width, scratch.sin, scratch.cos, plane, s.inputs};
    const V sin = broadcast<T>(fold.rows[strip.row + r]), cos = broadcast<T>(fold.rows[s.out_height + strip.row + r]);
    V row[kChannels];
    const E* grad[kChannels];
    each([&](auto m) LGLD_INLINE_LAMBDA {
      row[m] = row_term<T>(fold, s, folded + m * features, fold.offset[c + m], strip.row + r);
      const E* const source = row_of(grad_y, strip.image, c + m, strip.row + r);
      grad[m] = source;
      if (grad_y.column != 1) {
        E* const copy = row_buffer + m * s.out_width;
        for (int64_t j = 0; j < s.out_width; ++j) copy[j] = source[j * grad_y.column];
        grad[m] = copy;
      }
    });
    for (int64_t begin = 0; begin < s.out_width; begin += kRun * V::kLanes) {
      const int64_t end = begin + kRun * V::kLanes < s.out_width ? begin + kRun * V::kLanes : s.out_width;
      Sums<T, kIn> sums[kChannels];
      each([&](auto m) LGLD_INLINE_LAMBDA { sums[m].clear(scratch.sums + (2 * m + 1) * s.inputs, s.inputs); });
      // A bundle has some vectors of each channel: vector n of channel m is number n * kChannels + m.
      each_bundle<kBundle / kChannels>(ceil_of(end - begin, V::kLanes), [&](auto vectors, int64_t number) LGLD_INLINE_LAMBDA {
        using Both = Bundle<T, vectors.value * kChannels>;
        const int64_t j = begin + number * V::kLanes, left = end - j - (vectors - 1) * V::kLanes;
        const int lanes = static_cast<int>(left < V::kLanes ? left : V::kLanes);  // of the last vector
        const auto u = Both::make([&](auto k) LGLD_INLINE_LAMBDA {
          constexpr int m = k.value % kChannels;
          return slope(Int<m>{}).at(pixels, row[m], j + k / kChannels * V::kLanes);
        });
        const auto grads = Both::make([&](auto k) LGLD_INLINE_LAMBDA {
          constexpr int n = k.value / kChannels;
          const E* const at = grad[k.value % kChannels] + j + n * V::kLanes;
          return n + 1 < vectors.value || lanes == V::kLanes ? V::load(at) : V::load_partial(at, lanes);
        });
        const auto g = grads * silu_derivative(u);
        unroll<vectors.value>([&](auto n) LGLD_INLINE_LAMBDA {
          const int64_t i = j + n * V::kLanes;
          each([&](auto m) LGLD_INLINE_LAMBDA {
            const V one = g.at[n.value * kChannels + m.value];
            sums[m].all = sums[m].all + one;
            sums[m].col_sin = V::fma(one, V::load(pixels.sin + i), sums[m].col_sin);
            sums[m].col_cos = V::fma(one, V::load(pixels.cos + i), sums[m].col_cos);
            each_input([&](auto k) LGLD_INLINE_LAMBDA { sums[m].at(k) = V::fma(one, pixels.feature(k, i), sums[m].at(k)); });
          });
        });
        if (projected == nullptr) return;
        each_input([&](auto k) LGLD_INLINE_LAMBDA {
          T* const at = projected + k * plane + r * s.out_width + j;
          const auto sum = Bundle<T, vectors.value>::make([&](auto n) LGLD_INLINE_LAMBDA {
            V value = n + 1 < vectors.value || lanes == V::kLanes ? V::load(at + n * V::kLanes)
                                                                  : V::load_partial(at + n * V::kLanes, lanes);
            each([&](auto m) LGLD_INLINE_LAMBDA {
              const V one = g.at[n.value * kChannels + m.value];
              if constexpr (kIn > 0) {
                value = V::fma(slope(m).image[k], one, value);
              } else {
                value = V::fma(broadcast<T>(slope(m).all[k]), one, value);
              }
            });
            return value;
          });
          store_bundle(sum, at, end - j);
        });
      });
      each([&](auto m) LGLD_INLINE_LAMBDA {
        row_sin[m] = V::fma(sums[m].all, sin, row_sin[m]);
        row_cos[m] = V::fma(sums[m].all, cos, row_cos[m]);
        strip_sums[m].add(sums[m], s.inputs);
      });
    }
  }
  each([&](auto m) LGLD_INLINE_LAMBDA {
    double* const sums = record + (c + m) * (1 + features);
    sums[0] += horizontal_sum<T>(strip_sums[m].all);
    each_input([&](auto k) LGLD_INLINE_LAMBDA { sums[1 + k] += horizontal_sum<T>(strip_sums[m].at(k)); });
    double* const position = sums + 1 + s.inputs;
    position[0] += horizontal_sum<T>(row_sin[m]);
    position[1] += horizontal_sum<T>(row_cos[m]);
    position[2] += horizontal_sum<T>(strip_sums[m].col_sin);
    position[3] += horizontal_sum<T>(strip_sums[m].col_cos);
  });
}

template <class T, class E>
void backward(const FfmPlan& p, Strided<const E> x, const FfmFold& fold, Strided<const E> grad_y, double* partial, T* projected,
              int64_t begin, int64_t end, void* memory) {
  const FfmShape& s = p.shape;
  Scratch<T> scratch(p, fold, memory);
  for (int64_t t = begin; t < end; ++t) {
    double* const sums = partial + t * p.sums;
    for (int64_t k = 0; k < p.sums; ++k) sums[k] = 0;
    each_strip(p, t, [&](const Strip& strip, int64_t index) {
      scratch.pack(p, x, strip, fold.centre);
      T* const strip_projected = projected == nullptr ? nullptr : projected + index * s.inputs * p.plane;
      if (strip_projected != nullptr)
        for (int64_t k = 0; k < s.inputs * p.plane; ++k) strip_projected[k] = T(0);
      with_inputs(s.inputs, [&](auto inputs) {
        int64_t c = 0;
        for (; c + kBlock <= s.channels; c += kBlock)
          backward_planes<T, E, inputs.value, kBlock>(p, fold, scratch, strip, c, grad_y, sums, strip_projected);
        for (; c < s.channels; ++c)
          backward_planes<T, E, inputs.value, 1>(p, fold, scratch, strip, c, grad_y, sums, strip_projected);
      });
    });
  }
}

template <class E>
LGLD_INLINE void clear_row(E* out, int64_t width, int64_t step) {
  if (step == 1) {  // for the compiler, which has vectors for it
    for (int64_t j = 0; j < width; ++j) out[j] = E{};
  } else {
    for (int64_t j = 0; j < width; ++j) out[j * step] = E{};
  }
}

// A row of the grid's pixels to a row of the image's, zeros between them.
template <class E>
LGLD_INLINE void spread_row(const E* row, const FfmShape& s, E* out, int64_t step) {
  if (s.stride == 2 && step == 1) {
    const int64_t pairs = s.width / 2;
    for (int64_t j = 0; j < pairs; ++j) {
      out[2 * j] = row[j];
      out[2 * j + 1] = E{};
    }
    if (s.width % 2 != 0) out[s.width - 1] = row[pairs];
    return;
  }
  if (s.stride > 1) clear_row(out, s.width, step);
  for (int64_t j = 0; j < s.out_width; ++j) out[j * s.stride * step] = row[j];
}

template <class T, class E>
void grad_x(const FfmPlan& p, Strided<const E> x, const FfmFold& fold, const FfmCorrection& correction, const T* projected,
            Strided<E> result, int64_t begin, int64_t end, void* memory) {
  using V = Vec<T>;
  const FfmShape& s = p.shape;
  Scratch<T> scratch(p, fold, memory);
  E* const row_buffer = reinterpret_cast<E*>(scratch.row);
  for (int64_t t = begin; t < end; ++t)
    each_strip(p, t, [&](const Strip& strip, int64_t index) {
      scratch.pack(p, x, strip, fold.centre);
      const int64_t plane = strip.rows * s.out_width;
      const T* const sums = projected + index * s.inputs * p.plane;
      for (int64_t k = 0; k < s.inputs; ++k) {
        const double* folded = correction.slope + k * s.features();
        const Slope<T, 0> slope(folded, s.inputs);
        for (int64_t r = 0; r < strip.rows; ++r) {
          const Pixels<T, 0> pixels{scratch.planes + r * s.out_width, scratch.sin, scratch.cos, plane, s.inputs};
          const V row = row_term<T>(fold, s, folded, correction.offset[k], strip.row + r);
          const T* const at = sums + k * plane + r * s.out_width;
          each_vector<T>(0, s.out_width, [&](int64_t j, auto lanes) LGLD_INLINE_LAMBDA {
            store_lanes(load_lanes<V>(at + j, lanes) - slope.at(pixels, row, j), row_buffer + j, lanes);
          });
          // The strip's rows of the image: the row that was read and those up to the next one.
          const int64_t top = (strip.row + r) * s.stride, bottom = top + s.stride < s.height ? top + s.stride : s.height;
          spread_row(row_buffer, s, row_of(result, strip.image, k, top), result.column);
          for (int64_t i = top + 1; i < bottom; ++i) clear_row(row_of(result, strip.image, k, i), s.width, result.column);
        }
      }
    });
}

template <class T, class E>
constexpr FfmTyped<T, E> typed() {
  return {centre<T, E>, moments<T, E>, forward<T, E>, backward<T, E>, grad_x<T, E>};
}

}  // namespace

#define LGLD_CONCAT_(a, b) a##b
#define LGLD_CONCAT(a, b) LGLD_CONCAT_(a, b)

extern const FfmKernels LGLD_CONCAT(ffm_, LGLD_VARIANT);
const FfmKernels LGLD_CONCAT(ffm_, LGLD_VARIANT) = {typed<float, float>(), typed<double, double>(), typed<float, Float16>(),
                                                    typed<float, BFloat16>()};

}  // namespace lgld
