// Involution by vectors of channels for one instruction set, in double.
#include LGLD_SIMD_HEADER

#include "pixels.h"

namespace lgld {

void LGLD_COMPILED(pixels_f64)(const Axis& rows, const Axis& columns, int64_t kernel_w, const Strided<const double>& map,
                               const Strided<const double>& weight, const PixelResult& out, const PixelGroups& groups,
                               PixelTap* taps) {
  pixel_plane(rows, columns, kernel_w, map, weight, out, groups, taps);
}

}  // namespace lgld
