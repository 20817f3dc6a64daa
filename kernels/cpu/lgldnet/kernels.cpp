// LGLD-Net's stages for one instruction set: compiled once per header of kernels/cpu/simd, named by LGLD_VARIANT.
#include LGLD_SIMD_HEADER

#include "context.h"
#include "direct.h"
#include "head.h"
#include "lgldnet.h"
#include "local.h"
#include "stem.h"

namespace lgld {
namespace {

void run(const LgldnetCall& call, int stage, int64_t task, float* scratch) {
  switch (stage) {
    case kLocalStem: return local_stem(call, task, scratch);
    case kGlobalStem: return global_stem(call, task, scratch);
    case kWideContext: return (call.plan->direct ? wide_taps : wide_context)(call, task, scratch);
    case kNearContext: return (call.plan->direct ? near_taps : near_context)(call, task, scratch);
    case kLocalFeatures: return local_features(call, task, scratch);
    case kGates: return gates(call, task, scratch);
    case kHead: return head(call, task, scratch);
    case kLogits: return logits(call, task, scratch);
  }
}

void silu_vectors(float* p, int64_t vectors) { silu_rows(p, vectors * F::kLanes); }

}  // namespace

#define LGLD_CONCAT_(a, b) a##b
#define LGLD_CONCAT(a, b) LGLD_CONCAT_(a, b)

extern const LgldnetKernels LGLD_CONCAT(lgldnet_, LGLD_VARIANT);
const LgldnetKernels LGLD_CONCAT(lgldnet_, LGLD_VARIANT) = {{F::kLanes, kPanelVectors}, kPixelBlock, run, silu_vectors};

}  // namespace lgld
