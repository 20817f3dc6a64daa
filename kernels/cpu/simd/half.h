// 16-bit storage: elements of these types are widened to float on load and rounded on store; no arithmetic is done in them.
//
// Rounding is to the nearest, ties to even; what overflows becomes infinite; subnormals are exact; NaN stays NaN with its sign
// and the leading bits of its payload, quiet. These scalar conversions are what every set's vector conversions equal to the
// bit.
#pragma once
#include <cstdint>
#include <cstring>

#include "unroll.h"

namespace lgld {

// IEEE 754 binary16: 5 bits of exponent, 10 of fraction.
struct Float16 {
  uint16_t bits;
};

// The upper half of a float: 8 bits of exponent, 7 of fraction.
struct BFloat16 {
  uint16_t bits;
};

namespace {

LGLD_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

LGLD_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

LGLD_INLINE float widen(Float16 half) {
  const uint32_t sign = (half.bits & 0x8000u) << 16, magnitude = half.bits & 0x7fffu;
  if (magnitude > 0x7c00u) return float_of(sign | 0x7fc00000u | magnitude << 13);
  if (magnitude == 0x7c00u) return float_of(sign | 0x7f800000u);
  // The exponents' biases are 15 and 127. A subnormal is a multiple of 2^-24, which is exact in float.
  if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + (112u << 23)));
  return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
}

LGLD_INLINE Float16 narrow(float value, Float16) {
  const uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const auto half = [&](uint32_t rest) LGLD_INLINE_LAMBDA { return Float16{static_cast<uint16_t>(sign | rest)}; };
  if (magnitude > 0x7f800000u) return half(0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return half(0x7c00u);  // 65520, halfway between the largest half and 2^16
  // Below 2^-14 the spacing is 2^-24, that of floats in [0.5, 1): adding 0.5 leaves the rounded multiple in the last bits.
  if (magnitude < 0x38800000u) return half(bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u);
  return half((magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13);
}

LGLD_INLINE double widen(float value) { return value; }

LGLD_INLINE float widen(BFloat16 half) { return float_of(static_cast<uint32_t>(half.bits) << 16); }

LGLD_INLINE BFloat16 narrow(float value, BFloat16) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Up to 8 elements of 16 bit in general registers, for the sets without masked access to them: element k < 4 at bit 16 * k of
// `low`. Moved in pieces of 8, 4 and 2 bytes, the last of which overlaps the one before, since a vector that is loaded from
// where its elements have just been stored one by one waits for them.
struct HalfBits {
  uint64_t low, high;

  // p[0, n) and zeros.
  template <class H>
  static LGLD_INLINE HalfBits load(const H* p, int n) {
    if (n >= 4) return {piece<uint64_t>(p), n > 4 ? piece<uint64_t>(p + n - 4) >> 16 * (8 - n) : 0};
    if (n >= 2) return {piece<uint32_t>(p) | uint64_t{piece<uint32_t>(p + n - 2)} << 16 * (n - 2), 0};
    return {n == 1 ? piece<uint16_t>(p) : 0u, 0};
  }

  // The first n to p.
  template <class H>
  LGLD_INLINE void store(H* p, int n) const {
    if (n >= 4) {
      std::memcpy(p, &low, 8);
      const uint64_t last = n == 4 ? low : n == 8 ? high : low >> 16 * (n - 4) | high << 16 * (8 - n);
      std::memcpy(p + n - 4, &last, 8);
    } else if (n >= 2) {
      const uint32_t first = static_cast<uint32_t>(low), last = static_cast<uint32_t>(low >> 16 * (n - 2));
      std::memcpy(p, &first, 4);
      std::memcpy(p + n - 2, &last, 4);
    } else if (n == 1) {
      const uint16_t first = static_cast<uint16_t>(low);
      std::memcpy(p, &first, 2);
    }
  }

 private:
  template <class U, class H>
  static LGLD_INLINE U piece(const H* p) {
    U bits;
    std::memcpy(&bits, p, sizeof(U));
    return bits;
  }
};

}  // namespace
}  // namespace lgld
