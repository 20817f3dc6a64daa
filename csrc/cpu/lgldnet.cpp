// torch.ops.lgld_ops.lgldnet: the whole network in inference. Kernels and their order: kernels/cpu/lgldnet/lgldnet.h.
#include "kernels/cpu/lgldnet/lgldnet.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <chrono>
#include <tuple>

#include "csrc/cpu/lgldnet_arguments.h"
#include "csrc/cpu/lgldnet_cache.h"
#include "csrc/cpu/lgldnet_schedule.h"
#include "csrc/error.h"

namespace lgld {
namespace {

std::tuple<Tensor, Tensor> lgldnet(const Tensor& x, const Tensor& parameters, int64_t channels, int64_t classes) {
  constexpr const char* op = "lgldnet";
  const LgldnetGeometry g = check_image(op, x, parameters, channels, classes);
  const int64_t batch = x.size(0);
  const Tensor logits = empty_floats(op, {batch, classes}), features = empty_floats(op, {batch, channels});
  if (batch == 0) return {logits, features};
  const LgldnetKernels& kernels = *active_cpu_variant().lgldnet;
  const LgldnetLease lease(kernels, g, static_cast<const float*>(parameters.const_data_ptr()),
                           static_cast<int64_t>(torch::stable::get_num_threads()));
  float* logits_at = static_cast<float*>(logits.mutable_data_ptr());
  float* features_at = static_cast<float*>(features.mutable_data_ptr());
  run_lgldnet(kernels, lease, batch, 0, kLgldnetStages, [&](int64_t image) {
    LgldnetCall call = lease.call();
    call.image = image_of(x, image), call.logits = logits_at + image * classes, call.features = features_at + image * channels;
    return call;
  });
  return {logits, features};
}

// Every stage on its own, for the figures of `lgld-ops bench --stages`: seconds of each, [rounds, stages].
Tensor lgldnet_stage_times(const Tensor& x, const Tensor& parameters, int64_t channels, int64_t classes, int64_t rounds) {
  constexpr const char* op = "lgldnet_stage_times";
  using Clock = std::chrono::steady_clock;
  const LgldnetGeometry g = check_image(op, x, parameters, channels, classes);
  LGLD_CHECK(x.size(0) >= 1 && rounds >= 1, op, ": x must hold an image and rounds must be at least 1");
  const Tensor seconds = empty_floats(op, {rounds, kLgldnetStages}), logits = empty_floats(op, {1, classes}),
               features = empty_floats(op, {1, channels});
  const LgldnetKernels& kernels = *active_cpu_variant().lgldnet;
  const LgldnetLease lease(kernels, g, static_cast<const float*>(parameters.const_data_ptr()),
                           static_cast<int64_t>(torch::stable::get_num_threads()));
  LgldnetCall call = lease.call();
  call.image = image_of(x, 0), call.logits = static_cast<float*>(logits.mutable_data_ptr());
  call.features = static_cast<float*>(features.mutable_data_ptr());
  float* out = static_cast<float*>(seconds.mutable_data_ptr());
  for (int64_t r = 0; r < rounds; ++r)
    for (int stage = 0; stage < kLgldnetStages; ++stage) {
      const auto begin = Clock::now();
      run_lgldnet(kernels, lease, 1, stage, stage + 1, [&](int64_t) { return call; });
      out[r * kLgldnetStages + stage] = std::chrono::duration<float>(Clock::now() - begin).count();
    }
  return seconds;
}

// The active variant's plan for {in_channels, channels, classes, height, width}; false where they are out of range.
bool plan_of(const int64_t* geometry, LgldnetPlan& plan) {
  const LgldnetGeometry g{geometry[0], geometry[1], geometry[2], geometry[3], geometry[4]};
  if (g.height < 1 || g.width < 1) return false;
  if (g.height > kMostPixels || g.width > kMostPixels || g.height * g.width > kMostPixels) return false;
  const LgldnetKernels& k = *active_cpu_variant().lgldnet;
  plan = lgldnet_plan(g, k.vectors, k.pixel_block);
  return true;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lgld_ops, CPU, m) {
  m.impl("lgldnet", TORCH_BOX(&lgldnet));
  m.impl("lgldnet_stage_times", TORCH_BOX(&lgldnet_stage_times));
}

}  // namespace lgld

extern "C" {

// Stage `index` of the plan for an image of that size, its name and kernel: 0 behind the last one or where the geometry is out
// of range.
__attribute__((visibility("default"))) int lgld_lgldnet_stage(const int64_t* geometry, int index, const char** names,
                                                              int64_t* row) {
  lgld::LgldnetPlan plan;
  if (index < 0 || index >= lgld::kLgldnetStages || !lgld::plan_of(geometry, plan)) return 0;
  const lgld::LgldnetStage& s = plan.stages[index];
  names[0] = s.name, names[1] = s.kernel;
  const int64_t values[] = {s.reads,
                            s.writes,
                            s.phase,
                            s.tasks,
                            s.multiply_adds,
                            s.silus,
                            s.bytes_read,
                            s.bytes_written,
                            plan.workspace * 4,
                            plan.scratch * 4,
                            plan.packed.count * 4};
  std::copy(std::begin(values), std::end(values), row);
  return 1;
}

// Buffer `index` of the same plan: where it begins in the workspace and its size, in bytes; the caller's have none.
__attribute__((visibility("default"))) int lgld_lgldnet_buffer(const int64_t* geometry, int index, const char** name,
                                                               int64_t* row) {
  lgld::LgldnetPlan plan;
  if (index < 0 || index >= lgld::kLgldnetBuffers || !lgld::plan_of(geometry, plan)) return 0;
  const lgld::LgldnetBuffer& b = plan.buffers[index];
  *name = b.name, row[0] = b.begin * 4, row[1] = b.floats * 4;
  return 1;
}

// Forgets all plans, packed weights and idle workspaces.
__attribute__((visibility("default"))) void lgld_lgldnet_clear() { lgld::clear_lgldnet_cache(); }

// Bytes held by the cache: packed weights, tables and idle workspaces; how many networks, plans and workspaces these are; and
// how many workspaces were made since it was cleared.
__attribute__((visibility("default"))) void lgld_lgldnet_cached(int64_t* bytes, int64_t* counts) {
  lgld::lgldnet_cached(bytes, counts);
}

}  // extern "C"
