// Window for the sets whose overlapping loads cost less than shuffles would: at most every second 32-byte load and every fourth
// 16-byte load crosses a cache line.
#pragma once

namespace lgld {
namespace {

constexpr bool kMaskedWindows = false;

template <class T, class S = T>
struct Window {
  const T* p;
  static LGLD_INLINE Window load(const T* p) { return {p}; }
  static LGLD_INLINE Window load_within(const T* p, int, int) { return {p}; }
  template <int kShift>
  LGLD_INLINE Vec<T> at() const {
    return Vec<T>::load(p + kShift);
  }
};

}  // namespace
}  // namespace lgld
