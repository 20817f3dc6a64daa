// Loops whose index is a compile-time constant, so that register tiles stay in registers.
#pragma once
#include <utility>

#define LGLD_INLINE inline __attribute__((always_inline))
// A lambda's body is inlined with its caller only when the lambda says so itself.
#define LGLD_INLINE_LAMBDA __attribute__((always_inline))

namespace lgld {
namespace {

template <int I>
struct Int {
  static constexpr int value = I;
  constexpr operator int() const { return I; }
};

template <class F, int... I>
LGLD_INLINE void unroll_sequence(F&& f, std::integer_sequence<int, I...>) {
  (f(Int<I>{}), ...);
}

// f(Int<0>), f(Int<1>), ..., f(Int<N - 1>).
template <int N, class F>
LGLD_INLINE void unroll(F&& f) {
  unroll_sequence(f, std::make_integer_sequence<int, N>{});
}

// Hides where a pointer came from. Without it the compiler sees that an unrolled tile's many addresses are sums of loop
// invariants, computes them all before the loop, and spills hundreds of them to the stack.
template <class T>
LGLD_INLINE void hide_origin(T*& p) {
  asm("" : "+r"(p));
}

}  // namespace
}  // namespace lgld
