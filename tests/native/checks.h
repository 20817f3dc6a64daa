// What all native tests share: counting checks, the line they end with, random numbers.
#pragma once
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>

namespace lgld::test {

inline int64_t passed = 0, failed = 0;

inline void check(bool condition, const std::string& what) {
  (condition ? passed : failed) += 1;
  if (!condition && failed <= 20) std::printf("FAILED: %s\n", what.c_str());
}

// Prints the counts; what main returns: 0 where `ran` is set and something was checked and nothing failed.
inline int verdict(bool ran = true) {
  std::printf("%lld passed, %lld failed\n", static_cast<long long>(passed), static_cast<long long>(failed));
  return ran && failed == 0 && passed > 0 ? 0 : 1;
}

using Random = std::mt19937_64;

inline int64_t pick(Random& random, int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(random);
}

}  // namespace lgld::test
