// Involution in float32 for one instruction set.
#include LGLD_SIMD_HEADER

#include "passes.h"

namespace lgld {

extern const Involution2dKernels::Passes<float> LGLD_COMPILED(f32);
const Involution2dKernels::Passes<float> LGLD_COMPILED(f32) = {forward<float>, grad_x<float>, grad_weight<float>};

}  // namespace lgld
