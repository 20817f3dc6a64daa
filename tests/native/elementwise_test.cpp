// Every compiled variant of the SIMD layer that this machine runs, through the elementwise kernels: arithmetic, comparisons and
// 16-bit conversions are equal to the bit to plain C++, partial loads and stores touch nothing else.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "checks.h"
#include "guarded.h"
#include "variants.h"

namespace lgld::test {
namespace {

template <class To, class From>
To cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Equal bits, or both NaN: whose payload a sum of two NaNs has is the processor's affair.
template <class T>
bool same(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(a)) == 0;
}

// --- 16 bits ----------------------------------------------------------------------------------------------------------

// Half to float by the definition of the formats, in double.
float widened(Float16 h) {
  const int exponent = (h.bits >> 10) & 31, fraction = h.bits & 1023, sign = h.bits >> 15 ? -1 : 1;
  if (exponent == 31) return cast<float>((h.bits & 0x8000u) << 16 | 0x7f800000u | (fraction ? 0x400000u : 0u) | fraction << 13);
  const double magnitude = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return static_cast<float>(std::copysign(magnitude, sign));
}
float widened(BFloat16 h) { return cast<float>(static_cast<uint32_t>(h.bits) << 16); }

// The nearest of the two neighbours, the even one of two equally near: `spacing` is the distance of numbers there.
double rounded(double value, double spacing) {
  const double below = std::floor(value / spacing), rest = value / spacing - below;
  return (rest > 0.5 || (rest == 0.5 && std::fmod(below, 2) != 0) ? below + 1 : below) * spacing;
}

uint16_t narrowed_bits(float x, int fraction_bits, int least_exponent, double largest, uint16_t infinity) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const int shift = 23 - fraction_bits;
  if (std::isnan(x)) {
    const uint32_t payload = (cast<uint32_t>(x) & 0x7fffffu) >> shift;
    return static_cast<uint16_t>(sign | infinity | 1u << (fraction_bits - 1) | payload);
  }
  const double magnitude = std::abs(static_cast<double>(x));
  if (std::isinf(x)) return sign | infinity;
  const int exponent = magnitude == 0 ? least_exponent : std::max(least_exponent, std::ilogb(magnitude));
  const double spacing = std::ldexp(1.0, exponent - fraction_bits), value = rounded(magnitude, spacing);
  if (value > largest) return sign | infinity;
  // Numbers of one sign are in the order of their bits: count the numbers below by exponent and fraction.
  const int actual = value == 0 ? least_exponent : std::max(least_exponent, std::ilogb(value));
  const double units = value / std::ldexp(1.0, actual - fraction_bits);
  return static_cast<uint16_t>(
      sign | (static_cast<int64_t>(actual - least_exponent) * (1 << fraction_bits) + static_cast<int64_t>(units)));
}
uint16_t narrowed(float x, Float16) { return narrowed_bits(x, 10, -14, 65504, 0x7c00); }
uint16_t narrowed(float x, BFloat16) { return narrowed_bits(x, 7, -126, std::ldexp(255.0, 120), 0x7f80); }

template <class H>
void test_widen(const std::string& name, void (*widen)(const H*, float*, int64_t)) {
  std::vector<H> from(65536);
  for (size_t i = 0; i < from.size(); ++i) from[i].bits = static_cast<uint16_t>(i);
  std::vector<float> to(from.size());
  widen(from.data(), to.data(), 65536);
  int64_t wrong = 0;
  for (size_t i = 0; i < from.size(); ++i) wrong += cast<uint32_t>(to[i]) != cast<uint32_t>(widened(from[i]));
  check(wrong == 0, name + ": " + std::to_string(wrong) + " of 65536 values are widened wrongly");
}

template <class H>
void test_narrow(const std::string& name, void (*narrow)(const float*, H*, int64_t), uint32_t stride) {
  std::vector<float> from;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += stride) from.push_back(cast<float>(static_cast<uint32_t>(bits)));
  // Every half, the point halfway to the next one, and the floats around both.
  for (uint32_t half = 0; half < 65536; ++half) {
    const uint32_t bits = cast<uint32_t>(widened(H{static_cast<uint16_t>(half)}));
    const uint32_t step = sizeof(H) == 2 && std::is_same_v<H, Float16> ? 0x1000u : 0x8000u;
    for (const uint32_t at : {bits, bits + step, bits - step})
      for (const int32_t d : {-1, 0, 1}) from.push_back(cast<float>(at + static_cast<uint32_t>(d)));
  }
  for (int k = 0; k < 3000; ++k)  // subnormal halves and what rounds to 0
    from.push_back(std::ldexp(static_cast<float>(k), -26)), from.push_back(-std::ldexp(static_cast<float>(k), -27));
  std::vector<H> to(from.size());
  narrow(from.data(), to.data(), static_cast<int64_t>(from.size()));
  int64_t wrong = 0;
  for (size_t i = 0; i < from.size(); ++i) {
    const bool right = to[i].bits == narrowed(from[i], H{});
    if (!right && wrong == 0)
      std::printf("%s: %a is %04x and must be %04x\n", name.c_str(), static_cast<double>(from[i]), to[i].bits,
                  narrowed(from[i], H{}));
    wrong += !right;
  }
  check(wrong == 0,
        name + ": " + std::to_string(wrong) + " of " + std::to_string(from.size()) + " floats are narrowed wrongly");
}

// --- arithmetic -------------------------------------------------------------------------------------------------------

template <class T>
struct Reference {
  ElementwiseOp op;
  const char* name;
  std::function<T(T, T, T)> compute;
};

template <class T>
std::vector<Reference<T>> references(bool fused) {
  using Op = ElementwiseOp;
  return {
      {Op::kAdd, "add", [](T a, T b, T) { return a + b; }},
      {Op::kSubtract, "subtract", [](T a, T b, T) { return a - b; }},
      {Op::kMultiply, "multiply", [](T a, T b, T) { return a * b; }},
      {Op::kDivide, "divide", [](T a, T b, T) { return a / b; }},
      {Op::kNegate, "negate", [](T a, T, T) { return -a; }},
      {Op::kMin, "min", [](T a, T b, T) { return a < b ? a : b; }},
      {Op::kMax, "max", [](T a, T b, T) { return a > b ? a : b; }},
      {Op::kSelectLess, "select less", [](T a, T b, T c) { return a < b ? a : c; }},
      {Op::kSelectEqual, "select equal", [](T a, T b, T c) { return a == b ? a : c; }},
      {Op::kFma, "fma",
       [fused](T a, T b, T c) {
         volatile T product = a * b;
         return fused ? std::fma(a, b, c) : product + c;
       }},
  };
}

template <class T>
std::vector<T> samples(Random& random, size_t count) {
  using Limits = std::numeric_limits<T>;
  const T special[] = {
      0, 1, 2, Limits::min(), Limits::max(), Limits::denorm_min(), Limits::infinity(), Limits::quiet_NaN(), Limits::epsilon()};
  std::normal_distribution<T> normal;
  std::vector<T> values(count);
  for (T& value : values) {
    value = random() % 3 == 0 ? special[random() % std::size(special)] : normal(random);
    if (random() % 2) value = -value;
  }
  return values;
}

template <class T>
ElementwiseKernels::Map<T> map_of(const ElementwiseKernels& k) {
  if constexpr (sizeof(T) == 8) {
    return k.map_f64;
  } else {
    return k.map_f32;
  }
}

template <class T>
void test_arithmetic(const CpuVariant& variant, Random& random) {
  const std::string name = std::string(variant.name) + (sizeof(T) == 8 ? " float64 " : " float32 ");
  const bool fused = std::string(variant.name) != "scalar" && std::string(variant.name) != "sse2";
  const std::vector<T> a = samples<T>(random, 4001), b = samples<T>(random, 4001), c = samples<T>(random, 4001);
  std::vector<T> out(a.size());
  for (const Reference<T>& r : references<T>(fused)) {
    map_of<T> (*variant.elementwise)(r.op, a.data(), b.data(), c.data(), out.data(), static_cast<int64_t>(out.size()));
    int64_t wrong = 0;
    for (size_t i = 0; i < out.size(); ++i) wrong += !same(out[i], r.compute(a[i], b[i], c[i]));
    check(wrong == 0, name + r.name + ": " + std::to_string(wrong) + " elements are wrong");
  }
  // scale: every power of two that it takes, on mantissas as exp makes them.
  std::vector<T> mantissa, power;
  const int most = sizeof(T) == 8 ? 1024 : 128, least = sizeof(T) == 8 ? -1085 : -159;
  std::uniform_real_distribution<T> within(T(0.7), T(1.5));
  for (int n = least; n <= most; ++n) mantissa.push_back(within(random)), power.push_back(static_cast<T>(n));
  out.resize(mantissa.size());
  map_of<T> (*variant.elementwise)(ElementwiseOp::kScale, mantissa.data(), power.data(), nullptr, out.data(),
                                   static_cast<int64_t>(out.size()));
  for (size_t i = 0; i < out.size(); ++i)
    check(same(out[i], std::ldexp(mantissa[i], static_cast<int>(power[i]))), name + "scale by 2^" + std::to_string(power[i]));
}

// A sum over lanes, halves first: the order that horizontal_sum states.
template <class T>
T folded_sum(std::vector<T> lane) {
  for (size_t width = lane.size() / 2; width > 0; width /= 2)
    for (size_t k = 0; k < width; ++k) lane[k] += lane[k + width];
  return lane[0];
}

template <class T>
void test_sums(const CpuVariant& variant, Random& random) {
  const size_t lanes = static_cast<size_t>(sizeof(T) == 8 ? variant.involution2d->lanes_f64 : variant.involution2d->lanes_f32);
  std::vector<T> a(lanes * 50 + 1), out(51);
  std::normal_distribution<T> normal;
  for (T& value : a) value = normal(random);
  if constexpr (sizeof(T) == 8) {
    variant.elementwise->sums_f64(a.data(), out.data(), static_cast<int64_t>(a.size()));
  } else {
    variant.elementwise->sums_f32(a.data(), out.data(), static_cast<int64_t>(a.size()));
  }
  a.resize(51 * lanes, T(0));
  for (size_t i = 0; i < out.size(); ++i) {
    const std::vector<T> lane(a.begin() + static_cast<int64_t>(i * lanes), a.begin() + static_cast<int64_t>((i + 1) * lanes));
    check(same(out[i], folded_sum(lane)), std::string(variant.name) + ": horizontal sum");
  }
}

// --- memory -----------------------------------------------------------------------------------------------------------

// Every number of elements around the lengths of all vectors, between forbidden pages.
template <class From, class To>
void test_bounds(const std::string& name, void (*convert)(const From*, To*, int64_t)) {
  running(name.c_str());
  for (int64_t count = 0; count <= 35; ++count)
    for (const Against end : {Against::kStart, Against::kEnd}) {
      const size_t n = static_cast<size_t>(count);
      const Guarded from(n * sizeof(From), sizeof(From), end), to(n * sizeof(To), sizeof(To), end);
      From* source = static_cast<From*>(from.data());
      std::vector<To> expected(n);
      for (size_t i = 0; i < n; ++i) {
        const float value = static_cast<float>(i) - 7;
        if constexpr (sizeof(From) == 2) {
          source[i] = From{narrowed(value, From{})};
        } else {
          source[i] = value;
        }
        if constexpr (sizeof(To) == 2) {
          expected[i] = To{narrowed(value, To{})};
        } else {
          expected[i] = value;
        }
      }
      convert(source, static_cast<To*>(to.data()), count);
      check(n == 0 || std::memcmp(to.data(), expected.data(), n * sizeof(To)) == 0,
            name + ": " + std::to_string(count) + " elements");
      check(from.intact() && to.intact(), name + ": memory beside " + std::to_string(count) + " elements was written");
    }
}

template <class T>
void test_map_bounds(const CpuVariant& variant) {
  const std::string name = std::string(variant.name) + " add";
  running(name.c_str());
  for (int64_t count = 0; count <= 35; ++count)
    for (const Against end : {Against::kStart, Against::kEnd}) {
      const size_t bytes = static_cast<size_t>(count) * sizeof(T);
      const Guarded a(bytes, sizeof(T), end), b(bytes, sizeof(T), end), out(bytes, sizeof(T), end);
      T *x = static_cast<T*>(a.data()), *y = static_cast<T*>(b.data()), *z = static_cast<T*>(out.data());
      for (int64_t i = 0; i < count; ++i) x[i] = static_cast<T>(i), y[i] = T(0.5);
      map_of<T> (*variant.elementwise)(ElementwiseOp::kAdd, x, y, nullptr, z, count);
      bool right = out.intact();
      for (int64_t i = 0; i < count; ++i) right = right && z[i] == static_cast<T>(i) + T(0.5);
      check(right, name + ": " + std::to_string(count) + " elements");
    }
}

int run(uint64_t seed, uint32_t stride) {
  report_faults();
  Random random(seed);
  int count = 0, runs = 0;
  const CpuVariant* variants = cpu_variants(&count);
  for (int i = 0; i < count; ++i) {
    const CpuVariant& v = variants[i];
    if (!v.supported()) continue;
    ++runs;
    const std::string name = v.name;
    const ElementwiseKernels& k = *v.elementwise;
    running(v.name);
    test_widen(name + " float16", k.widen_f16);
    test_widen(name + " bfloat16", k.widen_bf16);
    test_narrow(name + " float16", k.narrow_f16, stride);
    test_narrow(name + " bfloat16", k.narrow_bf16, stride);
    test_arithmetic<float>(v, random);
    test_arithmetic<double>(v, random);
    test_sums<float>(v, random);
    test_sums<double>(v, random);
    test_bounds(name + " widen float16", k.widen_f16);
    test_bounds(name + " widen bfloat16", k.widen_bf16);
    test_bounds(name + " widen float32", k.widen_f32);
    test_bounds(name + " narrow float16", k.narrow_f16);
    test_bounds(name + " narrow bfloat16", k.narrow_bf16);
    test_map_bounds<float>(v);
    test_map_bounds<double>(v);
  }
  std::printf("%d variants\n", runs);
  return verdict(runs > 0);
}

}  // namespace
}  // namespace lgld::test

// lgld_elementwise_tests [SEED [STRIDE]]: every STRIDE-th float is narrowed.
int main(int argc, char** argv) {
  return lgld::test::run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20261121,
                         argc > 2 ? static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10)) : 10007);
}
