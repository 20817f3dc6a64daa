// torch.ops.lgld_ops.lgldnet: the whole network in inference. Kernels and their order: kernels/cpu/lgldnet/lgldnet.h.
#include "kernels/cpu/lgldnet/lgldnet.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <tuple>

#include "csrc/cpu/lgldnet_cache.h"
#include "csrc/cpu/lgldnet_schedule.h"
#include "csrc/error.h"

namespace lgld {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + "]";
}

Tensor empty_floats(const char* op, int64_t rows, int64_t columns) {
  const int64_t size[2] = {rows, columns}, stride[2] = {columns, 1};
  AtenTensorHandle handle = nullptr;
  const AOTITorchError status =
      aoti_torch_empty_strided(2, size, stride, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, &handle);
  LGLD_CHECK(status == AOTI_TORCH_SUCCESS, op, ": a result of ", rows, " x ", columns, " floats could not be allocated");
  return Tensor(handle);
}

LgldnetGeometry check(const char* op, const Tensor& x, const Tensor& parameters, int64_t channels, int64_t classes) {
  LGLD_CHECK(x.is_cpu() && parameters.is_cpu(), op, ": x and parameters must be on the CPU");
  LGLD_CHECK(x.dim() == 4, op, ": x must have 4 dimensions, [batch, in_channels, height, width], but has shape ", shape_of(x));
  LGLD_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Byte, op,
             ": x must be float32, or uint8 with 255 for 1.0, but is of another dtype");
  LGLD_CHECK(x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1, op,
             ": x must have at least one channel, row and column, but has shape ", shape_of(x));
  constexpr int64_t kMostPixels = int64_t{1} << 28, kMostChannels = 4096;
  LGLD_CHECK(x.size(2) < kMostPixels && x.size(3) < kMostPixels && x.size(2) * x.size(3) <= kMostPixels, op,
             ": x must have at most 2^28 pixels an image, but has shape ", shape_of(x));
  LGLD_CHECK(channels >= 4 && channels % 4 == 0 && channels <= kMostChannels, op,
             ": base_channels must be a multiple of 4 from 4 to ", kMostChannels, ", but is ", channels);
  LGLD_CHECK(classes >= 1 && classes < kMostPixels, op, ": num_classes must be at least 1 and less than 2^28, but is ",
             classes);
  LGLD_CHECK(x.size(1) <= kMostChannels, op, ": x must have at most ", kMostChannels, " channels, but has shape ", shape_of(x));
  const LgldnetGeometry g{x.size(1), channels, classes, x.size(2), x.size(3)};
  const int64_t count = lgldnet_parameters(g.in_channels, g.channels, g.classes).count;
  LGLD_CHECK(parameters.scalar_type() == ScalarType::Float, op, ": parameters must be float32");
  LGLD_CHECK(parameters.dim() == 1 && parameters.size(0) == count && (count < 2 || parameters.stride(0) == 1), op,
             ": parameters must be contiguous with shape [", count, "] for ", g.in_channels, " image channels, base_channels ",
             channels, " and num_classes ", classes, ", but has shape ", shape_of(parameters));
  return g;
}

LgldnetImage image_of(const Tensor& x, int64_t index) {
  const bool bytes = x.scalar_type() == ScalarType::Byte;
  const char* data = static_cast<const char*>(x.const_data_ptr()) + index * x.stride(0) * (bytes ? 1 : 4);
  return {data, x.stride(1), x.stride(2), x.stride(3), bytes};
}

std::tuple<Tensor, Tensor> lgldnet(const Tensor& x, const Tensor& parameters, int64_t channels, int64_t classes) {
  constexpr const char* op = "lgldnet";
  const LgldnetGeometry g = check(op, x, parameters, channels, classes);
  const int64_t batch = x.size(0);
  const Tensor logits = empty_floats(op, batch, classes), features = empty_floats(op, batch, channels);
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
  const LgldnetGeometry g = check(op, x, parameters, channels, classes);
  LGLD_CHECK(x.size(0) >= 1 && rounds >= 1, op, ": x must hold an image and rounds must be at least 1");
  const Tensor seconds = empty_floats(op, rounds, kLgldnetStages), logits = empty_floats(op, 1, classes),
               features = empty_floats(op, 1, channels);
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lgld_ops, CPU, m) {
  m.impl("lgldnet", TORCH_BOX(&lgldnet));
  m.impl("lgldnet_stage_times", TORCH_BOX(&lgldnet_stage_times));
}

}  // namespace lgld

extern "C" {

// Row `index` of the plan for an image of that size: 0 behind the last stage or where the geometry is out of range.
__attribute__((visibility("default"))) int lgld_lgldnet_stage(const int64_t* geometry, int index, const char** name,
                                                              int64_t* row) {
  const lgld::LgldnetGeometry g{geometry[0], geometry[1], geometry[2], geometry[3], geometry[4]};
  if (index < 0 || index >= lgld::kLgldnetStages) return 0;
  const lgld::LgldnetKernels& k = *lgld::active_cpu_variant().lgldnet;
  const lgld::LgldnetPlan plan = lgld::lgldnet_plan(g, k.vectors, k.pixel_block);
  const lgld::LgldnetStage& s = plan.stages[index];
  *name = s.name;
  const int64_t values[] = {s.phase,
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

// Forgets all plans, packed weights and idle workspaces.
__attribute__((visibility("default"))) void lgld_lgldnet_clear() { lgld::clear_lgldnet_cache(); }

// Bytes held by the cache: packed weights, tables and idle workspaces; and how many networks, plans and workspaces these are.
__attribute__((visibility("default"))) void lgld_lgldnet_cached(int64_t* bytes, int64_t* counts) {
  lgld::lgldnet_cached(bytes, counts);
}

}  // extern "C"
