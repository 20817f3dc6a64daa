// Involution for one instruction set: compiled once per header of kernels/cpu/simd, named by LGLD_VARIANT.
#include LGLD_SIMD_HEADER

#include "passes.h"

namespace lgld {

extern const Involution2dKernels::Passes<float> LGLD_COMPILED(f32);
extern const Involution2dKernels::Passes<double> LGLD_COMPILED(f64);
extern const Involution2dKernels::Passes<Float16> LGLD_COMPILED(f16);
extern const Involution2dKernels::Passes<BFloat16> LGLD_COMPILED(bf16);

#define LGLD_TABLE_(variant) involution2d_##variant
#define LGLD_TABLE(variant) LGLD_TABLE_(variant)

extern const Involution2dKernels LGLD_TABLE(LGLD_VARIANT);
const Involution2dKernels LGLD_TABLE(LGLD_VARIANT) = {
    Vec<float>::kLanes,  Vec<double>::kLanes,
    kRowBlock,           kChannelBlock,
    kSparseChannelBlock, kWeightChannels,
    kMaskedWindows,      {kTileVectors * Vec<float>::kLanes, kTileVectors * Vec<double>::kLanes},
    &LGLD_COMPILED(f32), &LGLD_COMPILED(f64),
    &LGLD_COMPILED(f16), &LGLD_COMPILED(bf16),
};

}  // namespace lgld
