// torch.ops.lgld_ops.fourier_feature_mixer and its backward on the CPU. Formulas: kernels/cpu/ffm/ffm.h.
#include "kernels/cpu/ffm/ffm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "csrc/cpu/tensors.h"
#include "csrc/cpu/variant.h"
#include "csrc/error.h"
#include "csrc/ffm_arguments.h"

namespace lgld {
namespace {

using Doubles = std::vector<double>;
using Maybe = std::optional<Tensor>;

// A parameter's elements, in order.
template <class F>
void each_element(const Tensor& t, F f) {
  const int64_t dim = t.dim(), columns = dim > 1 ? t.size(1) : 1, step = dim > 1 ? t.stride(1) : 0;
  for (int64_t i = 0, k = 0; i < t.size(0); ++i)
    for (int64_t j = 0; j < columns; ++j) f(k++, i * t.stride(0) + j * step);
}

// f on the tensor's data, typed; f(p, of, to): elements are made doubles by `of`, and doubles elements by `to`.
template <class F>
void typed(const Tensor& t, void* data, F f) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return f(static_cast<float*>(data), [](double v) { return static_cast<float>(v); });
    case ScalarType::Half:
      return f(static_cast<Float16*>(data), [](double v) { return narrow(static_cast<float>(v), Float16{}); });
    case ScalarType::BFloat16:
      return f(static_cast<BFloat16*>(data), [](double v) { return narrow(static_cast<float>(v), BFloat16{}); });
    default: return f(static_cast<double*>(data), [](double v) { return v; });
  }
}

double as_double(double v) { return v; }
double as_double(float v) { return v; }
double as_double(Float16 v) { return widen(v); }
double as_double(BFloat16 v) { return widen(v); }

Doubles doubles(const Tensor& t) {
  Doubles values(static_cast<size_t>(t.numel()));
  typed(t, const_cast<void*>(t.const_data_ptr()), [&](const auto* p, auto) {
    each_element(t, [&](int64_t k, int64_t at) { values[static_cast<size_t>(k)] = as_double(p[at]); });
  });
  return values;
}

// A new contiguous tensor of the sizes and dtype of `like`; empty where there is none.
Tensor from_doubles(const char* op, const Maybe& like, ScalarType otherwise, const double* values) {
  const auto [size, stride] = contiguous_like(like);
  const Tensor t = allocate(op, size, stride, like ? like->scalar_type() : otherwise, "it has the size of a parameter");
  typed(t, t.mutable_data_ptr(), [&](auto* p, auto to) {
    for (int64_t k = 0; k < t.numel(); ++k) p[k] = to(values[k]);
  });
  return t;
}

// The arguments of both ops: checked, the parameters gathered in double.
struct Arguments {
  const char* op;
  FfmShape shape;
  bool training, wide;  // wide: float64
  Doubles weight, bias, modulation, bn_weight, bn_bias, running_mean, running_var;
  FfmParameters parameters;
};

Doubles optional_doubles(const Maybe& t) { return t ? doubles(*t) : Doubles{}; }

Arguments gather(const char* op, const FfmTensors& t) {
  Arguments a{};
  a.op = op, a.training = t.training, a.shape = ffm_arguments(op, kOnCpu, t);
  a.wide = t.x.scalar_type() == ScalarType::Double;
  a.weight = doubles(t.weight);
  a.bias = t.bias ? doubles(*t.bias) : Doubles(static_cast<size_t>(a.shape.channels), 0.0);
  a.modulation = doubles(t.real);
  const Doubles second = doubles(t.imag);
  a.modulation.insert(a.modulation.end(), second.begin(), second.end());
  a.bn_weight = optional_doubles(t.bn_weight), a.bn_bias = optional_doubles(t.bn_bias);
  if (!t.training) a.running_mean = doubles(*t.running_mean), a.running_var = doubles(*t.running_var);
  const auto or_null = [](const Doubles& v) { return v.empty() ? nullptr : v.data(); };
  a.parameters = {a.weight.data(), a.bias.data(), a.modulation.data(), or_null(a.bn_weight), or_null(a.bn_bias), t.eps};
  return a;
}

// f(begin, end, scratch) for the plan's tasks, on torch's threads.
template <class F>
void run(const Arguments& a, const FfmPlan& plan, int64_t work, F f) {
  // 32 Ki evaluations take a few microseconds, about what waking another thread costs.
  const int64_t grain = std::max<int64_t>(1, plan.tasks / std::max<int64_t>(1, work / (32 * 1024)));
  std::atomic<bool> out_of_memory{false};
  const size_t bytes = static_cast<size_t>((plan.scratch_bytes + 63) / 64 * 64);
  torch::stable::parallel_for(0, plan.tasks, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<void, FreeDeleter> scratch(std::aligned_alloc(64, bytes));
    if (scratch) {
      f(begin, end, scratch.get());
    } else {
      out_of_memory = true;
    }
  });
  LGLD_CHECK(!out_of_memory, a.op, ": not enough memory for ", bytes, " bytes of scratch a thread; x sets its size");
}

// The folded map and, in training, the statistics that it was made of.
struct Folded {
  Doubles rows, columns, centre, slope, offset, mean, covariance, z_mean, z_var;
  FfmFold view() const { return {rows.data(), columns.data(), centre.data(), slope.data(), offset.data()}; }
};

template <class T, class E>
Folded fold(const Arguments& a, const FfmPlan& plan, const FfmTyped<T, E>& kernels, const Tensor& x) {
  const FfmShape& s = a.shape;
  const auto room = [](int64_t n) { return Doubles(static_cast<size_t>(n), 0.0); };
  Folded f{
      room(2 * s.out_height), room(2 * s.out_width), room(s.inputs), room(s.channels * s.features()), room(s.channels), {}, {},
      a.running_mean,         a.running_var};
  ffm_positions(s, f.rows.data(), f.columns.data());
  if (a.training) {
    f.mean = room(s.features()), f.covariance = room(s.features() * s.features());
    f.z_mean = room(s.channels), f.z_var = room(s.channels);
    kernels.centre(plan, read<E>(x), f.centre.data());
    Doubles partial(static_cast<size_t>(plan.tasks * plan.moments));
    const FfmFold view = f.view();
    run(a, plan, s.positions() * plan.moments, [&](int64_t begin, int64_t end, void* scratch) {
      kernels.moments(plan, read<E>(x), view, partial.data(), begin, end, scratch);
    });
    ffm_feature_statistics(plan, view, partial.data(), f.mean.data(), f.covariance.data());
    ffm_batch_statistics(s, a.parameters, f.mean.data(), f.covariance.data(), f.z_mean.data(), f.z_var.data());
  }
  ffm_fold(s, a.parameters, f.z_mean.data(), f.z_var.data(), f.centre.data(), f.slope.data(), f.offset.data());
  return f;
}

// A map in dtype and memory format of x.
Tensor map_like(const char* op, const Tensor& x, const Ints& size) {
  return allocate_map(op, x, size, "it follows from the sizes of x and weight and from stride");
}

// f(kernels) with the kernels of x's dtype.
template <class F>
void dispatch(const Tensor& x, F f) {
  const FfmKernels& k = *active_cpu_variant().ffm;
  switch (x.scalar_type()) {
    case ScalarType::Float: return f(k.f32);
    case ScalarType::Half: return f(k.f16);
    case ScalarType::BFloat16: return f(k.bf16);
    default: return f(k.f64);
  }
}

std::tuple<Tensor, Tensor, Tensor> fourier_feature_mixer(const Tensor& x, const Tensor& weight, const Maybe& bias,
                                                         const Tensor& real, const Tensor& imag, const Maybe& bn_weight,
                                                         const Maybe& bn_bias, const Maybe& running_mean,
                                                         const Maybe& running_var, bool training, double eps, int64_t stride) {
  const Arguments a = gather("fourier_feature_mixer", {x, weight, bias, real, imag, bn_weight, bn_bias, running_mean,
                                                       running_var, training, eps, stride});
  const FfmShape& s = a.shape;
  const Tensor y = map_like(a.op, x, {s.batch, s.channels, s.out_height, s.out_width});
  const FfmPlan plan = plan_ffm(s, a.wide);
  const ScalarType statistic = a.wide ? ScalarType::Double : ScalarType::Float;
  const int64_t given = training ? s.channels : 0;
  const Tensor mean = allocate(a.op, {given}, {1}, statistic, "it has an element per channel");
  const Tensor var = allocate(a.op, {given}, {1}, statistic, "it has an element per channel");
  const auto save = [&](const Tensor& t, auto value_at) {
    typed(t, t.mutable_data_ptr(), [&](auto* p, auto to) {
      for (int64_t c = 0; c < given; ++c) p[c] = to(value_at(c));
    });
  };
  if (s.batch == 0) {
    save(mean, [](int64_t) { return std::nan(""); });
    save(var, [](int64_t) { return std::nan(""); });
    return {y, mean, var};
  }
  dispatch(x, [&](const auto& kernels) {
    using E = typename std::decay_t<decltype(kernels)>::Element;
    const Folded f = fold(a, plan, kernels, x);
    const FfmFold view = f.view();
    run(a, plan, s.positions() * s.channels, [&](int64_t begin, int64_t end, void* scratch) {
      kernels.forward(plan, read<E>(x), view, write<E>(y), begin, end, scratch);
    });
    save(mean, [&](int64_t c) { return f.z_mean[static_cast<size_t>(c)]; });
    save(var, [&](int64_t c) { return f.z_var[static_cast<size_t>(c)]; });
  });
  return {y, mean, var};
}

using SevenTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SevenTensors fourier_feature_mixer_backward(const Tensor& grad_y, const Tensor& x, const Tensor& weight, const Maybe& bias,
                                            const Tensor& real, const Tensor& imag, const Maybe& bn_weight,
                                            const Maybe& bn_bias, const Maybe& running_mean, const Maybe& running_var,
                                            bool training, double eps, int64_t stride, bool need_x) {
  const Arguments a = gather("fourier_feature_mixer_backward", {x, weight, bias, real, imag, bn_weight, bn_bias, running_mean,
                                                                running_var, training, eps, stride});
  const FfmShape& s = a.shape;
  ffm_grad_argument(a.op, kOnCpu, grad_y, x, s);
  const auto room = [](int64_t n) { return Doubles(static_cast<size_t>(n), 0.0); };
  Doubles g_weight = room(s.channels * s.features()), g_bias = room(s.channels), g_modulation = room(s.channels),
          g_bn_weight = room(s.channels), g_bn_bias = room(s.channels), slope = room(s.inputs * s.features()),
          offset = room(s.inputs);
  const Tensor grad_x = need_x ? map_like(a.op, x, {s.batch, s.inputs, s.height, s.width})
                               : allocate(a.op, {0}, {1}, x.scalar_type(), "it is empty");
  if (s.batch > 0) {
    dispatch(x, [&](const auto& kernels) {
      using Kernels = std::decay_t<decltype(kernels)>;
      using E = typename Kernels::Element;
      using T = typename Kernels::Arithmetic;
      const FfmPlan plan = plan_ffm(s, a.wide);
      const Folded f = fold(a, plan, kernels, x);
      const FfmFold view = f.view();
      Doubles partial(static_cast<size_t>(plan.tasks * plan.sums));
      const std::unique_ptr<T, FreeDeleter> projected(
          need_x ? static_cast<T*>(std::malloc(static_cast<size_t>(plan.projected) * sizeof(T))) : nullptr);
      LGLD_CHECK(!need_x || projected, a.op, ": not enough memory for ", plan.projected, " elements of grad_x");
      run(a, plan, s.positions() * s.channels, [&](int64_t begin, int64_t end, void* scratch) {
        kernels.backward(plan, read<E>(x), view, read<E>(grad_y), partial.data(), projected.get(), begin, end, scratch);
      });
      ffm_gradients(plan, a.parameters, f.z_mean.data(), f.z_var.data(), f.centre.data(), training ? f.mean.data() : nullptr,
                    f.covariance.data(), f.slope.data(), partial.data(),
                    {g_weight.data(), g_bias.data(), g_modulation.data(), g_bn_weight.data(), g_bn_bias.data(), slope.data(),
                     offset.data()});
      if (!need_x) return;
      run(a, plan, s.positions() * s.inputs * s.features(), [&](int64_t begin, int64_t end, void* scratch) {
        kernels.grad_x(plan, read<E>(x), view, {slope.data(), offset.data()}, projected.get(), write<E>(grad_x), begin, end,
                       scratch);
      });
    });
  }
  const auto parameter = [&](const Maybe& like, const double* values) {
    return from_doubles(a.op, like, x.scalar_type(), values);
  };
  return {grad_x,
          parameter(weight, g_weight.data()),
          parameter(bias, g_bias.data()),
          parameter(real, g_modulation.data()),
          parameter(imag, g_modulation.data() + s.channels / 2),
          parameter(bn_weight, g_bn_weight.data()),
          parameter(bn_bias, g_bn_bias.data())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lgld_ops, CPU, m) {
  m.impl("fourier_feature_mixer", TORCH_BOX(&fourier_feature_mixer));
  m.impl("fourier_feature_mixer_backward", TORCH_BOX(&fourier_feature_mixer_backward));
}

}  // namespace lgld
