#include "../common/dtype.cuh"
#include "backward.h"

namespace lgld::cuda {
namespace {

int64_t compute_bytes(const InvolutionLayerParams& p) { return p.dtype == Dtype::kFloat64 ? 8 : 4; }

BackwardPlan plan(const InvolutionLayerParams& p) {
  return plan_backward(p.batch, p.channels, p.hidden, p.height, p.width, p.kernel_size * p.kernel_size,
                       p.hidden <= few_hidden(compute_bytes(p)));
}

}  // namespace

int64_t involution_layer_backward_workspace(const InvolutionLayerParams& p) {
  const BackwardPlan b = plan(p);
  return b.tasks * (b.record + b.scratch) * compute_bytes(p);
}

cudaError_t involution_layer_backward(const InvolutionLayerParams& p, const ConstMap& grad_y,
                                      const InvolutionLayerGradients& to, void* workspace, cudaStream_t stream) {
  if (p.kernel_size != 3 && p.kernel_size != 5 && p.kernel_size != 7) return cudaErrorInvalidValue;
  if (p.x.column != 1 || grad_y.column != 1) return cudaErrorInvalidValue;
  BackwardCall f{p, grad_y, to, workspace, nullptr, plan(p)};
  f.scratch = static_cast<char*>(workspace) + f.plan.tasks * f.plan.record * compute_bytes(p);
  return with_dtype(p.dtype, [&](auto element) { return launch_backward<decltype(element)>(f, stream); });
}

}  // namespace lgld::cuda
