// Every compiled variant of the Fourier feature mixer's passes that this machine runs, against the formulas of ffm.h in double.
//
// Tensors, partial sums and scratch stand against forbidden pages, results start as NaN, and tasks run whole and one by one
// backwards: equal to the last bit.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "maps.h"
#include "signals.h"
#include "variants.h"

namespace lgld::test {
namespace {

struct Problem {
  FfmShape shape;
  Doubles slope, offset, rows, columns, centre;
  FfmFold fold() const { return {rows.data(), columns.data(), centre.data(), slope.data(), offset.data()}; }
};

// f' of one pixel of the grid.
template <class E>
Doubles features_at(const Problem& p, const Map<E>& x, int64_t b, int64_t i, int64_t j) {
  const FfmShape& s = p.shape;
  Doubles f;
  for (int64_t k = 0; k < s.inputs; ++k) f.push_back(value_of(x.at(b, k, i * s.stride, j * s.stride)) - p.centre[k]);
  for (double v : {p.rows[i], p.rows[s.out_height + i], p.columns[j], p.columns[s.out_width + j]}) f.push_back(v);
  return f;
}

// The passes' exact results.
struct Exact {
  Doubles moments, y, sums, projected, grad_x;
};

template <class E>
Exact exact_results(const Problem& p, const Map<E>& x, const Map<E>& grad, const FfmCorrection& correction) {
  const FfmShape& s = p.shape;
  const int64_t n = s.inputs, features = s.features(), pairs = s.pairs(), record = 1 + features;
  Exact e;
  e.moments.assign(static_cast<size_t>(pairs + 5 * n), 0.0);
  e.sums.assign(static_cast<size_t>(s.channels * record), 0.0);
  e.grad_x.assign(static_cast<size_t>(s.batch * n * s.height * s.width), 0.0);
  e.y.assign(static_cast<size_t>(s.batch * s.channels * s.out_height * s.out_width), 0.0);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t i = 0; i < s.out_height; ++i)
      for (int64_t j = 0; j < s.out_width; ++j) {
        const Doubles f = features_at(p, x, b, i, j);
        int64_t at = 0;
        for (int64_t k = 0; k < n; ++k)
          for (int64_t l = k; l < n; ++l) e.moments[at++] += f[k] * f[l];
        for (int64_t k = 0; k < n; ++k) e.moments[at + k] += f[k];
        for (int64_t t = 0; t < 4; ++t)
          for (int64_t k = 0; k < n; ++k) e.moments[at + n * (1 + t) + k] += f[k] * f[n + t];
        Doubles back(static_cast<size_t>(n), 0.0);
        for (int64_t c = 0; c < s.channels; ++c) {
          double u = p.offset[c];
          for (int64_t k = 0; k < features; ++k) u += p.slope[c * features + k] * f[k];
          const double sigmoid = 1 / (1 + std::exp(-u));
          e.y[((b * s.channels + c) * s.out_height + i) * s.out_width + j] = u * sigmoid;
          const double g = value_of(grad.at(b, c, i, j)) * (sigmoid + u * sigmoid * (1 - sigmoid));
          e.sums[c * record] += g;
          for (int64_t k = 0; k < features; ++k) e.sums[c * record + 1 + k] += g * f[k];
          for (int64_t k = 0; k < n; ++k) back[k] += p.slope[c * features + k] * g;
        }
        for (int64_t k = 0; k < n; ++k) {
          double minus = correction.offset[k];
          for (int64_t l = 0; l < features; ++l) minus += correction.slope[k * features + l] * f[l];
          e.grad_x[((b * n + k) * s.height + i * s.stride) * s.width + j * s.stride] = back[k] - minus;
        }
      }
  return e;
}

// Runs the plan's tasks in one go, or one by one from the last to the first, with scratch of signalling NaN each time.
template <class T, class F>
void run_tasks(const FfmPlan& plan, bool backwards, Against end, const std::string& name, F f) {
  const Guarded scratch(static_cast<size_t>(plan.scratch_bytes), 64, end);
  const auto run = [&](int64_t from, int64_t to) {
    fill_with_signals<T>(scratch, static_cast<size_t>(plan.scratch_bytes));
    f(from, to, scratch.data());
    check(!signalled(), name + ": arithmetic on scratch memory that was not written");
  };
  if (!backwards) run(0, plan.tasks);
  for (int64_t t = plan.tasks; backwards && t-- > 0;) run(t, t + 1);
  check(scratch.intact(), name + ": memory beside the scratch was written");
}

Doubles total(const Guarded& partial, int64_t tasks, int64_t length) {
  const double* p = static_cast<const double*>(partial.data());
  Doubles sum(static_cast<size_t>(length), 0.0);
  for (int64_t t = 0; t < tasks; ++t)
    for (int64_t k = 0; k < length; ++k) sum[static_cast<size_t>(k)] += p[t * length + k];
  return sum;
}

template <class T, class E>
void test_kernels(const FfmTyped<T, E>& kernels, const Problem& p, Layout layout, double arithmetic, double storage,
                  const std::string& name, Random& random) {
  const FfmShape& s = p.shape;
  std::normal_distribution<double> normal;
  const auto random_doubles = [&](int64_t n) {
    Doubles v(static_cast<size_t>(n));
    for (double& x : v) x = normal(random);
    return v;
  };
  const Doubles correct = random_doubles(s.inputs * s.features()), shift = random_doubles(s.inputs);
  const FfmCorrection correction{correct.data(), shift.data()};
  const FfmPlan plan = plan_ffm(s, sizeof(T) == sizeof(double));
  const FfmFold fold = p.fold();
  Doubles first[4];
  for (const Against end : {Against::kEnd, Against::kStart}) {
    const bool backwards = end == Against::kStart;
    const auto map = [&](int64_t c, int64_t h, int64_t w) { return Map<E>(s.batch, c, h, w, layout, end); };
    const Map<E> x = map(s.inputs, s.height, s.width), grad = map(s.channels, s.out_height, s.out_width),
                 y = map(s.channels, s.out_height, s.out_width), grad_x = map(s.inputs, s.height, s.width);
    Random values(7);
    std::normal_distribution<double> again;  // a used one may hold a value back
    const auto fill = [&](E& e, int64_t, int64_t, int64_t, int64_t) { assign(e, again(values)); };
    x.each(fill), grad.each(fill);
    running(name.c_str());
    const Exact exact = exact_results(p, x, grad, correction);

    const Guarded moments(static_cast<size_t>(plan.tasks * plan.moments) * 8, 8, end);
    run_tasks<T>(plan, backwards, end, name, [&](int64_t from, int64_t to, void* scratch) {
      kernels.moments(plan, x.in(), fold, static_cast<double*>(moments.data()), from, to, scratch);
    });
    const Doubles all_moments = total(moments, plan.tasks, plan.moments);
    check_close(all_moments, exact.moments, arithmetic, name + " moments");

    run_tasks<T>(plan, backwards, end, name, [&](int64_t from, int64_t to, void* scratch) {
      kernels.forward(plan, x.in(), fold, y.out(), from, to, scratch);
    });
    check_close(y.values(), exact.y, arithmetic + storage, name + " forward");

    const Guarded sums(static_cast<size_t>(plan.tasks * plan.sums) * 8, 8, end);
    const Guarded projected(static_cast<size_t>(plan.projected) * sizeof(T), sizeof(T), end);
    run_tasks<T>(plan, backwards, end, name, [&](int64_t from, int64_t to, void* scratch) {
      kernels.backward(plan, x.in(), fold, grad.in(), static_cast<double*>(sums.data()), static_cast<T*>(projected.data()),
                       from, to, scratch);
    });
    const Doubles all_sums = total(sums, plan.tasks, plan.sums);
    check_close(all_sums, exact.sums, 4 * arithmetic, name + " backward");

    run_tasks<T>(plan, backwards, end, name, [&](int64_t from, int64_t to, void* scratch) {
      kernels.grad_x(plan, x.in(), fold, correction, static_cast<const T*>(projected.data()), grad_x.out(), from, to, scratch);
    });
    check_close(grad_x.values(), exact.grad_x, 4 * arithmetic + storage, name + " grad_x");
    check(y.intact() && grad_x.intact() && moments.intact() && sums.intact() && projected.intact(),
          name + ": memory beside a result was written");

    const Doubles now[4] = {all_moments, y.values(), all_sums, grad_x.values()};
    for (int k = 0; k < 4; ++k) {
      if (end == Against::kEnd) first[k] = now[k];
      check(same_bits(first[k], now[k]), name + ": another order of the tasks changed bits of result " + std::to_string(k));
    }

    // Without grad_x the sums are the same.
    const Guarded alone(static_cast<size_t>(plan.tasks * plan.sums) * 8, 8, end);
    run_tasks<T>(plan, backwards, end, name, [&](int64_t from, int64_t to, void* scratch) {
      kernels.backward(plan, x.in(), fold, grad.in(), static_cast<double*>(alone.data()), nullptr, from, to, scratch);
    });
    check(same_bits(total(alone, plan.tasks, plan.sums), all_sums), name + ": the sums depend on whether grad_x is wanted");

    Doubles centre(static_cast<size_t>(s.inputs), -1e9);
    kernels.centre(plan, x.in(), centre.data());
    for (double v : centre) check(std::abs(v) < 6, name + ": centre");
  }
}

FfmShape shape_of(int64_t b, int64_t inputs, int64_t channels, int64_t h, int64_t w, int64_t stride) {
  return {b, inputs, channels, h, w, stride, (h + stride - 1) / stride, (w + stride - 1) / stride};
}

int run(uint64_t seed) {
  report_faults();
  Random random(seed);
  std::vector<FfmShape> shapes = {
      shape_of(1, 3, 4, 1, 1, 1),    shape_of(2, 3, 6, 17, 35, 2), shape_of(1, 1, 2, 9, 64, 2),
      shape_of(2, 5, 4, 6, 21, 1),   shape_of(3, 3, 2, 5, 1, 2),   shape_of(1, 3, 2, 3, 700, 1),
      shape_of(1, 9, 2, 3, 1000, 2), shape_of(70, 3, 2, 5, 6, 2),  shape_of(1, 2, 4, 20, 7, 3),
  };
  for (int64_t w = 1; w <= 35; ++w) shapes.push_back(shape_of(1, w % 4 + 1, 2 + 2 * (w % 2), w % 5 + 1, w, w % 3 + 1));
  std::normal_distribution<double> normal;
  int count = 0, runs = 0;
  const CpuVariant* variants = cpu_variants(&count);
  for (int v = 0; v < count; ++v) {
    if (!variants[v].supported()) continue;
    ++runs;
    const FfmKernels& k = *variants[v].ffm;
    int number = 0;
    for (const FfmShape& s : shapes) {
      Problem p{s, {}, {}, Doubles(static_cast<size_t>(2 * s.out_height)), Doubles(static_cast<size_t>(2 * s.out_width)), {}};
      for (int64_t i = 0; i < s.channels * s.features(); ++i) p.slope.push_back(normal(random));
      for (int64_t i = 0; i < s.channels; ++i) p.offset.push_back(normal(random));
      for (int64_t i = 0; i < s.inputs; ++i) p.centre.push_back(static_cast<float>(normal(random)));
      ffm_positions(s, p.rows.data(), p.columns.data());
      const Layout layout = static_cast<Layout>(number++ % 3);
      const std::string name = std::string(variants[v].name) + " [" + std::to_string(s.batch) + "," + std::to_string(s.inputs) +
                               "," + std::to_string(s.height) + "," + std::to_string(s.width) + "] C " +
                               std::to_string(s.channels) + " stride " + std::to_string(s.stride) + " layout " +
                               std::to_string(static_cast<int>(layout));
      // A handful of roundings of float and of double; 2^-11 and 2^-8 are half a unit of the stored types.
      constexpr double kFloat = 2e-6, kDouble = 1e-14;
      test_kernels(k.f32, p, layout, kFloat, 0, name + " float32", random);
      test_kernels(k.f64, p, layout, kDouble, 0, name + " float64", random);
      test_kernels(k.f16, p, layout, kFloat, 0x1p-11, name + " float16", random);
      test_kernels(k.bf16, p, layout, kFloat, 0x1p-8, name + " bfloat16", random);
    }
  }
  std::printf("%zu shapes, %d variants, seed %llu\n", shapes.size(), runs, static_cast<unsigned long long>(seed));
  return verdict(runs > 0);
}

}  // namespace
}  // namespace lgld::test

// lgld_ffm_tests [SEED]
int main(int argc, char** argv) { return lgld::test::run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20261121); }
