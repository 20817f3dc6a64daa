// Involution in float16 for one instruction set.
#include LGLD_SIMD_HEADER

#include "passes.h"

namespace lgld {

extern const Involution2dKernels::Passes<Float16> LGLD_COMPILED(f16);
const Involution2dKernels::Passes<Float16> LGLD_COMPILED(f16) = {forward<Float16>, grad_x<Float16>, grad_weight<Float16>};

}  // namespace lgld
