// The Fourier feature mixer's CUDA kernels, run on the host (cuda_emulation/emulation.h), against the layer's definition in
// double: features, projection, BatchNorm in two passes, SiLU, and its textbook gradients. Tensors and workspace stand against
// forbidden pages and start as NaN; threads run in several orders, and with fewer blocks than were asked for, equal to the last
// bit.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda_emulation/emulation.h"
#include "kernels/cuda/ffm/ffm.h"
#include "maps.h"

namespace lgld::test {
namespace {

template <class E>
constexpr Dtype kDtype = Dtype::kFloat32;
template <>
constexpr Dtype kDtype<double> = Dtype::kFloat64;
template <>
constexpr Dtype kDtype<Float16> = Dtype::kFloat16;
template <>
constexpr Dtype kDtype<BFloat16> = Dtype::kBFloat16;

template <class E>
cuda::FfmMap map_of(const Map<E>& m) {
  const Strided<E> s = m.out();
  return {s.data, s.batch, s.channel, s.row, s.column};
}

// A parameter of any type, every `step` elements, and its values as kernels see them; no elements where absent.
struct Parameter {
  std::unique_ptr<Guarded> memory;
  Dtype type = Dtype::kFloat32;
  int64_t step = 1;
  Doubles values;

  const void* data() const { return memory ? memory->data() : nullptr; }
  cuda::FfmVector vector() const { return {data(), type, step}; }
};

template <class E>
void fill(Parameter& p, const Doubles& values) {
  p.type = kDtype<E>;
  p.memory = std::make_unique<Guarded>(((values.size() - 1) * p.step + 1) * sizeof(E), sizeof(E), Against::kEnd);
  for (size_t i = 0; i < values.size(); ++i) {
    E& e = static_cast<E*>(p.memory->data())[i * p.step];
    assign(e, values[i]);
    p.values.push_back(value_of(e));
  }
}

// Float32, or for every few seeds any type and any distance between elements.
Parameter parameter(const Doubles& values, bool wide, bool plain, Random& random) {
  Parameter p;
  if (!plain) p.step = 1 + static_cast<int64_t>(random() % 3);
  switch (plain ? (wide ? 1 : 0) : random() % 4) {
    case 1: fill<double>(p, values); break;
    case 2: fill<Float16>(p, values); break;
    case 3: fill<BFloat16>(p, values); break;
    default: fill<float>(p, values);
  }
  return p;
}

struct Layer {
  FfmShape shape;
  bool training;
  double eps;
  Parameter weight, bias, real, imag, bn_weight, bn_bias, running_mean, running_var;
};

// All results of one layer, parameters' gradients in the order of FfmGradients.
struct Results {
  Doubles y, mean, var, grad_x, gradients[6];
};

template <class E>
Results exact_results(const Layer& l, const Map<E>& x, const Map<E>& grad) {
  const FfmShape& s = l.shape;
  const int64_t n = s.inputs, features = s.features(), plane = s.out_height * s.out_width, positions = s.positions();
  const double two_pi = 2 * std::acos(-1.0), count = static_cast<double>(positions);
  Doubles f(static_cast<size_t>(positions * features));
  for (int64_t p = 0; p < positions; ++p) {
    const int64_t b = p / plane, i = p % plane / s.out_width, j = p % s.out_width;
    double* const at = &f[static_cast<size_t>(p * features)];
    for (int64_t k = 0; k < n; ++k) at[k] = value_of(x.at(b, k, i * s.stride, j * s.stride));
    const double row = two_pi * static_cast<double>(i * s.stride) / static_cast<double>(s.height);
    const double column = two_pi * static_cast<double>(j * s.stride) / static_cast<double>(s.width);
    at[n] = std::sin(row), at[n + 1] = std::cos(row), at[n + 2] = std::sin(column), at[n + 3] = std::cos(column);
  }
  const auto or_else = [](const Parameter& p, int64_t c, double otherwise) {
    return p.values.empty() ? otherwise : p.values[static_cast<size_t>(c)];
  };
  Results e;
  e.y.assign(static_cast<size_t>(positions * s.channels), 0.0);
  e.grad_x.assign(static_cast<size_t>(s.batch * n * s.height * s.width), 0.0);
  for (int64_t c = 0; c < s.channels; ++c) {
    const int64_t half = s.channels / 2;
    const double m = c < half ? l.real.values[c] : l.imag.values[c - half], gamma = or_else(l.bn_weight, c, 1);
    const double* const w = &l.weight.values[static_cast<size_t>(c * features)];
    Doubles h(static_cast<size_t>(positions));
    double mean = 0, var = 0;
    for (int64_t p = 0; p < positions; ++p) {
      h[p] = or_else(l.bias, c, 0);
      for (int64_t k = 0; k < features; ++k) h[p] += w[k] * f[p * features + k];
      mean += m * h[p] / count;
    }
    for (int64_t p = 0; p < positions; ++p) var += (m * h[p] - mean) * (m * h[p] - mean) / count;
    if (l.training) {
      e.mean.push_back(mean), e.var.push_back(var);
    } else {
      mean = l.running_mean.values[c], var = l.running_var.values[c];
    }
    const double sigma = std::sqrt(var + l.eps);
    Doubles g(h.size()), normal(h.size());
    double sum = 0, along = 0;
    for (int64_t p = 0; p < positions; ++p) {
      const int64_t b = p / plane, i = p % plane / s.out_width, j = p % s.out_width;
      normal[p] = (m * h[p] - mean) / sigma;
      const double u = gamma * normal[p] + or_else(l.bn_bias, c, 0), sigmoid = 1 / (1 + std::exp(-u));
      e.y[((b * s.channels + c) * s.out_height + i) * s.out_width + j] = u * sigmoid;
      g[p] = value_of(grad.at(b, c, i, j)) * (sigmoid + u * sigmoid * (1 - sigmoid));
      sum += g[p], along += g[p] * normal[p];
    }
    double g_weight[64] = {}, g_bias = 0, g_modulation = 0;
    for (int64_t p = 0; p < positions; ++p) {
      const int64_t b = p / plane, i = p % plane / s.out_width, j = p % s.out_width;
      double z = gamma / sigma * g[p];
      if (l.training) z = gamma / sigma * (g[p] - sum / count - normal[p] * along / count);
      g_bias += m * z, g_modulation += z * h[p];
      for (int64_t k = 0; k < features; ++k) g_weight[k] += m * z * f[p * features + k];
      for (int64_t k = 0; k < n; ++k)
        e.grad_x[((b * n + k) * s.height + i * s.stride) * s.width + j * s.stride] += m * z * w[k];
    }
    e.gradients[0].insert(e.gradients[0].end(), g_weight, g_weight + features);
    if (l.bias.memory) e.gradients[1].push_back(g_bias);
    e.gradients[c < half ? 2 : 3].push_back(g_modulation);
    if (l.bn_weight.memory) e.gradients[4].push_back(along);
    if (l.bn_bias.memory) e.gradients[5].push_back(sum);
  }
  return e;
}

template <class T>
Doubles doubles(const Guarded& memory, int64_t count) {
  Doubles values;
  for (int64_t i = 0; i < count; ++i) values.push_back(value_of(static_cast<const T*>(memory.data())[i]));
  return values;
}

Doubles doubles(const Guarded& memory, Dtype type, int64_t count) {
  switch (type) {
    case Dtype::kFloat64: return doubles<double>(memory, count);
    case Dtype::kFloat16: return doubles<Float16>(memory, count);
    case Dtype::kBFloat16: return doubles<BFloat16>(memory, count);
    default: return doubles<float>(memory, count);
  }
}

double half_unit(Dtype type) {
  return type == Dtype::kFloat64 ? 0 : type == Dtype::kFloat16 ? 0x1p-11 : type == Dtype::kBFloat16 ? 0x1p-8 : 0x1p-24;
}

template <class E>
struct Maps {
  Map<E> x, y, grad, grad_x;

  Maps(const FfmShape& s, Layout in, Layout out, Against end)
      : x(s.batch, s.inputs, s.height, s.width, in, end),
        y(s.batch, s.channels, s.out_height, s.out_width, in == Layout::kWiderRows ? Layout::kContiguous : in, end),
        grad(s.batch, s.channels, s.out_height, s.out_width, out, end),
        grad_x(s.batch, s.inputs, s.height, s.width, in, end) {
    Random random(11);
    std::normal_distribution<double> normal;
    x.each([&](E& e, int64_t, int64_t, int64_t, int64_t) { assign(e, 0.85 + 0.5 * normal(random)); });
    grad.each([&](E& e, int64_t, int64_t, int64_t, int64_t) { assign(e, normal(random)); });
  }
};

template <class E>
Results run_layer(const Layer& l, const Maps<E>& m, bool need_x, const std::string& name) {
  using T = std::conditional_t<std::is_same_v<E, double>, double, float>;
  const FfmShape& s = l.shape;
  const int64_t features = s.features();
  cuda::FfmArguments a{};
  a.shape = s, a.type = kDtype<E>, a.training = l.training, a.eps = l.eps, a.x = map_of(m.x);
  a.weight = {l.weight.data(), l.weight.type, features * l.weight.step, l.weight.step};
  a.bias = l.bias.vector(), a.real = l.real.vector(), a.imag = l.imag.vector();
  a.bn_weight = l.bn_weight.vector(), a.bn_bias = l.bn_bias.vector();
  a.running_mean = l.running_mean.vector(), a.running_var = l.running_var.vector();
  const auto room = [](size_t bytes, size_t unit) { return Guarded(bytes, unit, Against::kEnd); };
  const int64_t given = l.training ? s.channels : 0;
  const Guarded mean = room(std::max<size_t>(1, given * sizeof(T)), sizeof(T)),
                var = room(mean.data() ? given * sizeof(T) + 8 : 0, 8);
  Results r;
  {
    const Guarded workspace = room(cuda::ffm_forward_workspace(a), 256);
    check(cuda::ffm_forward(a, map_of(m.y), given ? mean.data() : nullptr, given ? var.data() : nullptr, workspace.data(),
                            nullptr) == cudaSuccess,
          name + ": forward's launches");
    check(workspace.intact() && m.y.intact(), name + ": memory beside forward's results was written");
  }
  r.y = m.y.values(), r.mean = doubles<T>(mean, given), r.var = doubles<T>(var, given);

  const Parameter* const parameters[6] = {&l.weight, &l.bias, &l.real, &l.imag, &l.bn_weight, &l.bn_bias};
  std::unique_ptr<Guarded> rooms[6];
  void* pointers[6] = {};
  for (int i = 0; i < 6; ++i) {
    if (!parameters[i]->memory) continue;
    const size_t element = parameters[i]->type == Dtype::kFloat64 ? 8 : parameters[i]->type == Dtype::kFloat32 ? 4 : 2;
    rooms[i] = std::make_unique<Guarded>(parameters[i]->values.size() * element, element, Against::kEnd);
    pointers[i] = rooms[i]->data();
  }
  cuda::FfmMap grad_x = map_of(m.grad_x);
  if (!need_x) grad_x.data = nullptr;
  {
    const Guarded workspace = room(cuda::ffm_backward_workspace(a, map_of(m.grad), need_x), 256);
    check(cuda::ffm_backward(a, map_of(m.grad), grad_x,
                             {pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5]}, workspace.data(),
                             nullptr) == cudaSuccess,
          name + ": backward's launches");
    check(workspace.intact() && m.grad_x.intact(), name + ": memory beside backward's results was written");
  }
  if (need_x) r.grad_x = m.grad_x.values();
  for (int i = 0; i < 6; ++i)
    if (rooms[i]) r.gradients[i] = doubles(*rooms[i], parameters[i]->type, static_cast<int64_t>(parameters[i]->values.size()));
  return r;
}

void check_same(const Results& a, const Results& b, const std::string& what) {
  bool same = same_bits(a.y, b.y) && same_bits(a.mean, b.mean) && same_bits(a.var, b.var);
  if (!b.grad_x.empty()) same = same && same_bits(a.grad_x, b.grad_x);
  for (int i = 0; i < 6; ++i) same = same && same_bits(a.gradients[i], b.gradients[i]);
  check(same, what);
}

template <class E>
void test_layer(const FfmShape& s, Layout in, Layout out, bool training, bool plain, const std::string& shape, Random& random) {
  const bool wide = std::is_same_v<E, double>;
  const char* const types[] = {"float32", "float64", "float16", "bfloat16"};
  const std::string name = shape + " layouts " + std::to_string(static_cast<int>(in)) + std::to_string(static_cast<int>(out)) +
                           (training ? " training " : " inference ") + types[static_cast<int>(kDtype<E>)];
  std::normal_distribution<double> normal;
  const auto draw = [&](int64_t count, double offset = 0) {
    Doubles v;
    for (int64_t i = 0; i < count; ++i) v.push_back(offset + (offset > 0 ? std::abs(normal(random)) : normal(random)));
    return parameter(v, wide, plain, random);
  };
  Layer l{s, training, 1e-3, draw(s.channels * s.features()), {}, draw(s.channels / 2), draw(s.channels / 2), {}, {}, {}, {}};
  if (plain || random() % 2) l.bias = draw(s.channels);
  if (plain || random() % 2) l.bn_weight = draw(s.channels);
  if (plain || random() % 2) l.bn_bias = draw(s.channels);
  if (!training) l.running_mean = draw(s.channels), l.running_var = draw(s.channels, 0.3);
  running(name.c_str());

  const Maps<E> maps(s, in, out, Against::kEnd);
  const Results exact = exact_results(l, maps.x, maps.grad);
  emulation::set_order(emulation::Order::kForward);
  const Results got = run_layer(l, maps, true, name);
  // Roundings of the arithmetic, of sums of a few thousand values, and of the stored type.
  const double arithmetic = wide ? 1e-12 : 4e-6, storage = half_unit(kDtype<E>);
  check_close(got.y, exact.y, arithmetic + storage, name + " y");
  check_close(got.mean, exact.mean, wide ? 1e-13 : 3e-7, name + " mean");
  check_close(got.var, exact.var, wide ? 1e-12 : 3e-7, name + " var");
  check_close(got.grad_x, exact.grad_x, 4 * arithmetic + storage, name + " grad_x");
  // The gradients of bias and modulation cancel; all share one scale.
  double scale = 1e-30;
  for (const Doubles& g : exact.gradients)
    for (const double v : g) scale = std::max(scale, std::abs(v));
  const Parameter* const parameters[6] = {&l.weight, &l.bias, &l.real, &l.imag, &l.bn_weight, &l.bn_bias};
  for (int i = 0; i < 6; ++i) {
    double worst = 0;
    for (size_t k = 0; k < exact.gradients[i].size(); ++k) {
      const double error = std::abs(got.gradients[i][k] - exact.gradients[i][k]);
      worst = error <= worst ? worst : error;
    }
    check(got.gradients[i].size() == exact.gradients[i].size() &&
              worst <= (4 * arithmetic + half_unit(parameters[i]->type)) * scale,
          name + " gradient " + std::to_string(i) + ": error " + std::to_string(worst / scale) + " of the largest");
  }

  const Maps<E> again(s, in, out, Against::kStart);
  emulation::set_order(emulation::Order::kBackward);
  emulation::set_most_blocks(2);
  check_same(run_layer(l, again, true, name), got, name + ": another order of the threads, or two blocks, changed bits");
  emulation::set_order(emulation::Order::kShuffled);
  emulation::set_most_blocks(0);
  check_same(got, run_layer(l, again, false, name), name + ": the gradients depend on whether grad_x is wanted");
}

// Every vector, position, row and column belongs to exactly one thread, and the workspace's parts do not overlap.
void test_index(const FfmShape& s) {
  const std::string name = "index of " + std::to_string(s.batch) + "x" + std::to_string(s.out_height) + "x" +
                           std::to_string(s.out_width) + ", C " + std::to_string(s.channels);
  for (const int lanes : {1, 2, 4, 8}) {
    if (s.out_width % lanes == 0) {
      const cuda::FfmPlanes p = cuda::ffm_planes(s, lanes, 8 / lanes > 2 ? 2 : 1);
      std::vector<int> seen(static_cast<size_t>(s.positions()), 0);
      for (int64_t t = 0; t < p.tiles; ++t)
        for (int64_t r = 0; r * cuda::kFfmThreads < p.per_tile; ++r)
          for (int64_t thread = 0; thread < cuda::kFfmThreads; ++thread) {
            const int64_t v = p.vector(t, r, thread);
            if (v >= p.vectors) continue;
            const cuda::FfmPosition at = p.at(v);
            for (int64_t k = 0; k < lanes; ++k) ++seen[(at.image * s.out_height + at.row) * s.out_width + at.column + k];
          }
      check(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }), name + ": planes' vectors");
      check(p.chunk <= cuda::kFfmMostChunk && (p.chunks - 1) * p.chunk < s.channels && p.chunks * p.chunk >= s.channels,
            name + ": planes' chunks");
    }
    if (s.channels % lanes == 0) {
      const cuda::FfmLast p = cuda::ffm_last(s, lanes);
      std::vector<int> channels(static_cast<size_t>(s.channels), 0), positions(static_cast<size_t>(s.positions()), 0);
      for (int64_t unit = 0; unit < p.units(); ++unit)
        for (int thread = 0; thread < cuda::kFfmThreads; ++thread) {
          const int64_t tile = unit / p.chunks, c = p.first_channel(unit % p.chunks, thread), first = tile * cuda::kFfmTile;
          if (c >= s.channels) continue;
          const int64_t count = std::min<int64_t>(cuda::kFfmTile, p.positions - first);
          for (int i = p.first(thread); i < count; i += p.step()) {
            if (first + i == 0)
              for (int v = 0; v < lanes; ++v) ++channels[c + v];
            if (c == 0) ++positions[first + i];
          }
        }
      const auto once = [](int n) { return n == 1; };
      check(std::all_of(channels.begin(), channels.end(), once) && std::all_of(positions.begin(), positions.end(), once) &&
                p.chunk <= cuda::kFfmMostChunk && cuda::kWarp % p.members == 0,
            name + ": neighbouring channels");
    }
  }
  const cuda::FfmMoments m = cuda::ffm_moments(s);
  std::vector<int> pixels(static_cast<size_t>(m.rows * s.out_width), 0);
  for (int64_t task = 0; task < m.tasks; ++task)
    for (int64_t thread = 0; thread < cuda::kFfmThreads; ++thread) {
      const int64_t row_tile = task / m.column_tiles, column = task % m.column_tiles * m.columns + thread % m.columns;
      const int64_t begin = row_tile * m.rows_per_task, end = std::min(begin + m.rows_per_task, m.rows);
      check(begin < end, name + ": a task without rows");
      if (thread / m.columns >= m.groups() || column >= s.out_width) continue;
      for (int64_t row = begin + thread / m.columns; row < end; row += m.groups()) ++pixels[row * s.out_width + column];
    }
  check(std::all_of(pixels.begin(), pixels.end(), [](int n) { return n == 1; }), name + ": moments");
  const cuda::FfmSamples q = cuda::ffm_samples(s);
  check(q.count() >= 1 && q.count() <= 256 && (q.images - 1) * q.image_step < s.batch &&
            (q.rows - 1) * q.row_step < s.out_height && (q.columns - 1) * q.column_step < s.out_width,
        name + ": samples");
}

FfmShape shape_of(int64_t b, int64_t inputs, int64_t channels, int64_t h, int64_t w, int64_t stride) {
  return {b, inputs, channels, h, w, stride, (h + stride - 1) / stride, (w + stride - 1) / stride};
}

int run(uint64_t seed, int count) {
  report_faults();
  Random random(seed);
  check(cuda::quotient((int64_t{1} << 40) + 7, 3) == ((int64_t{1} << 40) + 7) / 3 && cuda::quotient(7, int64_t{1} << 33) == 0 &&
            cuda::quotient(0xffffffff, 0xffffffff) == 1,
        "quotient");
  std::vector<FfmShape> shapes = {
      shape_of(2, 3, 4, 16, 16, 2), shape_of(1, 3, 72, 10, 48, 2), shape_of(2, 1, 6, 9, 64, 2),   shape_of(2, 5, 4, 6, 21, 1),
      shape_of(3, 3, 2, 5, 1, 2),   shape_of(1, 3, 8, 3, 300, 1),  shape_of(1, 9, 2, 3, 40, 2),   shape_of(70, 3, 8, 5, 6, 2),
      shape_of(1, 2, 4, 20, 7, 3),  shape_of(1, 1, 140, 1, 2, 1),  shape_of(1, 3, 12, 64, 64, 1),
  };
  for (int i = 0; i < count; ++i)
    shapes.push_back(shape_of(1 + random() % 3, random() % 2 ? 3 : 1 + random() % 4, 2 + 2 * (random() % 6), 1 + random() % 12,
                              1 + random() % 50, 1 + random() % 3));
  int number = 0;
  for (const FfmShape& s : shapes) {
    test_index(s);
    const Layout layouts[3] = {Layout::kContiguous, Layout::kChannelsLast, Layout::kWiderRows};
    for (int pass = 0; pass < 2; ++pass, ++number) {
      const Layout in = layouts[pass], out = layouts[number % 3];
      const bool training = s.positions() > 3 && (number / 2) % 3 != 2, plain = number % 4 < 2;
      const std::string shape = "[" + std::to_string(s.batch) + "," + std::to_string(s.inputs) + "," +
                                std::to_string(s.height) + "," + std::to_string(s.width) + "] C " + std::to_string(s.channels) +
                                " stride " + std::to_string(s.stride);
      test_layer<float>(s, in, out, training, plain, shape, random);
      test_layer<double>(s, in, in, training, plain, shape, random);
      test_layer<Float16>(s, in, out, training, plain, shape, random);
      test_layer<BFloat16>(s, in, out, training, plain, shape, random);
    }
  }
  std::printf("%zu shapes, %lld launches, seed %llu\n", shapes.size(), static_cast<long long>(emulation::launches()),
              static_cast<unsigned long long>(seed));
  return verdict();
}

}  // namespace
}  // namespace lgld::test

// lgld_cuda_ffm_tests [SEED [RANDOM SHAPES]]
int main(int argc, char** argv) {
  return lgld::test::run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20261121, argc > 2 ? std::atoi(argv[2]) : 12);
}
