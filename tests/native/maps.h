// What tests of map kernels share: tensors of any element type against forbidden pages, comparison.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "checks.h"
#include "guarded.h"
#include "simd/half.h"
#include "strided.h"

namespace lgld::test {

using Doubles = std::vector<double>;

inline double value_of(double v) { return v; }
inline double value_of(float v) { return v; }
inline double value_of(Float16 v) { return widen(v); }
inline double value_of(BFloat16 v) { return widen(v); }
inline void assign(double& e, double v) { e = v; }
inline void assign(float& e, double v) { e = static_cast<float>(v); }
inline void assign(Float16& e, double v) { e = narrow(static_cast<float>(v), Float16{}); }
inline void assign(BFloat16& e, double v) { e = narrow(static_cast<float>(v), BFloat16{}); }

enum class Layout { kContiguous, kChannelsLast, kWiderRows };

// A tensor [batch][channels][rows][columns] in guarded memory.
template <class E>
class Map {
 public:
  Map(int64_t b, int64_t c, int64_t h, int64_t w, Layout layout, Against end) : n_{b, c, h, w} {
    if (layout == Layout::kChannelsLast) {
      s_[0] = h * w * c, s_[1] = 1, s_[2] = w * c, s_[3] = c;
    } else {
      s_[3] = 1, s_[2] = w + (layout == Layout::kWiderRows ? 3 : 0), s_[1] = h * s_[2], s_[0] = c * s_[1];
    }
    int64_t extent = 1;
    for (int d = 0; d < 4; ++d) extent += (n_[d] - 1) * s_[d];
    memory_ = std::make_unique<Guarded>(static_cast<size_t>(extent) * sizeof(E), sizeof(E), end);
  }
  E& at(int64_t b, int64_t c, int64_t i, int64_t j) const {
    return static_cast<E*>(memory_->data())[b * s_[0] + c * s_[1] + i * s_[2] + j * s_[3]];
  }
  template <class F>
  void each(F f) const {
    for (int64_t b = 0; b < n_[0]; ++b)
      for (int64_t c = 0; c < n_[1]; ++c)
        for (int64_t i = 0; i < n_[2]; ++i)
          for (int64_t j = 0; j < n_[3]; ++j) f(at(b, c, i, j), b, c, i, j);
  }
  Doubles values() const {
    Doubles all;
    each([&](E& e, int64_t, int64_t, int64_t, int64_t) { all.push_back(value_of(e)); });
    return all;
  }
  Strided<const E> in() const { return {&at(0, 0, 0, 0), s_[0], s_[1], s_[2], s_[3]}; }
  Strided<E> out() const { return {&at(0, 0, 0, 0), s_[0], s_[1], s_[2], s_[3]}; }
  bool intact() const { return memory_->intact(); }

 private:
  int64_t n_[4], s_[4];
  std::unique_ptr<Guarded> memory_;
};

inline bool same_bits(const Doubles& a, const Doubles& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

// |got - exact| <= tolerance * (magnitude of the exact values) for all of them.
inline void check_close(const Doubles& got, const Doubles& exact, double tolerance, const std::string& what) {
  double scale = 1e-30, worst = 0;
  for (double v : exact) scale = std::max(scale, std::abs(v));
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got[i] - exact[i]);
    worst = error <= worst ? worst : error;  // a NaN stays
  }
  check(got.size() == exact.size() && worst <= tolerance * scale,
        what + ": error " + std::to_string(worst / scale) + " of the largest value");
}

}  // namespace lgld::test
