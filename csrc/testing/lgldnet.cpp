// LGLD-Net's stages one after the other, and every map between them as a plain [channels, height, width] array.
#include "kernels/cpu/lgldnet/lgldnet.h"

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "csrc/testing/testing.h"
#include "kernels/cpu/lgldnet/maps.h"

namespace py = pybind11;

namespace lgld {
namespace {

using Floats = py::array_t<float>;

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer aligned(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
  Buffer b(static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
  std::fill(b.get(), b.get() + bytes / sizeof(float), 0.0f);
  return b;
}

// [channels][height][width] from a channels-last map in the workspace.
Floats plain(const LgldnetPlan& p, const float* workspace, LgldnetPixel pixel) {
  Floats out({p.geometry.channels, p.height, p.width});
  auto to = out.mutable_unchecked<3>();
  for (int64_t c = 0; c < p.geometry.channels; ++c)
    for (int64_t i = 0; i < p.height; ++i)
      for (int64_t j = 0; j < p.width; ++j) to(c, i, j) = workspace[pixel(p, i, j) + c];
  return out;
}

Floats row(const float* values, int64_t count) {
  Floats out(count);
  std::copy(values, values + count, out.mutable_data());
  return out;
}

// `order`: 0 runs a stage's tasks forwards, 1 backwards, more shuffles them by that seed.
py::dict run(const std::string& variant, const py::array image, const Floats parameters, int64_t channels, int64_t classes,
             unsigned order) {
  const LgldnetKernels& kernels = *variant_named(variant).lgldnet;
  const bool bytes = py::isinstance<py::array_t<uint8_t>>(image);
  if (image.ndim() != 3 || !(bytes || py::isinstance<py::array_t<float>>(image)))
    throw std::invalid_argument("image must be float32 or uint8 of shape [in_channels, height, width]");
  const LgldnetGeometry g{image.shape(0), channels, classes, image.shape(1), image.shape(2)};
  if (parameters.ndim() != 1 || parameters.size() != lgldnet_parameters(g.in_channels, channels, classes).count)
    throw std::invalid_argument("parameters have another length than the geometry's");
  const LgldnetPlan p = lgldnet_plan(g, kernels.vectors, kernels.pixel_block);
  const Buffer packed = aligned(p.packed.count), tables = aligned(p.tables), workspace = aligned(p.workspace);
  const Buffer scratch = aligned(p.scratch);
  std::vector<double> fold(static_cast<size_t>(lgldnet_fold_scratch(g)));
  lgldnet_fold(g, kernels.vectors, parameters.data(), fold.data(), packed.get());
  lgldnet_tables(p, parameters.data(), tables.get());
  Floats logits(classes), features(channels);
  const int64_t size = bytes ? 1 : 4;
  LgldnetCall call{};
  call.plan = &p, call.parameters = parameters.data(), call.packed = packed.get(), call.tables = tables.get();
  call.workspace = workspace.get(), call.logits = logits.mutable_data(), call.features = features.mutable_data();
  call.image = {image.data(), image.strides(0) / size, image.strides(1) / size, image.strides(2) / size, bytes};

  py::dict maps;
  std::mt19937 random(order);
  for (int phase = 0; phase < p.phases; ++phase)
    for (int stage = 0; stage < kLgldnetStages; ++stage) {
      if (p.stages[stage].phase != phase) continue;
      std::vector<int64_t> tasks(static_cast<size_t>(p.stages[stage].tasks));
      for (size_t t = 0; t < tasks.size(); ++t) tasks[t] = static_cast<int64_t>(t);
      if (order == 1) std::reverse(tasks.begin(), tasks.end());
      if (order > 1) std::shuffle(tasks.begin(), tasks.end(), random);
      for (int64_t t : tasks) kernels.run(call, stage, t, scratch.get());
      if (stage == kWideContext) maps["wide_context"] = plain(p, workspace.get(), context_pixel);
    }
  maps["local_stem"] = plain(p, workspace.get(), stem_pixel);
  maps["global_stem"] = plain(p, workspace.get(), mixer_pixel);
  maps["context"] = plain(p, workspace.get(), context_pixel);
  maps["local_features"] = plain(p, workspace.get(), local_pixel);
  maps["local_factor"] = row(workspace.get() + p.blend, channels);
  maps["context_factor"] = row(workspace.get() + p.blend + p.padded, channels);
  maps["features"] = features;
  maps["logits"] = logits;
  return maps;
}

// SiLU as the stages compute it.
Floats silu(const std::string& variant, const Floats x) {
  const LgldnetKernels& kernels = *variant_named(variant).lgldnet;
  const int64_t vectors = (x.size() + kernels.vectors.lanes - 1) / kernels.vectors.lanes;
  const Buffer buffer = aligned(vectors * kernels.vectors.lanes);
  std::copy(x.data(), x.data() + x.size(), buffer.get());
  kernels.silu(buffer.get(), vectors);
  return row(buffer.get(), x.size());
}

}  // namespace

void define_lgldnet(py::module_& m) {
  m.def("lgldnet_silu", &silu, py::arg("variant"), py::arg("x").noconvert(), "SiLU as the network's stages compute it");
  m.def("lgldnet", &run, py::arg("variant"), py::arg("image"), py::arg("parameters"), py::arg("channels"), py::arg("classes"),
        py::arg("order") = 0u, "Every map of the network for one image [in_channels, height, width]");
}

}  // namespace lgld
