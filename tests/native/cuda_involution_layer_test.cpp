// The fused involution layer's CUDA kernel, run on the host (cuda_emulation/emulation.h), against its definition in double.
#include <cmath>
#include <cstdio>
#include <cstdlib>
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
void test_layer(const Sizes& s, Layout layout, Dtype dtype, double tolerance, const std::string& name, Random& random) {
  running(name.c_str());
  const int64_t taps = s.kernel * s.kernel, reach = s.kernel / 2;
  const double scale = 1 / std::sqrt(static_cast<double>(s.channels));
  const Vector<E> hidden_weight(s.hidden * s.channels, random, scale), hidden_bias(s.hidden, random, 1),
      span_weight(taps * s.hidden, random, 1), span_bias(taps, random, 1);
  Doubles first;
  for (const Against end : {Against::kEnd, Against::kStart}) {
    const Map<E> x(s.batch, s.channels, s.height, s.width, layout, end), y(s.batch, s.channels, s.height, s.width, layout, end);
    Random values(3);
    std::normal_distribution<double> normal;
    x.each([&](E& e, int64_t, int64_t, int64_t, int64_t) { assign(e, normal(values)); });
    const auto in = x.out(), out = y.out();
    const cuda::InvolutionLayerParams p{s.batch,
                                        s.channels,
                                        s.hidden,
                                        s.height,
                                        s.width,
                                        s.kernel,
                                        dtype,
                                        {in.data, in.batch, in.channel, in.row, in.column},
                                        {out.data, out.batch, out.channel, out.row, out.column},
                                        hidden_weight.memory.data(),
                                        hidden_bias.memory.data(),
                                        span_weight.memory.data(),
                                        span_bias.memory.data()};
    emulation::set_order(end == Against::kEnd ? emulation::Order::kForward : emulation::Order::kShuffled);
    emulation::set_most_blocks(end == Against::kEnd ? 0 : 1);
    check(cuda::involution_layer(p, nullptr) == cudaSuccess, name + ": the launch");
    check(y.intact(), name + ": memory beside the result was written");
    if (end == Against::kStart) {
      check(same_bits(y.values(), first), name + ": another order of the threads, or one block, changed bits");
      return;
    }
    first = y.values();
    Doubles exact;
    for (int64_t b = 0; b < s.batch; ++b) {
      Doubles map(static_cast<size_t>(taps * s.height * s.width));
      for (int64_t i = 0; i < s.height; ++i)
        for (int64_t j = 0; j < s.width; ++j) {
          Doubles h = hidden_bias.values;
          for (int64_t d = 0; d < s.hidden; ++d) {
            for (int64_t c = 0; c < s.channels; ++c)
              h[d] += hidden_weight.values[d * s.channels + c] * value_of(x.at(b, c, i, j));
            h[d] /= 1 + std::exp(-h[d]);
          }
          for (int64_t t = 0; t < taps; ++t) {
            double sum = span_bias.values[t];
            for (int64_t d = 0; d < s.hidden; ++d) sum += span_weight.values[t * s.hidden + d] * h[d];
            map[(t * s.height + i) * s.width + j] = sum;
          }
        }
      for (int64_t c = 0; c < s.channels; ++c)
        for (int64_t i = 0; i < s.height; ++i)
          for (int64_t j = 0; j < s.width; ++j) {
            double sum = 0;
            for (int64_t t = 0; t < taps; ++t) {
              const int64_t row = i + t / s.kernel - reach, column = j + t % s.kernel - reach;
              if (row >= 0 && row < s.height && column >= 0 && column < s.width)
                sum += map[(t * s.height + i) * s.width + j] * value_of(x.at(b, c, row, column));
            }
            exact.push_back(sum);
          }
    }
    check_close(first, exact, tolerance, name);
  }
}

int run(uint64_t seed) {
  report_faults();
  Random random(seed);
  const std::vector<Sizes> all = {{1, 4, 1, 1, 1, 3},   {2, 8, 2, 5, 33, 3}, {1, 64, 16, 9, 40, 3}, {1, 34, 17, 7, 6, 5},
                                  {2, 5, 33, 3, 65, 7}, {3, 3, 3, 6, 2, 7},  {1, 70, 20, 4, 32, 3}};
  int number = 0;
  for (const Sizes& s : all) {
    const cuda::LayerTiles tiles = cuda::layer_tiles(s.batch, s.height, s.width);
    std::vector<int> seen(static_cast<size_t>(s.batch * s.height * s.width), 0);
    for (int64_t unit = 0; unit < tiles.units; ++unit)
      for (int thread = 0; thread < cuda::LayerTiles::kThreads; ++thread) {
        const auto at = tiles.at(unit, thread);
        if (at.row < s.height && at.column < s.width) ++seen[(at.image * s.height + at.row) * s.width + at.column];
      }
    check(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }), "tiles");
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kWiderRows}) {
      const std::string name = "layer " + std::to_string(number++);
      // Sums of up to 70 products, then of 49 of those; 2^-11 and 2^-8 are half a unit of the stored types.
      test_layer<float>(s, layout, Dtype::kFloat32, 4e-6, name + " float32", random);
      test_layer<double>(s, layout, Dtype::kFloat64, 1e-14, name + " float64", random);
      test_layer<Float16>(s, layout, Dtype::kFloat16, 4e-6 + 0x1p-11, name + " float16", random);
      test_layer<BFloat16>(s, layout, Dtype::kBFloat16, 4e-6 + 0x1p-8, name + " bfloat16", random);
    }
  }
  return verdict();
}

}  // namespace
}  // namespace lgld::test

int main(int argc, char** argv) { return lgld::test::run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20261121); }
