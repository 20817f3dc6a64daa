// Involution by vectors of channels for one instruction set, in float and, with results rounded, in 16 bit.
#include LGLD_SIMD_HEADER

#include "pixels.h"

namespace lgld {

const PixelPlane<float> LGLD_COMPILED(pixels_f32) = pixel_plane<float>;

}  // namespace lgld
