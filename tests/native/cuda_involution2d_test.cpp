// Involution's CUDA kernels, run on the host (cuda_emulation/emulation.h), against the sums that define forward and gradients,
// in double. Tensors stand against forbidden pages and start as NaN; two orders of a block's threads give the same bits.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda_emulation/emulation.h"
#include "kernels/cuda/involution2d/involution2d.h"
#include "maps.h"

namespace lgld::test {
namespace {

template <class E>
cuda::Map out(const Map<E>& m) {
  const Strided<E> s = m.out();
  return {s.data, s.batch, s.channel, s.row, s.column};
}

template <class E>
cuda::ConstMap in(const Map<E>& m) {
  const Strided<E> s = m.out();
  return {s.data, s.batch, s.channel, s.row, s.column};
}

struct Results {
  Doubles y, grad_x, grad_weight;
};

template <class E>
Results exact_results(const Involution2dShape& s, const Map<E>& x, const Map<E>& weight, const Map<E>& grad) {
  const int64_t taps = s.taps();
  Results e;
  e.y.assign(static_cast<size_t>(s.batch * s.channels * s.out_height * s.out_width), 0.0);
  e.grad_x.assign(static_cast<size_t>(s.batch * s.channels * s.height * s.width), 0.0);
  e.grad_weight.assign(static_cast<size_t>(s.batch * s.groups * taps * s.out_height * s.out_width), 0.0);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t c = 0; c < s.channels; ++c)
      for (int64_t i = 0; i < s.out_height; ++i)
        for (int64_t j = 0; j < s.out_width; ++j)
          for (int64_t t = 0; t < taps; ++t) {
            const int64_t row = i * s.stride_h - s.pad_h + t / s.kernel_w * s.dilation_h;
            const int64_t column = j * s.stride_w - s.pad_w + t % s.kernel_w * s.dilation_w;
            if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
            const int64_t map = c / s.group_channels() * taps + t;
            const double w = value_of(weight.at(b, map, i, j)), v = value_of(x.at(b, c, row, column));
            const double g = value_of(grad.at(b, c, i, j));
            e.y[((b * s.channels + c) * s.out_height + i) * s.out_width + j] += w * v;
            e.grad_x[((b * s.channels + c) * s.height + row) * s.width + column] += w * g;
            e.grad_weight[((b * s.groups * taps + map) * s.out_height + i) * s.out_width + j] += g * v;
          }
  return e;
}

int in_one_kernel = 0;  // pairs of gradients that one kernel computed

template <class E>
void test(const Involution2dShape& s, Layout layout, Dtype dtype, double tolerance, const std::string& name) {
  running(name.c_str());
  Results first;
  for (const Against end : {Against::kEnd, Against::kStart}) {
    emulation::set_order(end == Against::kEnd ? emulation::Order::kForward : emulation::Order::kShuffled);
    const auto x_like = [&] { return Map<E>(s.batch, s.channels, s.height, s.width, layout, end); };
    const auto y_like = [&](int64_t channels) { return Map<E>(s.batch, channels, s.out_height, s.out_width, layout, end); };
    const Map<E> x = x_like(), grad_x = x_like(), weight = y_like(s.groups * s.taps()), y = y_like(s.channels),
                 grad = y_like(s.channels), grad_weight = y_like(s.groups * s.taps());
    Random random(5);
    std::normal_distribution<double> normal;
    const auto fill = [&](E& e, int64_t, int64_t, int64_t, int64_t) { assign(e, normal(random)); };
    x.each(fill), weight.each(fill), grad.each(fill);
    cuda::Involution2dParams p{s, dtype, in(x), in(weight), out(y), nullptr};
    bool launched = cuda::involution2d(p, nullptr) == cudaSuccess;
    p.a = in(grad), p.out = out(grad_x);
    launched = launched && cuda::involution2d_grad_x(p, nullptr) == cudaSuccess;
    p.b = in(x), p.out = out(grad_weight);
    const Guarded scratch(static_cast<size_t>(cuda::involution2d_scratch_bytes(p)), 16, end);
    p.scratch = scratch.data();
    launched = launched && cuda::involution2d_grad_weight(p, nullptr) == cudaSuccess;
    check(launched, name + ": the launches");
    check(y.intact() && grad_x.intact() && grad_weight.intact() && scratch.intact(),
          name + ": memory beside a result was written");
    const Results got{y.values(), grad_x.values(), grad_weight.values()};
    cuda::Involution2dGradients both{s, dtype, in(grad), in(x), in(weight), {}, {}, nullptr};
    const Map<E> both_x = x_like(), both_weight = y_like(s.groups * s.taps());
    both.grad_x = out(both_x), both.grad_weight = out(both_weight);
    const bool has = cuda::has_involution2d_gradients(s, dtype);
    const bool wanted = s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == 1 && s.dilation_h == 1 && s.pad_h == 1 &&
                        s.pad_w == 1 && sizeof(E) < 8;
    check(has == wanted, name + ": whether both gradients have a kernel");
    const Guarded both_scratch(static_cast<size_t>(cuda::involution2d_gradients_scratch_bytes(both)), 16, end);
    both.scratch = both_scratch.data();
    const bool in_one = cuda::involution2d_gradients(both, nullptr) == cudaSuccess;
    // Other layouts are dense NCHW, too, where what they tell apart has one element.
    check(layout == Layout::kContiguous ? in_one == has : has || !in_one, name + ": the launch of both gradients");
    if (in_one) {
      ++in_one_kernel;
      check(both_x.intact() && both_weight.intact() && both_scratch.intact(),
            name + ": memory beside both gradients was written");
      // The same products in the same order as the kernels of one gradient: of grad_x always, of grad_weight where both split
      // the channels alike.
      check(same_bits(both_x.values(), got.grad_x), name + ": grad_x of both differs from grad_x");
      const Results exact = exact_results(s, x, weight, grad);
      check_close(both_weight.values(), exact.grad_weight, tolerance, name + " grad_weight of both");
    }
    if (end == Against::kStart) {
      check(same_bits(got.y, first.y) && same_bits(got.grad_x, first.grad_x) && same_bits(got.grad_weight, first.grad_weight),
            name + ": another order of the threads changed bits");
      return;
    }
    first = got;
    const Results exact = exact_results(s, x, weight, grad);
    check_close(got.y, exact.y, tolerance, name + " y");
    check_close(got.grad_x, exact.grad_x, tolerance, name + " grad_x");
    check_close(got.grad_weight, exact.grad_weight, tolerance, name + " grad_weight");
  }
}

// Windows with and without kernels of their own, narrow and wide maps, few and many channels, any padding that leaves an
// output.
Involution2dShape random_shape(Random& random) {
  const auto draw = [&](int64_t least, int64_t most) { return least + static_cast<int64_t>(random() % (most - least + 1)); };
  Involution2dShape s{};
  s.batch = draw(1, 3), s.groups = draw(1, 3);
  s.channels = s.groups * (random() % 3 == 0 ? 8 * draw(1, 3) : random() % 5 == 0 ? draw(40, 79) : draw(1, 9));
  constexpr int64_t kKernels[] = {3, 5, 7, 3, 3, 2};
  s.kernel_h = s.kernel_w = kKernels[random() % 6];
  const bool general = random() % 4 == 0;
  s.stride_h = s.stride_w = draw(1, 2), s.dilation_h = s.dilation_w = general ? draw(1, 2) : 1;
  s.pad_h = random() % 3 == 0 ? draw(0, 4) : s.kernel_h / 2, s.pad_w = random() % 3 == 0 ? draw(0, 4) : s.kernel_w / 2;
  const int64_t reach = (s.kernel_h - 1) * s.dilation_h + 1;
  s.height = std::max<int64_t>(1, reach - 2 * s.pad_h) + draw(0, 19);
  s.width = std::max<int64_t>(1, reach - 2 * s.pad_w) + (random() % 4 == 0 ? draw(100, 159) : draw(0, 39));
  if (random() % 2) s.width = (s.width + 7) / 8 * 8;
  s.out_height = (s.height + 2 * s.pad_h - reach) / s.stride_h + 1;
  s.out_width = (s.width + 2 * s.pad_w - reach) / s.stride_w + 1;
  return s;
}

// Those that both gradients have one kernel for: narrow and wide, channels in slices, and so many images that a block has
// several side by side.
std::vector<Involution2dShape> same_shapes() {
  const auto same = [](int64_t batch, int64_t channels, int64_t groups, int64_t height, int64_t width) {
    return Involution2dShape{batch, channels, groups, height, width, height, width, 3, 3, 1, 1, 1, 1, 1, 1};
  };
  return {same(2, 6, 2, 13, 17),  same(1, 5, 1, 19, 112), same(3, 40, 1, 6, 8),
          same(1, 34, 2, 3, 150), same(2, 3, 3, 1, 1),    same(800, 2, 1, 2, 3)};
}

int run(uint64_t seed, int count) {
  report_faults();
  Random random(seed);
  const std::vector<Involution2dShape> chosen = same_shapes();
  for (int k = 0; k < count + static_cast<int>(chosen.size()); ++k) {
    const bool is_chosen = k < static_cast<int>(chosen.size());
    const Involution2dShape s = is_chosen ? chosen[static_cast<size_t>(k)] : random_shape(random);
    const Layout layout =
        is_chosen ? Layout::kContiguous : static_cast<Layout>(random() % 3 == 0 ? random() % 3 : random() % 2);
    const auto text = [](int64_t v) { return std::to_string(v); };
    const std::string name = "[" + text(s.batch) + "," + text(s.channels) + "," + text(s.height) + "," + text(s.width) +
                             "] groups " + text(s.groups) + " K " + text(s.kernel_h) + " stride " + text(s.stride_h) +
                             " dilation " + text(s.dilation_h) + " padding " + text(s.pad_h) + "," + text(s.pad_w) +
                             " layout " + text(static_cast<int>(layout));
    // Sums of up to 79 products; 2^-11 and 2^-8 are half a unit of the stored types.
    test<float>(s, layout, Dtype::kFloat32, 2e-6, name + " float32");
    test<double>(s, layout, Dtype::kFloat64, 1e-14, name + " float64");
    test<Float16>(s, layout, Dtype::kFloat16, 2e-6 + 0x1p-11, name + " float16");
    test<BFloat16>(s, layout, Dtype::kBFloat16, 2e-6 + 0x1p-8, name + " bfloat16");
  }
  check(in_one_kernel >= 3 * 2 * static_cast<int>(chosen.size()), "both gradients in one kernel");
  std::printf("%d shapes, %lld launches, seed %llu\n", count, static_cast<long long>(emulation::launches()),
              static_cast<unsigned long long>(seed));
  return verdict();
}

}  // namespace
}  // namespace lgld::test

// lgld_cuda_involution2d_tests [SEED [SHAPES]]
int main(int argc, char** argv) {
  return lgld::test::run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20261121, argc > 2 ? std::atoi(argv[2]) : 24);
}
