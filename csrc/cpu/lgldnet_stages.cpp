// The fused network's stages as ops of their own, each the counterpart of published blocks: from and to plain tensors [batch,
// channels, height, width], so that each can be tested and looked at. The network itself keeps its maps where they are.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "csrc/cpu/lgldnet_arguments.h"
#include "csrc/cpu/lgldnet_cache.h"
#include "csrc/cpu/lgldnet_schedule.h"
#include "kernels/cpu/lgldnet/maps.h"

namespace lgld {
namespace {

// The geometry of a map [batch, base_channels, height, width]: that of the smallest even image that gives it.
LgldnetGeometry check_map(const char* op, const char* name, const Tensor& map, const Tensor& parameters, int64_t in_channels,
                          int64_t classes) {
  check_images(op, name, map);
  LGLD_CHECK(map.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32, but is ", dtype_of(map));
  LGLD_CHECK(map.size(2) <= kMostPixels && map.size(3) <= kMostPixels, op, ": ", name, " is too large: ", shape_of(map));
  const LgldnetGeometry g{in_channels, map.size(1), classes, 2 * map.size(2), 2 * map.size(3)};
  check_parameters(op, parameters, g);
  return g;
}

void write_map(const LgldnetCall& call, const Tensor& map, int64_t image, LgldnetPixel pixel) {
  const LgldnetPlan& p = *call.plan;
  const float* from = static_cast<const float*>(map.const_data_ptr()) + image * map.stride(0);
  for (int64_t i = 0; i < p.height; ++i)
    for (int64_t j = 0; j < p.width; ++j) {
      float* to = call.workspace + pixel(p, i, j);
      for (int64_t c = 0; c < p.padded; ++c)
        to[c] = c < p.geometry.channels ? from[c * map.stride(1) + i * map.stride(2) + j * map.stride(3)] : 0.0f;
    }
}

// `to` is contiguous.
void read_map(const LgldnetCall& call, LgldnetPixel pixel, float* to) {
  const LgldnetPlan& p = *call.plan;
  for (int64_t c = 0; c < p.geometry.channels; ++c)
    for (int64_t i = 0; i < p.height; ++i)
      for (int64_t j = 0; j < p.width; ++j) *to++ = call.workspace[pixel(p, i, j) + c];
}

// The channels' sums that a stage would have left, as if its first task had seen all pixels.
void write_sums(const LgldnetCall& call, LgldnetPixel pixel, int64_t sums, int stage) {
  const LgldnetPlan& p = *call.plan;
  std::vector<double> sum(static_cast<size_t>(p.padded));
  for (int64_t i = 0; i < p.height; ++i)
    for (int64_t j = 0; j < p.width; ++j)
      for (int64_t c = 0; c < p.padded; ++c) sum[static_cast<size_t>(c)] += call.workspace[pixel(p, i, j) + c];
  std::fill_n(call.workspace + sums, p.stages[stage].tasks * p.padded, 0.0f);
  std::transform(sum.begin(), sum.end(), call.workspace + sums, [](double s) { return static_cast<float>(s); });
}

// Stages [first, last) of one image after the other. `before` fills in the call and what the stages read, `after` takes their
// results.
template <class Before, class After>
void run_stages(const LgldnetGeometry& g, const Tensor& parameters, int64_t batch, int first, int last, Before&& before,
                After&& after) {
  const LgldnetKernels& kernels = *active_cpu_variant().lgldnet;
  const LgldnetLease lease(kernels, g, static_cast<const float*>(parameters.const_data_ptr()),
                           static_cast<int64_t>(torch::stable::get_num_threads()));
  for (int64_t image = 0; image < batch; ++image) {
    LgldnetCall call = lease.call();
    before(call, image);
    run_lgldnet(kernels, lease, 1, first, last, [&](int64_t) { return call; });
    after(call, image);
  }
}

struct MapStage {
  const char* op;
  int first, last;
  LgldnetPixel from, to;  // `from` is null where the stage reads the image
};

Tensor run_map_stage(const MapStage& s, const LgldnetGeometry& g, const Tensor& x, const Tensor& parameters) {
  const int64_t batch = x.size(0), height = (g.height + 1) / 2, width = (g.width + 1) / 2;
  const Tensor out = empty_floats(s.op, {batch, g.channels, height, width});
  if (batch == 0) return out;
  float* to = static_cast<float*>(out.mutable_data_ptr());
  const auto before = [&](LgldnetCall& call, int64_t image) {
    if (s.from == nullptr) {
      call.image = image_of(x, image);
    } else {
      write_map(call, x, image, s.from);
    }
  };
  run_stages(g, parameters, batch, s.first, s.last, before,
             [&](const LgldnetCall& call, int64_t image) { read_map(call, s.to, to + image * g.channels * height * width); });
  return out;
}

// LGLDNet.local_stem: convolution, involution, BatchNorm, SiLU.
Tensor local_stem(const Tensor& x, const Tensor& parameters, int64_t channels, int64_t classes) {
  const MapStage stage{"lgldnet_local_stem", kLocalStem, kLocalStem + 1, nullptr, stem_pixel};
  return run_map_stage(stage, check_image(stage.op, x, parameters, channels, classes), x, parameters);
}

// LGLDNet.global_stem: the Fourier feature mixer.
Tensor global_stem(const Tensor& x, const Tensor& parameters, int64_t channels, int64_t classes) {
  const MapStage stage{"lgldnet_global_stem", kGlobalStem, kGlobalStem + 1, nullptr, mixer_pixel};
  return run_map_stage(stage, check_image(stage.op, x, parameters, channels, classes), x, parameters);
}

// LGLDNet.lfa.
Tensor local_features(const Tensor& map, const Tensor& parameters, int64_t in_channels, int64_t classes) {
  const MapStage stage{"lgldnet_local_features", kLocalFeatures, kLocalFeatures + 1, stem_pixel, local_pixel};
  return run_map_stage(stage, check_map(stage.op, "map", map, parameters, in_channels, classes), map, parameters);
}

// LGLDNet.gce without its gate: SiLU(compress(the three dilated convolutions)).
Tensor context(const Tensor& map, const Tensor& parameters, int64_t in_channels, int64_t classes) {
  const MapStage stage{"lgldnet_context", kWideContext, kNearContext + 1, mixer_pixel, context_pixel};
  return run_map_stage(stage, check_map(stage.op, "map", map, parameters, in_channels, classes), map, parameters);
}

// LGLDNet.gce's gate, lgfm and head, from what `local_features` and `context` return: logits and features.
std::tuple<Tensor, Tensor> head(const Tensor& local, const Tensor& context, const Tensor& parameters, int64_t in_channels,
                                int64_t classes) {
  constexpr const char* op = "lgldnet_head";
  const LgldnetGeometry g = check_map(op, "local", local, parameters, in_channels, classes);
  check_map(op, "context", context, parameters, in_channels, classes);
  for (int64_t d = 0; d < 4; ++d)
    LGLD_CHECK(local.size(d) == context.size(d), op, ": local and context must have the same shape, but have ", shape_of(local),
               " and ", shape_of(context));
  const int64_t batch = local.size(0);
  const Tensor logits = empty_floats(op, {batch, classes}), features = empty_floats(op, {batch, g.channels});
  if (batch == 0) return {logits, features};
  float* logits_at = static_cast<float*>(logits.mutable_data_ptr());
  float* features_at = static_cast<float*>(features.mutable_data_ptr());
  const auto before = [&](LgldnetCall& call, int64_t image) {
    write_map(call, local, image, local_pixel);
    write_map(call, context, image, context_pixel);
    write_sums(call, local_pixel, call.plan->local_sums, kLocalFeatures);
    write_sums(call, context_pixel, call.plan->context_sums, kNearContext);
    call.logits = logits_at + image * classes, call.features = features_at + image * g.channels;
  };
  run_stages(g, parameters, batch, kGates, kLgldnetStages, before, [](const LgldnetCall&, int64_t) {});
  return {logits, features};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lgld_ops, CPU, m) {
  m.impl("lgldnet_local_stem", TORCH_BOX(&local_stem));
  m.impl("lgldnet_global_stem", TORCH_BOX(&global_stem));
  m.impl("lgldnet_local_features", TORCH_BOX(&local_features));
  m.impl("lgldnet_context", TORCH_BOX(&context));
  m.impl("lgldnet_head", TORCH_BOX(&head));
}

}  // namespace lgld
