// Square blocks of vectors, transposed in registers. Included behind a set's header.
#pragma once

namespace lgld {
namespace {

// Exchanges element k of v[m] and element m of v[k].
//
// Taking the even and the odd elements of each pair of neighbouring rows moves the lowest bit of the column's number to the top
// of the row's, and the lowest bit of the row's to the top of the column's. After log2(kLanes) rounds they have changed places.
template <class V>
LGLD_INLINE void transpose(V (&v)[V::kLanes]) {
  constexpr int kHalf = V::kLanes / 2;
  for (int bit = 1; bit < V::kLanes; bit *= 2) {
    V next[V::kLanes];
    unroll<kHalf>([&](auto i) LGLD_INLINE_LAMBDA {
      next[i] = V::even(v[2 * i], v[2 * i + 1]);
      next[i + kHalf] = V::odd(v[2 * i], v[2 * i + 1]);
    });
    unroll<V::kLanes>([&](auto i) LGLD_INLINE_LAMBDA { v[i] = next[i]; });
  }
}

}  // namespace
}  // namespace lgld
