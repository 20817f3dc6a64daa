// The whole network in every variant that this machine runs, with every buffer against a forbidden page: equal to the scalar
// variant up to rounding, to the last bit in any order of the tasks and on a second image after a first.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "checks.h"
#include "guarded.h"
#include "signals.h"
#include "variants.h"

namespace lgld::test {
namespace {

using Values = std::vector<float>;

std::string describe(const LgldnetGeometry& g) {
  return "image [" + std::to_string(g.in_channels) + "," + std::to_string(g.height) + "," + std::to_string(g.width) +
         "] channels " + std::to_string(g.channels) + " classes " + std::to_string(g.classes);
}

Values random_parameters(const LgldnetGeometry& g, Random& random) {
  const LgldnetParameters at = lgldnet_parameters(g.in_channels, g.channels, g.classes);
  std::normal_distribution<float> normal(0.0f, 0.2f);
  Values p(static_cast<size_t>(at.count));
  for (float& v : p) v = normal(random);
  for (int64_t norm : {at.local_norm, at.global_norm, at.head_norm})  // variances
    for (int64_t c = 0; c < g.channels; ++c) p[static_cast<size_t>(norm + 3 * g.channels + c)] = 0.5f + 0.01f * c;
  for (int64_t k = 0; k < 3; ++k) p[static_cast<size_t>(at.eps + k)] = 1e-5f;
  return p;
}

struct Result {
  Values logits, features;
};

float* floats(const Guarded& g) { return static_cast<float*>(g.data()); }

// One network with all its memory; `end` says against which page.
class Network {
 public:
  Network(const CpuVariant& variant, const LgldnetGeometry& g, const Values& parameters, Against end)
      : kernels_(*variant.lgldnet),
        plan_(lgldnet_plan(g, kernels_.vectors, kernels_.pixel_block)),
        parameters_(parameters.size() * 4, 4, end),
        packed_(bytes(plan_.packed.count), 64, end),
        tables_(bytes(plan_.tables), 64, end),
        workspace_(bytes(plan_.workspace), 64, end),
        scratch_(bytes(plan_.scratch), 64, end),
        logits_(bytes(g.classes), 4, end),
        features_(bytes(g.channels), 4, end) {
    std::memcpy(parameters_.data(), parameters.data(), parameters.size() * 4);
    std::vector<double> fold(static_cast<size_t>(lgldnet_fold_scratch(g)));
    lgldnet_fold(g, kernels_.vectors, floats(parameters_), fold.data(), floats(packed_));
    lgldnet_tables(plan_, floats(parameters_), floats(tables_));
    std::memset(workspace_.data(), 0, bytes(plan_.workspace));
  }

  const LgldnetPlan& plan() const { return plan_; }

  Result run(const LgldnetImage& image, Random* order) {
    LgldnetCall call{};
    call.plan = &plan_, call.parameters = floats(parameters_), call.packed = floats(packed_), call.tables = floats(tables_);
    call.workspace = floats(workspace_), call.image = image, call.logits = floats(logits_), call.features = floats(features_);
    for (int phase = 0; phase < plan_.phases; ++phase) {
      std::vector<std::pair<int, int64_t>> tasks;
      for (int stage = 0; stage < kLgldnetStages; ++stage)
        for (int64_t t = 0; plan_.stages[stage].phase == phase && t < plan_.stages[stage].tasks; ++t)
          tasks.emplace_back(stage, t);
      if (order != nullptr) std::shuffle(tasks.begin(), tasks.end(), *order);
      for (const auto& [stage, task] : tasks) {
        fill_with_signals<float>(scratch_, bytes(plan_.scratch));  // nothing may be left over from another task
        kernels_.run(call, stage, task, floats(scratch_));
        if (signalled()) ++signals_[stage];
      }
    }
    const LgldnetGeometry& g = plan_.geometry;
    return {Values(floats(logits_), floats(logits_) + g.classes), Values(floats(features_), floats(features_) + g.channels)};
  }

  // Tasks of each stage that computed with scratch memory that was not written.
  const std::array<int64_t, kLgldnetStages>& signals() const { return signals_; }

  bool intact() const {
    for (const Guarded* g : {&parameters_, &packed_, &tables_, &workspace_, &scratch_, &logits_, &features_})
      if (!g->intact()) return false;
    return true;
  }

 private:
  static size_t bytes(int64_t count) { return static_cast<size_t>(count) * 4; }
  const LgldnetKernels& kernels_;
  LgldnetPlan plan_;
  std::array<int64_t, kLgldnetStages> signals_{};
  Guarded parameters_, packed_, tables_, workspace_, scratch_, logits_, features_;
};

// Largest difference over the largest value.
double difference(const Values& a, const Values& b) {
  double most = 0.0, scale = 1e-30;
  for (size_t k = 0; k < a.size(); ++k) {
    if (!(std::fabs(a[k] - b[k]) <= most)) most = std::fabs(a[k] - b[k]);
    scale = std::max(scale, static_cast<double>(std::fabs(b[k])));
  }
  return most / scale;
}

bool same_bits(const Result& a, const Result& b) {
  return std::memcmp(a.logits.data(), b.logits.data(), a.logits.size() * 4) == 0 &&
         std::memcmp(a.features.data(), b.features.data(), a.features.size() * 4) == 0;
}

void test_geometry(const LgldnetGeometry& g, Random& random) {
  const Values parameters = random_parameters(g, random);
  const int64_t pixels = g.in_channels * g.height * g.width;
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  int count = 0;
  const CpuVariant* variants = cpu_variants(&count);
  for (const Against end : {Against::kStart, Against::kEnd}) {
    // Rows first, then columns, then channels: the strides of channels-last images.
    const bool last = pick(random, 0, 1) == 1, as_bytes = pick(random, 0, 2) == 0;
    const Guarded memory(static_cast<size_t>(pixels * (as_bytes ? 1 : 4)), 4, end);
    for (int64_t k = 0; k < pixels; ++k) {
      if (as_bytes) {
        static_cast<uint8_t*>(memory.data())[k] = static_cast<uint8_t>(pick(random, 0, 255));
      } else {
        floats(memory)[k] = uniform(random);
      }
    }
    const LgldnetImage image = last ? LgldnetImage{memory.data(), 1, g.width * g.in_channels, g.in_channels, as_bytes}
                                    : LgldnetImage{memory.data(), g.height * g.width, g.width, 1, as_bytes};
    std::unique_ptr<Result> expected;
    for (int v = count - 1; v >= 0; --v) {  // the scalar variant is the last
      if (!variants[v].supported()) continue;
      const std::string name =
          std::string(variants[v].name) + " " + describe(g) + (end == Against::kStart ? " at the start" : " at the end");
      running(name.c_str());
      Network network(variants[v], g, parameters, end);
      const Result result = network.run(image, nullptr);
      check(same_bits(network.run(image, &random), result), name + ": another order of tasks, in used memory, changed bits");
      check(network.intact(), name + ": memory beside a buffer was written");
      for (int stage = 0; stage < kLgldnetStages; ++stage)
        check(network.signals()[static_cast<size_t>(stage)] == 0,
              name + ": arithmetic on scratch memory that was not written, in stage " + std::to_string(stage));
      if (expected == nullptr) {
        expected = std::make_unique<Result>(result);
        for (float value : result.logits) check(std::isfinite(value), name + ": a logit is not finite");
        continue;
      }
      check(difference(result.features, expected->features) < 5e-6, name + ": features differ from the scalar variant's");
      check(difference(result.logits, expected->logits) < 2e-5, name + ": logits differ from the scalar variant's");
    }
  }
}

int run(uint64_t seed, int random_networks) {
  report_faults();
  Random random(seed);
  std::vector<LgldnetGeometry> geometries = {
      {3, 64, 4, 32, 48}, {1, 4, 1, 1, 1},   {3, 8, 2, 1, 37},   {3, 16, 3, 35, 1},
      {2, 12, 4, 2, 2},   {4, 68, 5, 9, 14}, {3, 20, 4, 17, 70},
  };
  for (int k = 0; k < random_networks; ++k)
    geometries.push_back(
        {pick(random, 1, 4), 4 * pick(random, 1, 18), pick(random, 1, 6), pick(random, 1, 40), pick(random, 1, 40)});
  for (const LgldnetGeometry& g : geometries) test_geometry(g, random);
  std::printf("%zu networks, seed %llu\n", geometries.size(), static_cast<unsigned long long>(seed));
  return verdict();
}

}  // namespace
}  // namespace lgld::test

// lgld_lgldnet_tests [SEED [RANDOM_NETWORKS]]
int main(int argc, char** argv) {
  return lgld::test::run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20261121, argc > 2 ? std::atoi(argv[2]) : 30);
}
