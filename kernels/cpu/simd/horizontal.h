// Operations across the lanes of one vector.
#pragma once

namespace lgld {
namespace {

// Sum of all lanes: halves are added until one is left, in every set in the same order for its number of lanes.
template <class T>
LGLD_INLINE T horizontal_sum(Vec<T> v) {
  T lane[Vec<T>::kLanes];
  v.store(lane);
  for (int width = Vec<T>::kLanes / 2; width > 0; width /= 2)
    for (int k = 0; k < width; ++k) lane[k] += lane[k + width];
  return lane[0];
}

}  // namespace
}  // namespace lgld
