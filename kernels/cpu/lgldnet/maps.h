// Where the pixels of the maps between the stages stand.
#pragma once
#include "lgldnet.h"

namespace lgld {
namespace {

// Floats from the workspace's start to pixel (i, j), whose channels are neighbours.
inline int64_t stem_pixel(const LgldnetPlan& p, int64_t i, int64_t j) {
  return p.stem_map + (i + 2) * p.stem_row + (j + 2) * p.padded;
}
// The border too: i and j from -8 on.
inline int64_t mixer_pixel(const LgldnetPlan& p, int64_t i, int64_t j) {
  return p.mixer_map + ((i + 8) % 4 * 4 + (j + 8) % 4) * p.grid + ((i + 8) / 4 * p.grid_columns + (j + 8) / 4) * p.padded;
}
inline int64_t context_pixel(const LgldnetPlan& p, int64_t i, int64_t j) {
  return p.context_map + (i % 4 * 4 + j % 4) * p.context_grid + (i / 4 * p.context_columns + j / 4) * p.padded;
}
inline int64_t local_pixel(const LgldnetPlan& p, int64_t i, int64_t j) { return p.local_map + (i * p.width + j) * p.padded; }

using LgldnetPixel = int64_t (*)(const LgldnetPlan&, int64_t, int64_t);

}  // namespace
}  // namespace lgld
