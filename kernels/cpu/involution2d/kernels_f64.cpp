// Involution in float64 for one instruction set.
#include LGLD_SIMD_HEADER

#include "passes.h"

namespace lgld {

extern const Involution2dKernels::Passes<double> LGLD_COMPILED(f64);
const Involution2dKernels::Passes<double> LGLD_COMPILED(f64) = {forward<double>, grad_x<double>, grad_weight<double>};

}  // namespace lgld
