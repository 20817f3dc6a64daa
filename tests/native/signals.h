// Finds arithmetic on memory that nobody wrote, which makes no result wrong and may take a hundred times as long: where what
// stood there by chance are subnormal numbers.
#pragma once
#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "guarded.h"

namespace lgld::test {

// Signalling NaN of T's arithmetic in all of a scratch memory, whose use leaves a flag.
template <class T>
void fill_with_signals(const Guarded& scratch, size_t bytes) {
  const uint32_t low = 0x7fa00000, high = 0x7ff40000;  // of float, and the upper half of a double
  for (size_t at = 0; at + 4 <= bytes; at += 4) {
    const uint32_t& part = std::is_same_v<T, double> && at % 8 == 4 ? high : low;
    std::memcpy(static_cast<unsigned char*>(scratch.data()) + at, &part, sizeof(part));
  }
  std::feclearexcept(FE_INVALID);
}

// Whether a NaN was computed with since the memory was filled; no use where operands or results have NaN of their own.
inline bool signalled() { return std::fetestexcept(FE_INVALID) != 0; }

}  // namespace lgld::test
