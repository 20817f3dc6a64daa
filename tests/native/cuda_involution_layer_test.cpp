// The fused involution layer's CUDA kernels, run on the host (cuda_emulation/emulation.h), against its definition in double.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "cuda_emulation/emulation.h"
#include "kernels/cuda/involution_layer/index.h"
#include "kernels/cuda/involution_layer/involution_layer.h"
#include "maps.h"

namespace lgld::test {
namespace {

struct Sizes {
  int64_t batch, channels, hidden, height, width, kernel;
};

template <class E>
struct Vector {
  Guarded memory;
  Doubles values;

  Vector(int64_t count, Random& random, double scale)
      : memory(static_cast<size_t>(count) * sizeof(E), sizeof(E), Against::kEnd) {
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < count; ++i) {
      E& e = static_cast<E*>(memory.data())[i];
      assign(e, scale * normal(random));
      values.push_back(value_of(e));
    }
  }
};

template <class E>
struct Parameters {
  Vector<E> hidden_weight, hidden_bias, span_weight, span_bias;

  Parameters(const Sizes& s, Random& random)
      : hidden_weight(s.hidden * s.channels, random, 1 / std::sqrt(static_cast<double>(s.channels))),
        hidden_bias(s.hidden, random, 1),
        span_weight(s.kernel * s.kernel * s.hidden, random, 1),
        span_bias(s.kernel * s.kernel, random, 1) {}
};

template <class E>
cuda::InvolutionLayerParams parameters_of(const Sizes& s, Dtype dtype, const Map<E>& x, const Parameters<E>& w) {
  const auto in = x.out();
  return {s.batch,
          s.channels,
          s.hidden,
          s.height,
          s.width,
          s.kernel,
          dtype,
          {in.data, in.batch, in.channel, in.row, in.column},
          {},
          w.hidden_weight.memory.data(),
          w.hidden_bias.memory.data(),
          w.span_weight.memory.data(),
          w.span_bias.memory.data()};
}

template <class E>
Map<E> random_map(const Sizes& s, Layout layout, Against end, uint64_t seed) {
  Map<E> m(s.batch, s.channels, s.height, s.width, layout, end);
  Random values(seed);
  std::normal_distribution<double> normal;
  m.each([&](E& e, int64_t, int64_t, int64_t, int64_t) { assign(e, normal(values)); });
  return m;
}

// The layer's definition, and its derivatives', in double.
struct Exact {
  Doubles y, grad_x, hidden_weight, hidden_bias, span_weight, span_bias;

  template <class E>
  Exact(const Sizes& s, const Map<E>& x, const Map<E>& grad_y, const Parameters<E>& w)
      : y(size(s.batch * s.channels * s.height * s.width)),
        grad_x(y.size()),
        hidden_weight(size(s.hidden * s.channels)),
        hidden_bias(size(s.hidden)),
        span_weight(size(s.kernel * s.kernel * s.hidden)),
        span_bias(size(s.kernel * s.kernel)) {
    const int64_t taps = s.kernel * s.kernel, reach = s.kernel / 2;
    const auto at = [&](int64_t b, int64_t c, int64_t i, int64_t j) {
      return ((b * s.channels + c) * s.height + i) * s.width + j;
    };
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t i = 0; i < s.height; ++i)
        for (int64_t j = 0; j < s.width; ++j) {
          Doubles u = w.hidden_bias.values, h, k = w.span_bias.values, grad_k(size(taps));
          for (int64_t d = 0; d < s.hidden; ++d) {
            for (int64_t c = 0; c < s.channels; ++c)
              u[d] += w.hidden_weight.values[d * s.channels + c] * value_of(x.at(b, c, i, j));
            h.push_back(u[d] / (1 + std::exp(-u[d])));
          }
          for (int64_t t = 0; t < taps; ++t) {
            for (int64_t d = 0; d < s.hidden; ++d) k[t] += w.span_weight.values[t * s.hidden + d] * h[d];
            const int64_t row = i + t / s.kernel - reach, column = j + t % s.kernel - reach;
            if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
            for (int64_t c = 0; c < s.channels; ++c) {
              const double value = value_of(x.at(b, c, row, column)), grad = value_of(grad_y.at(b, c, i, j));
              y[at(b, c, i, j)] += k[t] * value;
              grad_x[at(b, c, row, column)] += k[t] * grad;
              grad_k[t] += grad * value;
            }
          }
          for (int64_t t = 0; t < taps; ++t) {
            span_bias[t] += grad_k[t];
            for (int64_t d = 0; d < s.hidden; ++d) span_weight[t * s.hidden + d] += grad_k[t] * h[d];
          }
          for (int64_t d = 0; d < s.hidden; ++d) {
            double grad_h = 0;
            for (int64_t t = 0; t < taps; ++t) grad_h += w.span_weight.values[t * s.hidden + d] * grad_k[t];
            const double q = 1 / (1 + std::exp(-u[d]));
            grad_h *= q + u[d] * q * (1 - q);
            hidden_bias[d] += grad_h;
            for (int64_t c = 0; c < s.channels; ++c) {
              hidden_weight[d * s.channels + c] += grad_h * value_of(x.at(b, c, i, j));
              grad_x[at(b, c, i, j)] += w.hidden_weight.values[d * s.channels + c] * grad_h;
            }
          }
        }
  }

  static size_t size(int64_t n) { return static_cast<size_t>(n); }
};

// Threads in order and as many blocks as there are, then threads shuffled and one block.
void run_like(Against end) {
  emulation::set_order(end == Against::kEnd ? emulation::Order::kForward : emulation::Order::kShuffled);
  emulation::set_most_blocks(end == Against::kEnd ? 0 : 1);
}

template <class E>
void test_layer(const Sizes& s, Layout layout, Dtype dtype, double tolerance, const std::string& name, Random& random) {
  running(name.c_str());
  const Parameters<E> w(s, random);
  Doubles first;
  for (const Against end : {Against::kEnd, Against::kStart}) {
    const Map<E> x = random_map<E>(s, layout, end, 3), y(s.batch, s.channels, s.height, s.width, layout, end);
    const auto out = y.out();
    cuda::InvolutionLayerParams p = parameters_of(s, dtype, x, w);
    p.y = {out.data, out.batch, out.channel, out.row, out.column};
    run_like(end);
    check(cuda::involution_layer(p, nullptr) == cudaSuccess, name + ": the launch");
    check(y.intact(), name + ": memory beside the result was written");
    if (end == Against::kStart) {
      check(same_bits(y.values(), first), name + ": another order of the threads, or one block, changed bits");
      return;
    }
    first = y.values();
    check_close(first, Exact(s, x, x, w).y, tolerance, name);
  }
}

template <class E>
void test_backward(const Sizes& s, Layout layout, Dtype dtype, double tolerance, const std::string& name, Random& random) {
  running(name.c_str());
  const Parameters<E> w(s, random);
  std::vector<Doubles> first;
  for (const Against end : {Against::kEnd, Against::kStart}) {
    // x, grad_y and grad_x each in a layout of their own.
    const bool plain = layout == Layout::kContiguous;
    const Map<E> x = random_map<E>(s, layout, end, 3);
    const Map<E> grad_y = random_map<E>(s, plain ? Layout::kWiderRows : Layout::kContiguous, end, 4);
    const Map<E> grad_x(s.batch, s.channels, s.height, s.width, plain ? Layout::kContiguous : Layout::kChannelsLast, end);
    const auto grad = grad_y.out(), to = grad_x.out();
    const auto vector = [&](int64_t count) { return Map<E>(1, 1, 1, count, Layout::kContiguous, end); };
    const int64_t taps = s.kernel * s.kernel;
    const Map<E> hidden_weight = vector(s.hidden * s.channels), hidden_bias = vector(s.hidden),
                 span_weight = vector(taps * s.hidden), span_bias = vector(taps);
    const cuda::InvolutionLayerParams p = parameters_of(s, dtype, x, w);
    const Guarded workspace(static_cast<size_t>(cuda::involution_layer_backward_workspace(p)), 16, end);
    const cuda::ConstMap grad_map{grad.data, grad.batch, grad.channel, grad.row, grad.column};
    cuda::InvolutionLayerGradients g{{to.data, to.batch, to.channel, to.row, to.column},
                                     hidden_weight.out().data,
                                     hidden_bias.out().data,
                                     span_weight.out().data,
                                     span_bias.out().data};
    run_like(end);
    const auto gradients = [&] {
      return std::vector<Doubles>{hidden_weight.values(), hidden_bias.values(), span_weight.values(), span_bias.values(),
                                  grad_x.values()};
    };
    check(cuda::involution_layer_backward(p, grad_map, g, workspace.data(), nullptr) == cudaSuccess, name + ": the launch");
    const std::vector<Doubles> got = gradients();
    bool intact = grad_x.intact() && workspace.intact(), same = true;
    for (const Map<E>* m : {&hidden_weight, &hidden_bias, &span_weight, &span_bias}) intact = intact && m->intact();
    check(intact, name + ": memory beside a result was written");
    if (end == Against::kStart) {
      for (size_t n = 0; n < got.size(); ++n) same = same && same_bits(got[n], first[n]);
      check(same, name + ": another order of the threads, or one block, changed bits");
      // Without grad_x the others are the same, and it is left alone.
      g.x.data = nullptr;
      check(cuda::involution_layer_backward(p, grad_map, g, workspace.data(), nullptr) == cudaSuccess, name + ": the rest");
      const std::vector<Doubles> rest = gradients();
      for (size_t n = 0; n < got.size(); ++n) same = same && same_bits(got[n], rest[n]);
      check(same, name + ": leaving grad_x out changed bits");
      return;
    }
    first = got;
    const Exact exact(s, x, grad_y, w);
    check_close(got[0], exact.hidden_weight, tolerance, name + " hidden_weight");
    check_close(got[1], exact.hidden_bias, tolerance, name + " hidden_bias");
    check_close(got[2], exact.span_weight, tolerance, name + " span_weight");
    check_close(got[3], exact.span_bias, tolerance, name + " span_bias");
    check_close(got[4], exact.grad_x, tolerance, name + " grad_x");
  }
}

// A span_bias that is infinite makes kernels infinite on the pixels around the image too, which are no pixels: grad_x is finite
// wherever the tap that has it leads to one of those.
template <int64_t K>
void test_border() {
  running("border");
  Random random(5);
  const Sizes s{1, 3, 2, 10, 19, K};
  const Parameters<float> w(s, random);
  static_cast<float*>(w.span_bias.memory.data())[0] = std::numeric_limits<float>::infinity();
  const Map<float> x = random_map<float>(s, Layout::kContiguous, Against::kEnd, 3);
  const Map<float> grad_y = random_map<float>(s, Layout::kContiguous, Against::kEnd, 4);
  const Map<float> grad_x(1, s.channels, s.height, s.width, Layout::kContiguous, Against::kEnd);
  const cuda::InvolutionLayerParams p = parameters_of(s, Dtype::kFloat32, x, w);
  std::vector<float> rest(static_cast<size_t>(K * K * (s.hidden + 1) + s.hidden * (s.channels + 1)));
  float* const room = rest.data();
  const Guarded workspace(static_cast<size_t>(cuda::involution_layer_backward_workspace(p)), 16, Against::kEnd);
  const auto grad = grad_y.out(), to = grad_x.out();
  run_like(Against::kEnd);
  check(cuda::involution_layer_backward(p, {grad.data, grad.batch, grad.channel, grad.row, grad.column},
                                        {{to.data, to.batch, to.channel, to.row, to.column},
                                         room,
                                         room + s.hidden * s.channels,
                                         room + s.hidden * (s.channels + 1),
                                         room + s.hidden * (s.channels + 1) + K * K * s.hidden},
                                        workspace.data(), nullptr) == cudaSuccess,
        "border: the launch");
  bool right = true;
  // Tap 0 of the pixel K / 2 rows and columns behind is the one that reads a pixel.
  grad_x.each([&](float& e, int64_t, int64_t, int64_t i, int64_t j) {
    const bool reached = i + K / 2 < s.height && j + K / 2 < s.width;
    right = right && (reached ? std::isinf(e) : std::isfinite(e));
  });
  check(right, "an infinite kernel beyond the border, K " + std::to_string(K));
}

// Every pixel has one thread, and a thread's taps lead to the pixels whose kernels reach its own.
template <class Tiles>
void test_tiles(const Sizes& s) {
  const Tiles tiles(s.batch, s.height, s.width);
  std::vector<int> seen(static_cast<size_t>(s.batch * s.height * s.width), 0);
  for (int64_t unit = 0; unit < tiles.units; ++unit)
    for (int thread = 0; thread < Tiles::kThreads; ++thread) {
      const auto at = tiles.at(unit, thread);
      if (at.row < s.height && at.column < s.width) ++seen[(at.image * s.height + at.row) * s.width + at.column];
    }
  check(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }), "tiles");
}

template <int K>
void test_halo() {
  using Around = cuda::Halo<K>;
  const cuda::BackwardTiles tiles(1, cuda::BackwardTiles::kRows, cuda::BackwardTiles::kColumns);
  bool right = true;
  for (int thread = 0; thread < cuda::BackwardTiles::kThreads; ++thread)
    for (int tap = 0; tap < K * K; ++tap) {
      const int number = Around::reading(thread, tap);
      const auto at = tiles.at(0, thread);
      right = right && number >= 0 && number < Around::kPixels && Around::row(number) + tap / K - K / 2 == at.row &&
              Around::column(number) + tap % K - K / 2 == at.column;
    }
  check(right, "a tap's pixel, K " + std::to_string(K));
}

void test_plans() {
  for (const int64_t hidden : {1, 16, 17, 4096}) {
    const auto plan = cuda::plan_backward(64, 1000000, hidden, 1, 1, 49, hidden <= 16);
    check(plan.tasks >= 1 && plan.tasks <= plan.units && plan.record == hidden * 1000001 + 49 * (hidden + 1), "a plan");
    check(plan.tasks == 1 || plan.tasks * (plan.record + plan.scratch) <= cuda::kMostPartial, "a plan's memory");
  }
}

int run(uint64_t seed) {
  report_faults();
  Random random(seed);
  const std::vector<Sizes> all = {{1, 4, 1, 1, 1, 3},   {2, 8, 2, 5, 33, 3}, {1, 64, 16, 9, 40, 3}, {1, 34, 17, 7, 6, 5},
                                  {2, 5, 33, 3, 65, 7}, {3, 3, 3, 6, 2, 7},  {1, 70, 20, 4, 32, 3}};
  int number = 0;
  for (const Sizes& s : all) {
    test_tiles<cuda::LayerTiles>(s), test_tiles<cuda::BackwardTiles>(s);
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kWiderRows}) {
      const std::string name = "layer " + std::to_string(number++);
      // Sums of up to 70 products, then of 49 of those; 2^-11 and 2^-8 are half a unit of the stored types.
      test_layer<float>(s, layout, Dtype::kFloat32, 4e-6, name + " float32", random);
      test_layer<double>(s, layout, Dtype::kFloat64, 1e-14, name + " float64", random);
      test_layer<Float16>(s, layout, Dtype::kFloat16, 4e-6 + 0x1p-11, name + " float16", random);
      test_layer<BFloat16>(s, layout, Dtype::kBFloat16, 4e-6 + 0x1p-8, name + " bfloat16", random);
      if (layout == Layout::kChannelsLast) continue;
      // Sums over up to 720 pixels of those.
      test_backward<float>(s, layout, Dtype::kFloat32, 4e-6, name + " backward float32", random);
      test_backward<double>(s, layout, Dtype::kFloat64, 1e-14, name + " backward float64", random);
      test_backward<Float16>(s, layout, Dtype::kFloat16, 4e-6 + 0x1p-11, name + " backward float16", random);
      test_backward<BFloat16>(s, layout, Dtype::kBFloat16, 4e-6 + 0x1p-8, name + " backward bfloat16", random);
    }
  }
  // More tiles than tasks. The one tap that has a sum is 2000 products of either sign, which cancel.
  test_backward<float>({cuda::kMostTasks + 3, 2, 1, 1, 1, 3}, Layout::kContiguous, Dtype::kFloat32, 4e-5, "many images",
                       random);
  test_halo<3>(), test_halo<5>(), test_halo<7>(), test_plans();
  test_border<3>(), test_border<5>(), test_border<7>();
  return verdict();
}

}  // namespace
}  // namespace lgld::test

int main(int argc, char** argv) { return lgld::test::run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20261121); }
