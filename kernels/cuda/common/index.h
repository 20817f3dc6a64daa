// Integer arithmetic that kernels and their launchers share. Plain C++: tests compile it for the host.
#pragma once
#include <cstdint>

// Kernels index with it: called out of line, it would have their parameters copied to local memory.
#define LGLD_INDEX __attribute__((always_inline)) constexpr

namespace lgld::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }  // a >= 0, b > 0
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// The largest multiple of b that is at most a; b > 0, any sign of a.
LGLD_INDEX int64_t floor_to(int64_t a, int64_t b) {
  const int64_t r = a % b;
  return a - (r < 0 ? r + b : r);
}

// a / b for a >= 0, b > 0; a 32-bit division, a fifth of the instructions, where that will do.
LGLD_INDEX int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
  return a / b;
}

// The largest power of two that divides v, at most `most` (a power of two); v = 0 is divisible by all.
constexpr int64_t power_of_two_in(int64_t v, int64_t most) {
  int64_t p = most;
  while (v % p != 0) p /= 2;
  return p;
}

// A grid has one dimension, which takes 2^31 - 1 blocks (the other two: 65535); whatever is more runs as further launches that
// start at a block of their own.
constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;

}  // namespace lgld::cuda
