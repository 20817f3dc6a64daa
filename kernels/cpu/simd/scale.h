// scale() for the sets without an instruction for it.
#pragma once

namespace lgld {
namespace {

template <class T>
struct Exponents;
template <>
struct Exponents<float> {
  static constexpr float kLeast = -126.0f, kMost = 127.0f;
};
template <>
struct Exponents<double> {
  static constexpr double kLeast = -1022.0, kMost = 1023.0;
};

// Two powers of two that are normal numbers; the one nearer to 1 comes first, so that a subnormal result is rounded once.
template <class T>
LGLD_INLINE Vec<T> scale(Vec<T> a, Vec<T> n) {
  using V = Vec<T>;
  const V near = V::min(V::broadcast(Exponents<T>::kMost), V::max(V::broadcast(Exponents<T>::kLeast), n));
  return a * V::power_of_two(n - near) * V::power_of_two(near);
}

// a * 2^n for integral n from -126 to 127 where the result is a normal number; infinite for n = 128 and a of 1 or more.
template <class T>
LGLD_INLINE Vec<T> scale_normal(Vec<T> a, Vec<T> n) {
  return a * Vec<T>::power_of_two(n);
}

}  // namespace
}  // namespace lgld
