// The CUDA involution kernels themselves, compiled for the host and run thread by thread, on every dtype and layout, behind
// guard pages, against the CPU kernel. What a GPU alone can show (asynchronous copies, warps in lockstep) is not seen here.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/cuda/involution2d/apply_bf16.cu"
#include "../../kernels/cuda/involution2d/apply_f16.cu"
#include "../../kernels/cuda/involution2d/apply_f32.cu"
#include "../../kernels/cuda/involution2d/apply_f64.cu"
#include "../../kernels/cuda/involution2d/general.cu"
#include "../../kernels/cuda/involution2d/involution2d.cu"
#include "../../kernels/cuda/involution2d/naive.cu"
#include "../../kernels/cuda/involution2d/pixels_bf16.cu"
#include "../../kernels/cuda/involution2d/pixels_f16.cu"
#include "../../kernels/cuda/involution2d/pixels_f32.cu"
#include "../../kernels/cuda/involution2d/pixels_f64.cu"
#include "../../kernels/cuda/involution2d/reduce_bf16.cu"
#include "../../kernels/cuda/involution2d/reduce_f16.cu"
#include "../../kernels/cuda/involution2d/reduce_f32.cu"
#include "../../kernels/cuda/involution2d/reduce_f64.cu"
#include "guarded.h"
#include "variants.h"

namespace lgld::test {
namespace {

using Values = std::vector<double>;
using Random = std::mt19937_64;

int passed = 0, failed = 0;

void check(bool condition, const std::string& what) {
  (condition ? passed : failed) += 1;
  if (!condition && failed <= 20) std::printf("FAILED: %s\n", what.c_str());
}

int64_t pick(Random& random, int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(random);
}

struct Size {
  int64_t n[4];
  int64_t count() const { return n[0] * n[1] * n[2] * n[3]; }
};

// A dense tensor in NCHW or channels_last order against a forbidden page.
template <class E>
struct Operand {
  Size size;
  bool channels_last;
  Guarded memory;

  Operand(const Size& s, bool last, Against end)
      : size(s), channels_last(last), memory(static_cast<size_t>(s.count()) * sizeof(E), 16, end) {}
  int64_t stride(int d) const {
    const auto& n = size.n;
    const int64_t nchw[] = {n[1] * n[2] * n[3], n[2] * n[3], n[3], 1}, last[] = {n[1] * n[2] * n[3], 1, n[3] * n[1], n[1]};
    return channels_last ? last[d] : nchw[d];
  }
  template <class F>
  void each(F f) const {
    int64_t k = 0;
    for (int64_t b = 0; b < size.n[0]; ++b)
      for (int64_t c = 0; c < size.n[1]; ++c)
        for (int64_t i = 0; i < size.n[2]; ++i)
          for (int64_t j = 0; j < size.n[3]; ++j)
            f(static_cast<E*>(memory.data())[b * stride(0) + c * stride(1) + i * stride(2) + j * stride(3)],
              static_cast<size_t>(k++));
  }
  // Writes the values, rounded to E, and makes them what was rounded to.
  void fill(Values& values) {
    each([&](E& e, size_t k) { e = cuda::narrow<E>(static_cast<cuda::Compute<E>>(values[k])), values[k] = cuda::widen(e); });
  }
  Values read() const {
    Values values(static_cast<size_t>(size.count()));
    each([&](E& e, size_t k) { values[k] = cuda::widen(e); });
    return values;
  }
  cuda::ConstMap in() const { return {memory.data(), stride(0), stride(1), stride(2), stride(3)}; }
  cuda::Map out() const { return {memory.data(), stride(0), stride(1), stride(2), stride(3)}; }
};

Values cpu(const Involution2dShape& s, Involution2dPass pass, const Values& a, const Size& a_size, const Values& b,
           const Size& b_size, const Size& size) {
  const Involution2dKernels& k = *best_cpu_variant()->involution2d;
  const Involution2dPlan plan = plan_involution2d(s, pass, k, {Dtype::kFloat64, false, true, true, true});
  const auto view = [](auto* data, const Size& n) {
    return Strided<std::remove_reference_t<decltype(*data)>>{data, n.n[1] * n.n[2] * n.n[3], n.n[2] * n.n[3], n.n[3], 1};
  };
  Values out(static_cast<size_t>(size.count()));
  const std::unique_ptr<void, void (*)(void*)> scratch(
      std::aligned_alloc(64, static_cast<size_t>((plan.scratch_bytes + 63) / 64 * 64)), std::free);
  select<double>(k, pass)(plan, view(a.data(), a_size), view(b.data(), b_size), view(out.data(), size), 0, plan.tasks,
                          scratch.get());
  return out;
}

using Launcher = cudaError_t (*)(const cuda::Involution2dParams&, cudaStream_t);

template <class E>
void test(const Involution2dShape& s, Dtype dtype, double tolerance, Random& random) {
  const Size x{{s.batch, s.channels, s.height, s.width}}, y{{s.batch, s.channels, s.out_height, s.out_width}},
      w{{s.batch, s.groups * s.taps(), s.out_height, s.out_width}};
  struct Pass {
    const char* name;
    Involution2dPass pass;
    Launcher launcher;
    const Size &a, &b, &out;
  };
  const Pass passes[] = {{"forward", Involution2dPass::kForward, cuda::involution2d, x, w, y},
                         {"naive", Involution2dPass::kForward, cuda::involution2d_naive, x, w, y},
                         {"grad_x", Involution2dPass::kGradX, cuda::involution2d_grad_x, y, w, x},
                         {"grad_weight", Involution2dPass::kGradWeight, cuda::involution2d_grad_weight, y, x, w}};
  std::normal_distribution<double> normal;
  for (const Pass& pass : passes)
    for (const bool channels_last : {false, true}) {
      const Against end = pick(random, 0, 1) == 0 ? Against::kStart : Against::kEnd;
      Operand<E> a(pass.a, channels_last, end), b(pass.b, channels_last && pick(random, 0, 1) == 0, end);
      if (pass.pass == Involution2dPass::kGradWeight) b.channels_last = channels_last;
      Values a_values(static_cast<size_t>(pass.a.count())), b_values(static_cast<size_t>(pass.b.count()));
      for (double& v : a_values) v = normal(random);
      for (double& v : b_values) v = normal(random);
      a.fill(a_values), b.fill(b_values);
      const Values expected = cpu(s, pass.pass, a_values, pass.a, b_values, pass.b, pass.out);
      Values first;
      for (const bool last_first : {false, true}) {
        cuda_host::last_first = last_first, cuda_host::divergent = 0;
        const Operand<E> out(pass.out, channels_last, end);
        cuda::Involution2dParams p{s, dtype, a.in(), b.in(), out.out(), nullptr};
        const std::string name =
            std::string(pass.name) + " [" + std::to_string(s.batch) + "," + std::to_string(s.channels) + "," +
            std::to_string(s.height) + "," + std::to_string(s.width) + "] groups " + std::to_string(s.groups) + " kernel " +
            std::to_string(s.kernel_h) + "x" + std::to_string(s.kernel_w) + " stride " + std::to_string(s.stride_h) +
            " padding " + std::to_string(s.pad_h) + "," + std::to_string(s.pad_w) + " dilation " +
            std::to_string(s.dilation_h) + " bytes " + std::to_string(sizeof(E)) + (channels_last ? " channels_last" : "");
        running(name.c_str());
        const int64_t bytes = pass.pass == Involution2dPass::kGradWeight ? cuda::involution2d_scratch_bytes(p) : 0;
        const Guarded scratch(static_cast<size_t>(std::max<int64_t>(bytes, 16)), 16, end);
        p.scratch = bytes > 0 ? scratch.data() : nullptr;
        check(pass.launcher(p, nullptr) == cudaSuccess, name + ": an error");
        const Values found = out.read();
        double worst = 0;
        for (size_t i = 0; i < found.size(); ++i) {
          const double error = std::abs(found[i] - expected[i]) / (1 + std::abs(expected[i]));
          worst = error <= worst ? worst : error;
          if (std::isnan(found[i])) worst = INFINITY;
        }
        check(worst <= tolerance, name + ": differs from the CPU by " + std::to_string(worst));
        check(out.memory.intact() && scratch.intact(), name + ": memory beside the result was written");
        check(cuda_host::divergent == 0, name + ": not every thread comes to a barrier");
        if (first.empty()) first = found;
        check(first == found, name + ": the order of threads changes the result");
      }
    }
}

Involution2dShape shape(int64_t batch, int64_t channels, int64_t groups, int64_t height, int64_t width, int64_t kernel,
                        int64_t stride, int64_t padding, int64_t dilation) {
  const auto out = [&](int64_t n) { return (n + 2 * padding - (kernel - 1) * dilation - 1) / stride + 1; };
  return {batch,  channels, groups, height,  width,   out(height), out(width), kernel,
          kernel, stride,   stride, padding, padding, dilation,    dilation};
}

int run(uint64_t seed, int random_shapes) {
  report_faults();
  Random random(seed);
  std::vector<Involution2dShape> shapes = {
      shape(1, 16, 1, 5, 37, 3, 1, 1, 1), shape(2, 32, 2, 9, 8, 3, 1, 1, 1),  shape(1, 8, 1, 6, 130, 3, 1, 1, 1),
      shape(1, 16, 2, 8, 12, 5, 1, 2, 1), shape(1, 32, 2, 7, 7, 7, 1, 3, 1),  shape(1, 3, 3, 1, 1, 7, 1, 3, 1),
      shape(1, 8, 1, 5, 6, 3, 1, 4, 1),   shape(1, 16, 1, 9, 8, 7, 2, 3, 1),  shape(2, 6, 2, 7, 9, 3, 1, 2, 2),
      shape(1, 5, 1, 6, 7, 2, 3, 1, 1),   shape(1, 130, 1, 2, 1, 1, 1, 0, 1), shape(1, 80, 1, 3, 4, 3, 1, 1, 1),
      shape(1, 2, 1, 40, 3, 3, 1, 1, 1),  shape(1, 2, 1, 3, 270, 5, 1, 2, 1), shape(1, 128, 1, 2, 3, 3, 1, 1, 1),
  };
  for (int n = 0; n < random_shapes; ++n) {
    const int64_t groups = pick(random, 1, 2), kernel = 1 + 2 * pick(random, 0, 3), stride = pick(random, 0, 3) == 0 ? 2 : 1;
    const int64_t dilation = pick(random, 0, 4) == 0 ? 2 : 1, padding = pick(random, 0, kernel);
    const Involution2dShape s = shape(pick(random, 1, 2), groups * pick(random, 1, 20), groups, pick(random, 1, 18),
                                      pick(random, 1, 24), kernel, stride, padding, dilation);
    const auto small = [&](int64_t n_in) { return n_in + 2 * padding <= (kernel - 1) * dilation; };
    if (!small(s.height) && !small(s.width)) shapes.push_back(s);
  }
  for (const Involution2dShape& s : shapes) {
    test<float>(s, Dtype::kFloat32, 1e-5, random);
    test<double>(s, Dtype::kFloat64, 1e-13, random);
    test<__half>(s, Dtype::kFloat16, 1e-3, random);
    test<__nv_bfloat16>(s, Dtype::kBFloat16, 8e-3, random);
  }
  std::printf("%zu shapes, %d passed, %d failed, seed %llu\n", shapes.size(), passed, failed,
              static_cast<unsigned long long>(seed));
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lgld::test

// lgld_cuda_kernels_tests [SEED [RANDOM_SHAPES]]
int main(int argc, char** argv) {
  return lgld::test::run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20261121, argc > 2 ? std::atoi(argv[2]) : 12);
}
