// Involution in bfloat16 for one instruction set.
#include LGLD_SIMD_HEADER

#include "passes.h"

namespace lgld {

extern const Involution2dKernels::Passes<BFloat16> LGLD_COMPILED(bf16);
const Involution2dKernels::Passes<BFloat16> LGLD_COMPILED(bf16) = {forward<BFloat16>, grad_x<BFloat16>, grad_weight<BFloat16>};

}  // namespace lgld
