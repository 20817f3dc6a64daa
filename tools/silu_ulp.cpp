// Largest errors of exp, SiLU and its derivative in every instruction set that this machine runs, against wider arithmetic.
//
//   lgld_silu_ulp [STRIDE [PART PARTS]]
//
// takes every STRIDE-th of the 2^32 floats (1: all of them, an hour or two), of PARTS equal parts the one with number
// PART, and as many doubles spread over their whole range. Fails where an error exceeds the bound stated in
// kernels/cpu/elementwise/elementwise.h. cmake --preset native builds it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "variants.h"

namespace lgld {
namespace {

template <class T>
using Wider = std::conditional_t<std::is_same_v<T, float>, double, long double>;

template <class W>
W exact_silu(W x) {
  if (std::isinf(x)) return x > 0 ? x : W(-0.0);
  return x < 0 ? x * std::exp(x) / (1 + std::exp(x)) : x / (1 + std::exp(-x));
}

template <class W>
W exact_derivative(W x) {
  if (std::isinf(x)) return x > 0 ? W(1) : W(-0.0);
  const W small = std::exp(-std::abs(x)), larger = 1 / (1 + small), smaller = small * larger;
  return x < 0 ? smaller * (1 + x * larger) : larger * (1 + x * smaller);
}

struct Worst {
  double error = 0, at = 0;
  int64_t special = 0;  // NaN, infinity or the sign of zero is not as it must be
};

// Units in the last place of T at `exact`, or of T at 1 where the bound is absolute.
template <class T>
void compare(T x, T got, Wider<T> exact, bool absolute, Worst& worst) {
  using W = Wider<T>;
  using Limits = std::numeric_limits<T>;
  const W overflow = W(Limits::max()) * (1 + W(Limits::epsilon()) / 4);
  if (std::isnan(x) || std::isinf(x) || std::isinf(got) || exact >= overflow || std::isnan(got)) {
    const bool right = std::isnan(x) ? std::isnan(got) : exact >= overflow ? std::isinf(got) && got > 0 : got == T(exact);
    if (!right) ++worst.special;
    return;
  }
  if (!absolute && got == 0 && std::signbit(got) != std::signbit(exact)) ++worst.special;
  const int exponent = absolute || exact == 0 ? (absolute ? 0 : Limits::min_exponent - 1)
                                              : std::max(std::ilogb(exact), Limits::min_exponent - 1);
  const double error = static_cast<double>(std::ldexp(std::abs(W(got) - exact), Limits::digits - 1 - exponent));
  if (!(error <= worst.error)) worst.error = error, worst.at = static_cast<double>(x);
}

struct Function {
  ElementwiseOp op;
  const char* name;
  bool absolute;
  double bound_f32, bound_f64;
};
constexpr Function kFunctions[] = {
    {ElementwiseOp::kExp, "exp", false, kExpUlpF32, kExpUlpF64},
    {ElementwiseOp::kSilu, "silu", false, kSiluUlpF32, kSiluUlpF64},
    {ElementwiseOp::kSiluDerivative, "silu_derivative", true, kSiluDerivativeUlpF32, kSiluDerivativeUlpF64},
};

template <class T>
class Search {
 public:
  Search() {
    int count = 0;
    const CpuVariant* all = cpu_variants(&count);
    for (int i = 0; i < count; ++i)
      if (all[i].supported()) variants_.push_back(&all[i]);
    worst_.resize(variants_.size() * std::size(kFunctions));
  }

  void add(T x) {
    block_.push_back(x);
    if (block_.size() == 4096) flush();
  }

  // Prints a row for each function and set; whether all are within their bounds.
  bool report() {
    flush();
    bool good = true;
    for (size_t f = 0; f < std::size(kFunctions); ++f)
      for (size_t v = 0; v < variants_.size(); ++v) {
        const Worst& w = worst_[f * variants_.size() + v];
        const double bound = sizeof(T) == 4 ? kFunctions[f].bound_f32 : kFunctions[f].bound_f64;
        const bool fits = w.error <= bound && w.special == 0;
        good = good && fits;
        std::printf("%s %-15s %-7s %.4f ulp%s at %.9g, stated %.3g%s\n", sizeof(T) == 4 ? "float32" : "float64",
                    kFunctions[f].name, variants_[v]->name, w.error, kFunctions[f].absolute ? " of 1" : "", w.at, bound,
                    fits ? "" : ": FAILED");
        if (w.special != 0) std::printf("  %lld special values are wrong\n", static_cast<long long>(w.special));
      }
    return good;
  }

 private:
  void flush() {
    using W = Wider<T>;
    std::vector<T> got(block_.size());
    std::vector<W> exact(block_.size());
    for (size_t f = 0; f < std::size(kFunctions); ++f) {
      const ElementwiseOp op = kFunctions[f].op;
      for (size_t i = 0; i < block_.size(); ++i) {
        const W x = block_[i];
        exact[i] = op == ElementwiseOp::kExp ? std::exp(x) : op == ElementwiseOp::kSilu ? exact_silu(x) : exact_derivative(x);
      }
      for (size_t v = 0; v < variants_.size(); ++v) {
        const ElementwiseKernels& k = *variants_[v]->elementwise;
        if constexpr (sizeof(T) == 4) {
          k.map_f32(op, block_.data(), nullptr, nullptr, got.data(), static_cast<int64_t>(block_.size()));
        } else {
          k.map_f64(op, block_.data(), nullptr, nullptr, got.data(), static_cast<int64_t>(block_.size()));
        }
        Worst& worst = worst_[f * variants_.size() + v];
        for (size_t i = 0; i < block_.size(); ++i) compare(block_[i], got[i], exact[i], kFunctions[f].absolute, worst);
      }
    }
    block_.clear();
  }

  std::vector<const CpuVariant*> variants_;
  std::vector<Worst> worst_;
  std::vector<T> block_;
};

template <class T, class Bits>
T from_bits(Bits bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

int run(uint64_t stride, uint64_t part, uint64_t parts) {
  constexpr uint64_t kAll = uint64_t{1} << 32;
  const uint64_t begin = kAll / parts * part, end = part + 1 == parts ? kAll : begin + kAll / parts;
  Search<float> narrow;
  Search<double> wide;
  for (const float x : {0.0f, 1.0f, 0.5f, 3.0f, 88.0f, 104.0f, 109.0f, 150.0f, 1e-40f, 1e-38f, 3.4e38f,
                        std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const float sign : {1.0f, -1.0f}) {
      narrow.add(sign * x);
      wide.add(sign * static_cast<double>(x));
    }
  }
  for (const double x : {708.0, 745.0, 752.0, 1e300, 1e-310}) wide.add(x), wide.add(-x);
  uint64_t mixed = 0x9e3779b97f4a7c15u;
  for (uint64_t bits = begin; bits < end; bits += stride) {
    narrow.add(from_bits<float>(static_cast<uint32_t>(bits)));
    if (stride == 1 && bits % 64 != 0) continue;  // the reference in long double is slow
    // Half of the doubles have any bits, half lie where SiLU is neither 0 nor x.
    mixed = mixed * 6364136223846793005u + 1442695040888963407u;
    wide.add(bits % 128 < 64 ? from_bits<double>(mixed) : (static_cast<double>(mixed >> 11) * 0x1p-53 - 0.5) * 1520);
  }
  const bool good = narrow.report() & wide.report();
  std::printf("%llu floats\n", static_cast<unsigned long long>((end - begin + stride - 1) / stride));
  return good ? 0 : 1;
}

}  // namespace
}  // namespace lgld

int main(int argc, char** argv) {
  const auto number = [&](int i, uint64_t otherwise) { return argc > i ? std::strtoull(argv[i], nullptr, 10) : otherwise; };
  const uint64_t stride = number(1, 1009), part = number(2, 0), parts = number(3, 1);
  if (stride == 0 || part >= parts) {
    std::fprintf(stderr, "usage: lgld_silu_ulp [STRIDE [PART PARTS]], STRIDE at least 1, PART less than PARTS\n");
    return 2;
  }
  return lgld::run(stride, part, parts);
}
