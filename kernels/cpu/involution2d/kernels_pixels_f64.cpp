// Involution by vectors of channels for one instruction set, in double.
#include LGLD_SIMD_HEADER

#include "pixels.h"

namespace lgld {

const PixelPlane<double> LGLD_COMPILED(pixels_f64) = pixel_plane<double>;

}  // namespace lgld
