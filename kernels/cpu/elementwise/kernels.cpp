#include LGLD_SIMD_HEADER

#include "../simd/math.h"
#include "elementwise.h"

namespace lgld {
namespace {

// f on kLanes elements at a time; the last ones through partial loads and stores.
template <class V, class F>
LGLD_INLINE void each_vector(int64_t count, F f) {
  for (int64_t i = 0; i < count; i += V::kLanes) f(i, static_cast<int>(count - i < V::kLanes ? count - i : V::kLanes));
}

template <class V, class E>
LGLD_INLINE V load(const E* p, int lanes) {
  return lanes == V::kLanes ? V::load(p) : V::load_partial(p, lanes);
}

template <class V, class E>
LGLD_INLINE void store(V value, E* p, int lanes) {
  if (lanes == V::kLanes) {
    value.store(p);
  } else {
    value.store_partial(p, lanes);
  }
}

template <int kOperands, class T, class F>
void apply(const T* a, const T* b, const T* c, T* out, int64_t count, F f) {
  using V = Vec<T>;
  each_vector<V>(count, [&](int64_t i, int lanes) LGLD_INLINE_LAMBDA {
    const V first = load<V>(a + i, lanes);
    const V second = kOperands > 1 ? load<V>(b + i, lanes) : V::zero();
    const V third = kOperands > 2 ? load<V>(c + i, lanes) : V::zero();
    store(f(first, second, third), out + i, lanes);
  });
}

template <class T>
void map(ElementwiseOp op, const T* a, const T* b, const T* c, T* out, int64_t n) {
  using V = Vec<T>;
  using Op = ElementwiseOp;
  switch (op) {
    case Op::kAdd: return apply<2>(a, b, c, out, n, [](V x, V y, V) LGLD_INLINE_LAMBDA { return x + y; });
    case Op::kSubtract: return apply<2>(a, b, c, out, n, [](V x, V y, V) LGLD_INLINE_LAMBDA { return x - y; });
    case Op::kMultiply: return apply<2>(a, b, c, out, n, [](V x, V y, V) LGLD_INLINE_LAMBDA { return x * y; });
    case Op::kDivide: return apply<2>(a, b, c, out, n, [](V x, V y, V) LGLD_INLINE_LAMBDA { return x / y; });
    case Op::kNegate: return apply<1>(a, b, c, out, n, [](V x, V, V) LGLD_INLINE_LAMBDA { return -x; });
    case Op::kMin: return apply<2>(a, b, c, out, n, [](V x, V y, V) LGLD_INLINE_LAMBDA { return V::min(x, y); });
    case Op::kMax: return apply<2>(a, b, c, out, n, [](V x, V y, V) LGLD_INLINE_LAMBDA { return V::max(x, y); });
    case Op::kSelectLess:
      return apply<3>(a, b, c, out, n, [](V x, V y, V z) LGLD_INLINE_LAMBDA { return V::select(V::less(x, y), x, z); });
    case Op::kSelectEqual:
      return apply<3>(a, b, c, out, n, [](V x, V y, V z) LGLD_INLINE_LAMBDA { return V::select(V::equal(x, y), x, z); });
    case Op::kFma: return apply<3>(a, b, c, out, n, [](V x, V y, V z) LGLD_INLINE_LAMBDA { return V::fma(x, y, z); });
    case Op::kScale: return apply<2>(a, b, c, out, n, [](V x, V y, V) LGLD_INLINE_LAMBDA { return scale(x, y); });
    case Op::kExp: return apply<1>(a, b, c, out, n, [](V x, V, V) LGLD_INLINE_LAMBDA { return exp(x); });
    case Op::kSilu: return apply<1>(a, b, c, out, n, [](V x, V, V) LGLD_INLINE_LAMBDA { return silu(x); });
    case Op::kSiluDerivative: return apply<1>(a, b, c, out, n, [](V x, V, V) LGLD_INLINE_LAMBDA { return silu_derivative(x); });
    case Op::kCount: return;
  }
}

template <class T>
void sums(const T* a, T* out, int64_t count) {
  using V = Vec<T>;
  each_vector<V>(count, [&](int64_t i, int lanes) LGLD_INLINE_LAMBDA { *out++ = horizontal_sum<T>(load<V>(a + i, lanes)); });
}

// V is the vector that the conversion passes through.
template <class V, class From, class To>
void convert(const From* from, To* to, int64_t count) {
  each_vector<V>(count, [&](int64_t i, int lanes) LGLD_INLINE_LAMBDA { store(load<V>(from + i, lanes), to + i, lanes); });
}

}  // namespace

#define LGLD_CONCAT_(a, b) a##b
#define LGLD_CONCAT(a, b) LGLD_CONCAT_(a, b)

extern const ElementwiseKernels LGLD_CONCAT(elementwise_, LGLD_VARIANT);
const ElementwiseKernels LGLD_CONCAT(elementwise_, LGLD_VARIANT) = {
    map<float>,          map<double>,          sums<float>,         sums<double>,        convert<Vec<float>>,
    convert<Vec<float>>, convert<Vec<double>>, convert<Vec<float>>, convert<Vec<float>>,
};

}  // namespace lgld
