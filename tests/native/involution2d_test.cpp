// Every compiled variant of the involution kernels that this machine runs, against the defining sum in wider arithmetic.
//
// Every operand, result and scratch memory stands against a forbidden page, results start as NaN, tasks run whole, one by one
// backwards and in shuffled pieces (equal to the last bit), and operands come as views of all kinds that a caller may hold. No
// arithmetic is done on scratch memory that was not written: what stands there by chance may be subnormal numbers, which take
// some processors a hundred times as long. So the scratch starts as signalling NaN, whose use leaves a flag.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "guarded.h"
#include "signals.h"
#include "variants.h"

namespace lgld::test {
namespace {

// --- shapes -----------------------------------------------------------------------------------------------------------

std::string describe(const Involution2dShape& s) {
  char text[256];
  std::snprintf(text, sizeof(text),
                "x [%lld,%lld,%lld,%lld] groups %lld kernel %lldx%lld stride %lld,%lld padding %lld,%lld dilation %lld,%lld",
                static_cast<long long>(s.batch), static_cast<long long>(s.channels), static_cast<long long>(s.height),
                static_cast<long long>(s.width), static_cast<long long>(s.groups), static_cast<long long>(s.kernel_h),
                static_cast<long long>(s.kernel_w), static_cast<long long>(s.stride_h), static_cast<long long>(s.stride_w),
                static_cast<long long>(s.pad_h), static_cast<long long>(s.pad_w), static_cast<long long>(s.dilation_h),
                static_cast<long long>(s.dilation_w));
  return text;
}

// Fills in the result's size; false where the window does not fit into the padded map.
bool complete(Involution2dShape& s) {
  const int64_t rows = s.height + 2 * s.pad_h - (s.kernel_h - 1) * s.dilation_h - 1;
  const int64_t columns = s.width + 2 * s.pad_w - (s.kernel_w - 1) * s.dilation_w - 1;
  if (rows < 0 || columns < 0) return false;
  s.out_height = rows / s.stride_h + 1;
  s.out_width = columns / s.stride_w + 1;
  return true;
}

Involution2dShape square(int64_t batch, int64_t channels, int64_t groups, int64_t height, int64_t width, int64_t kernel,
                         int64_t stride, int64_t padding, int64_t dilation) {
  Involution2dShape s{batch,  channels, groups, height,  width,   0,        0,       kernel,
                      kernel, stride,   stride, padding, padding, dilation, dilation};
  if (!complete(s)) std::abort();
  return s;
}

// The same with other padding.
Involution2dShape padded(Involution2dShape s, int64_t pad_h, int64_t pad_w) {
  s.pad_h = pad_h, s.pad_w = pad_w;
  if (!complete(s)) std::abort();
  return s;
}

std::vector<Involution2dShape> chosen_shapes() {
  std::vector<Involution2dShape> shapes = {
      square(0, 4, 1, 5, 5, 3, 1, 1, 1),    // empty batch
      square(1, 1, 1, 1, 1, 1, 1, 0, 1),    // one pixel
      square(2, 5, 5, 1, 1, 7, 1, 3, 1),    // a window much larger than the map, a group per channel
      square(1, 3, 1, 2, 2, 3, 1, 9, 4),    // most outputs see nothing but padding
      square(1, 2, 1, 9, 9, 2, 5, 0, 3),    // a stride that skips pixels
      square(1, 66, 2, 6, 17, 3, 1, 1, 1),  // 33 channels a group: a remainder behind every block of channels
      square(1, 40, 1, 5, 9, 5, 2, 2, 2),
      square(1, 4, 1, 19, 261, 3, 1, 1, 1),  // several tiles of columns and of rows, the
                                             // last ones small
      square(1, 2, 1, 37, 150, 5, 1, 2, 1),
      square(1, 2, 1, 19, 300, 7, 2, 3, 1),
      square(1, 3, 1, 11, 300, 3, 3, 4, 2),
      square(3, 6, 3, 23, 31, 7, 1, 3, 1),
      // Whole tiles that lie in the padding altogether.
      padded(square(1, 3, 1, 3, 5, 3, 1, 1, 1), 1, 150),
      padded(square(1, 3, 1, 3, 5, 3, 1, 1, 1), 60, 0),
      padded(square(1, 2, 1, 2, 4, 7, 1, 3, 1), 12, 140),
      padded(square(1, 2, 1, 5, 3, 3, 2, 1, 1), 3, 290),
      padded(square(1, 9, 1, 4, 6, 3, 7, 90, 90), 95, 200),
      padded(square(1, 1, 1, 1, 5, 3, 1, 1, 1), 1, 200),
      padded(square(1, 5, 1, 2, 3, 2, 1, 1, 1), 0, 170),
      padded(square(1, 2, 1, 3, 4, 4, 2, 6, 3), 7, 300),
  };
  for (int64_t kernel : {3, 5, 7})  // every width around the lengths of all vectors
    for (int64_t width = 1; width <= 35; ++width)
      shapes.push_back(square(1, 1 + width % 9, 1, 1 + width % 7, width, kernel, 1, kernel / 2, 1));
  return shapes;
}

Involution2dShape random_shape(Random& random) {
  const bool dense = pick(random, 0, 2) == 0;  // the kernel sizes with code of their own come often enough
  for (;;) {
    Involution2dShape s{};
    s.groups = pick(random, 1, 3);
    s.batch = pick(random, 1, 3);
    s.channels = s.groups * pick(random, 1, pick(random, 0, 4) == 0 ? 35 : 9);
    s.height = pick(random, 1, 20);
    s.width = pick(random, 1, pick(random, 0, 5) == 0 ? 140 : 40);
    s.kernel_h = dense ? 3 + 2 * pick(random, 0, 2) : pick(random, 1, 7);
    s.kernel_w = dense ? s.kernel_h : pick(random, 1, 7);
    s.stride_h = dense ? pick(random, 0, 3) / 3 + 1 : pick(random, 1, 4), s.stride_w = dense ? s.stride_h : pick(random, 1, 4);
    s.dilation_h = dense ? 1 : pick(random, 1, 4), s.dilation_w = dense ? 1 : pick(random, 1, 4);
    s.pad_h = pick(random, 0, 6), s.pad_w = pick(random, 0, 6);
    if (s.batch * s.channels * (s.height + 2 * s.pad_h) * (s.width + 2 * s.pad_w) * s.kernel_h * s.kernel_w < 2000000 &&
        complete(s))
      return s;
  }
}

// --- operands ---------------------------------------------------------------------------------------------------------

struct Size {
  int64_t n[4];
  int64_t count() const { return n[0] * n[1] * n[2] * n[3]; }
};

Size x_size(const Involution2dShape& s) { return {{s.batch, s.channels, s.height, s.width}}; }
Size y_size(const Involution2dShape& s) { return {{s.batch, s.channels, s.out_height, s.out_width}}; }
Size weight_size(const Involution2dShape& s) { return {{s.batch, s.groups * s.taps(), s.out_height, s.out_width}}; }

Size result_size(const Involution2dShape& s, Involution2dPass pass) {
  return pass == Involution2dPass::kForward ? y_size(s) : pass == Involution2dPass::kGradX ? x_size(s) : weight_size(s);
}

// Values of an NCHW tensor in order.
template <class T>
using Values = std::vector<T>;

// How tests see elements: 16-bit ones as the floats that they stand for.
template <class S>
Compute<S> value_of(S element) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    return element;
  } else {
    return widen(element);
  }
}

template <class S>
S element_of(Compute<S> value) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    return value;
  } else {
    return narrow(value, S{});
  }
}

enum class View { kContiguous, kWiderRows, kMoreChannels, kChannelsLast, kEveryOtherColumn, kExpandedBatch, kExpandedChannels };
constexpr View kAnyViews[] = {View::kContiguous,       View::kWiderRows,     View::kMoreChannels,    View::kChannelsLast,
                              View::kEveryOtherColumn, View::kExpandedBatch, View::kExpandedChannels};

// Strides in elements, outermost first.
void strides_of(View view, const Size& size, int64_t (&stride)[4]) {
  const int64_t column = view == View::kEveryOtherColumn ? 2 : 1;
  const int64_t row = size.n[3] * column + (view == View::kWiderRows ? 3 : 0);
  const int64_t plane = size.n[2] * row + (view == View::kMoreChannels ? 2 * row + 1 : 0);
  stride[3] = column, stride[2] = row, stride[1] = plane, stride[0] = size.n[1] * plane;
  if (view == View::kChannelsLast)
    stride[1] = 1, stride[3] = size.n[1], stride[2] = size.n[1] * size.n[3], stride[0] = size.n[2] * stride[2];
  if (view == View::kExpandedBatch) stride[0] = 0;
  if (view == View::kExpandedChannels) stride[1] = 0;
}

// A tensor in guarded memory. Elements that belong to the memory but not to the view are NaN and must neither reach a result
// nor be written.
template <class T>
class Operand {
 public:
  Operand(const Size& size, View view, Against end) : size_(size) {
    strides_of(view, size, stride_);
    extent_ = size.count() == 0 ? 0 : 1;
    for (int d = 0; d < 4 && extent_ > 0; ++d) extent_ += (size.n[d] - 1) * stride_[d];
    memory_ = std::make_unique<Guarded>(static_cast<size_t>(extent_) * sizeof(T), sizeof(T), end);
  }

  // Writes the values, rounded; where the view repeats elements the last one written stays. See read().
  void fill(const Values<Compute<T>>& values) {
    each([&](int64_t i, T& element) { element = element_of<T>(values[static_cast<size_t>(i)]); });
  }

  Values<Compute<T>> read() const {
    Values<Compute<T>> values(static_cast<size_t>(size_.count()));
    each([&](int64_t i, T& element) { values[static_cast<size_t>(i)] = value_of(element); });
    return values;
  }

  // Whether nothing outside the view was written.
  bool intact() const {
    std::vector<bool> mine(static_cast<size_t>(extent_), false);
    each([&](int64_t, T& element) { mine[static_cast<size_t>(&element - data())] = true; });
    for (int64_t i = 0; i < extent_; ++i)
      if (!mine[static_cast<size_t>(i)] && !std::isnan(value_of(data()[i]))) return false;
    return memory_->intact();
  }

  Strided<const T> in() const { return {data(), stride_[0], stride_[1], stride_[2], stride_[3]}; }
  Strided<T> out() const { return {data(), stride_[0], stride_[1], stride_[2], stride_[3]}; }

 private:
  T* data() const { return static_cast<T*>(memory_->data()); }

  template <class F>
  void each(F f) const {
    int64_t i = 0;
    for (int64_t b = 0; b < size_.n[0]; ++b)
      for (int64_t c = 0; c < size_.n[1]; ++c)
        for (int64_t h = 0; h < size_.n[2]; ++h)
          for (int64_t w = 0; w < size_.n[3]; ++w)
            f(i++, data()[b * stride_[0] + c * stride_[1] + h * stride_[2] + w * stride_[3]]);
  }

  Size size_;
  int64_t stride_[4], extent_;
  std::unique_ptr<Guarded> memory_;
};

// --- the defining sum -------------------------------------------------------------------------------------------------

// sum and error together hold a sum of products as if computed in twice double's precision and never rounded to it
// (T. Ogita, S. Rump, S. Oishi, "Accurate sum and dot product", 2005, algorithm 5.3).
struct Exact {
  double sum = 0, error = 0;
  double magnitude = 0;  // sum of the absolute values of the products
  int terms = 0;
  void add(double a, double b) {
    const double product = a * b, before = sum;
    sum = before + product;
    const double back = sum - before;
    error += ((before - (sum - back)) + (product - back)) + std::fma(a, b, -product);
    magnitude += std::abs(product);
    ++terms;
  }
};
using Expected = std::vector<Exact>;

// Calls f(y index, weight index, x index) for every product of the involution; all three passes sum such products.
template <class F>
void each_product(const Involution2dShape& s, F f) {
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t c = 0; c < s.channels; ++c)
      for (int64_t i = 0; i < s.out_height; ++i)
        for (int64_t j = 0; j < s.out_width; ++j)
          for (int64_t u = 0; u < s.kernel_h; ++u)
            for (int64_t v = 0; v < s.kernel_w; ++v) {
              const int64_t row = i * s.stride_h - s.pad_h + u * s.dilation_h,
                            column = j * s.stride_w - s.pad_w + v * s.dilation_w;
              if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
              const int64_t group = c / (s.channels / s.groups);
              const int64_t tap = group * s.kernel_h * s.kernel_w + u * s.kernel_w + v;
              f(((b * s.channels + c) * s.out_height + i) * s.out_width + j,
                ((b * s.groups * s.kernel_h * s.kernel_w + tap) * s.out_height + i) * s.out_width + j,
                ((b * s.channels + c) * s.height + row) * s.width + column);
            }
}

// `a` and `b` in the order of the kernels' arguments.
template <class T>
Expected expect(const Involution2dShape& s, Involution2dPass pass, const Values<T>& a, const Values<T>& b) {
  Expected result(static_cast<size_t>(result_size(s, pass).count()));
  const auto add = [&](int64_t at, int64_t i, int64_t j) {
    result[static_cast<size_t>(at)].add(a[static_cast<size_t>(i)], b[static_cast<size_t>(j)]);
  };
  if (pass == Involution2dPass::kForward) {
    each_product(s, [&](int64_t y, int64_t weight, int64_t x) { add(y, x, weight); });
  } else if (pass == Involution2dPass::kGradX) {
    each_product(s, [&](int64_t y, int64_t weight, int64_t x) { add(x, y, weight); });
  } else {
    each_product(s, [&](int64_t y, int64_t weight, int64_t x) { add(weight, y, x); });
  }
  return result;
}

// A sum of n products in any order, fused or not, is off by at most n u / (1 - n u) times the sum of the products' magnitudes,
// u being half the distance from 1 to the next number (N. Higham, Accuracy and Stability of Numerical Algorithms, 3.1). A
// 16-bit result is that sum rounded once more: by half a unit in its last place or half of the smallest subnormal.
template <class S>
int64_t count_wrong(const Values<Compute<S>>& values, const Expected& expected) {
  constexpr double u = std::numeric_limits<Compute<S>>::epsilon() / 2;
  constexpr double rounding = std::is_same_v<S, Float16> ? 0x1p-11 : std::is_same_v<S, BFloat16> ? 0x1p-8 : 0;
  constexpr double subnormal = std::is_same_v<S, Float16> ? 0x1p-25 : 0;
  int64_t wrong = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const Exact& e = expected[i];
    double bound = e.terms * u / (1 - e.terms * u) * e.magnitude;
    bound += rounding * (std::abs(e.sum) + bound) + subnormal;
    if (!(std::abs((values[i] - e.sum) - e.error) <= bound * (1 + 1e-9))) ++wrong;  // a NaN is wrong, too
  }
  return wrong;
}

// --- running ----------------------------------------------------------------------------------------------------------

struct Pass {
  Involution2dPass pass;
  const char* name;
};
constexpr Pass kPasses[] = {{Involution2dPass::kForward, "forward"},
                            {Involution2dPass::kGradX, "grad_x"},
                            {Involution2dPass::kGradWeight, "grad_weight"}};

using Pieces = std::vector<std::pair<int64_t, int64_t>>;

// Ways to share out the same tasks: all at once, one by one from the last to the first, pieces of any length in any order.
std::vector<Pieces> ways_to_share(int64_t tasks, Random& random) {
  Pieces backwards, shuffled;
  for (int64_t t = tasks; t-- > 0;) backwards.emplace_back(t, t + 1);
  for (int64_t begin = 0; begin < tasks;) {
    const int64_t end = std::min(tasks, begin + pick(random, 1, 5));
    shuffled.emplace_back(begin, end);
    begin = end;
  }
  std::shuffle(shuffled.begin(), shuffled.end(), random);
  return {{{0, tasks}}, backwards, shuffled};
}

template <class T>
constexpr const char* kDtypeName = std::is_same_v<T, double>     ? " float64 "
                                   : std::is_same_v<T, Float16>  ? " float16 "
                                   : std::is_same_v<T, BFloat16> ? " bfloat16 "
                                                                 : " float32 ";

template <class T>
void test_pass(const CpuVariant& variant, const Involution2dShape& s, const Pass& pass, const Operand<T>& a,
               const Operand<T>& b, const Expected& expected, const std::string& name, Random& random) {
  const bool grad_weight = pass.pass == Involution2dPass::kGradWeight;
  const Strided<const T> map = grad_weight ? b.in() : a.in(), other = grad_weight ? a.in() : b.in();
  const bool channels_last = map.channel == 1 && map.column != 1;
  const Size size = result_size(s, pass.pass);
  // What lies next to each other in the map does so in the result of forward and grad_x; kernel gradients may lie in any way.
  const bool result_last = grad_weight ? pick(random, 0, 1) == 1 : channels_last;
  constexpr View kResultViews[] = {View::kContiguous, View::kWiderRows, View::kMoreChannels};
  Values<Compute<T>> first;
  int way = 0;
  Involution2dPlan plan{};
  // The plan depends on the strides of the result, so the first result settles them for the task list.
  const auto make_plan = [&](const Strided<T>& out) {
    return plan_involution2d(s, pass.pass, *variant.involution2d,
                             {kDtype<T>, channels_last, map.column == 1, other.column == 1, out.column == 1,
                              other.channel == 1 && other.column != 1});
  };
  const Operand<T> probe(size, result_last ? View::kChannelsLast : View::kContiguous, Against::kEnd);
  for (const Pieces& pieces : ways_to_share(make_plan(probe.out()).tasks, random)) {
    const Against end = way % 2 == 0 ? Against::kEnd : Against::kStart;
    const Operand<T> out(size, result_last ? View::kChannelsLast : kResultViews[way % 3], end);
    plan = make_plan(out.out());
    const Guarded scratch(static_cast<size_t>(plan.scratch_bytes), 64, end);
    fill_with_signals<T>(scratch, static_cast<size_t>(plan.scratch_bytes));
    for (const auto& [from, to] : pieces)
      select<T>(*variant.involution2d, pass.pass)(plan, a.in(), b.in(), out.out(), from, to, scratch.data());
    check(!signalled(), name + ": arithmetic on scratch memory that was not written");
    check(out.intact(), name + ": memory beside the result was written");
    check(scratch.intact(), name + ": memory beside the scratch was written");
    const Values<Compute<T>> values = out.read();
    const int64_t wrong = count_wrong<T>(values, expected);
    check(wrong == 0, name + ": " + std::to_string(wrong) + " of " + std::to_string(values.size()) + " elements are wrong");
    if (way++ == 0) first = values;
    check(values.empty() || std::memcmp(values.data(), first.data(), values.size() * sizeof(first[0])) == 0,
          name + ": another order of the tasks changed bits of the result");
  }
}

// In views of any kind, or in `given`.
template <class T>
void test_shape(const Involution2dShape& s, Random& random, const View* given = nullptr) {
  std::normal_distribution<Compute<T>> normal;
  const auto values_for = [&](const Size& size) {
    Values<Compute<T>> values(static_cast<size_t>(size.count()));
    for (auto& value : values) value = normal(random);
    return values;
  };
  const auto view = [&] { return given != nullptr ? *given : kAnyViews[pick(random, 0, std::size(kAnyViews) - 1)]; };
  for (const Pass& pass : kPasses) {
    const Size a_size = pass.pass == Involution2dPass::kForward ? x_size(s) : y_size(s);
    const Size b_size = pass.pass == Involution2dPass::kGradWeight ? x_size(s) : weight_size(s);
    const View a_view = view(), b_view = view();
    const Values<Compute<T>> a_values = values_for(a_size), b_values = values_for(b_size);
    std::unique_ptr<Expected> expected;  // from the values that the view holds: an expanded one repeats some
    for (const Against end : {Against::kStart, Against::kEnd}) {
      Operand<T> a(a_size, a_view, end), b(b_size, b_view, end);
      a.fill(a_values), b.fill(b_values);
      if (expected == nullptr) expected = std::make_unique<Expected>(expect(s, pass.pass, a.read(), b.read()));
      int count = 0;
      const CpuVariant* variants = cpu_variants(&count);
      for (int v = 0; v < count; ++v) {
        if (!variants[v].supported()) continue;
        const std::string name = std::string(variants[v].name) + kDtypeName<T> + pass.name + " " + describe(s) + " views " +
                                 std::to_string(static_cast<int>(a_view)) + "," + std::to_string(static_cast<int>(b_view)) +
                                 (end == Against::kStart ? " at the start" : " at the end");
        running(name.c_str());
        test_pass(variants[v], s, pass, a, b, *expected, name, random);
      }
    }
  }
}

// --- the table of variants --------------------------------------------------------------------------------------------

int test_table() {
  int count = 0, runs = 0;
  const CpuVariant* variants = cpu_variants(&count);
  const CpuVariant* first = nullptr;
  for (int i = 0; i < count; ++i) {
    const CpuVariant& v = variants[i];
    const std::string name = v.name;
    check(find_cpu_variant(v.name) == &v, name + ": not found by its name");
    std::printf("variant %s: %s\n", v.name, v.supported() ? "runs" : "not on this machine");
    if (!v.supported()) continue;
    if (first == nullptr) first = &v;
    ++runs;
    float sink_f32 = 0;
    double sink_f64 = 0;
    running((name + " probe").c_str());
    check(v.probe->multiply_adds_f32(100, &sink_f32) > 0 && std::isfinite(sink_f32), name + ": float32 probe");
    check(v.probe->multiply_adds_f64(100, &sink_f64) > 0 && std::isfinite(sink_f64), name + ": float64 probe");
  }
  check(count > 0 && std::string(variants[count - 1].name) == "scalar", "the scalar variant is the last");
  check(first != nullptr && best_cpu_variant() == first, "the best variant is the first that runs");
  check(find_cpu_variant("mmx") == nullptr, "an unknown name finds no variant");
  return runs;
}

// Which shapes are transposed for the kernels whose vectors are channels.
template <class T>
void test_transposes() {
  int count = 0;
  const CpuVariant* variants = cpu_variants(&count);
  for (int v = 0; v < count; ++v) {
    if (!variants[v].supported()) continue;
    const auto transposes = [&](const Involution2dShape& s, bool channels_last, bool expected) {
      for (const Pass& pass : kPasses) {
        const Involution2dPlan p = plan_involution2d(s, pass.pass, *variants[v].involution2d,
                                                     {kDtype<T>, channels_last, !channels_last, true, !channels_last});
        const std::string name = std::string(variants[v].name) + kDtypeName<T> + pass.name + " " + describe(s);
        check(p.transposes == (expected && pass.pass != Involution2dPass::kGradWeight), name + ": another kernel than meant");
      }
    };
    transposes(square(1, 48, 2, 7, 8, 7, 1, 3, 1), false, true);    // few columns
    transposes(square(1, 48, 2, 99, 99, 5, 2, 2, 1), false, true);  // a stride
    transposes(square(1, 48, 2, 99, 99, 5, 1, 4, 2), false, true);  // a dilation
    transposes(square(1, 48, 2, 99, 99, 7, 1, 3, 1), false, false);
    transposes(square(1, 48, 2, 7, 7, 3, 1, 1, 1), false, false);  // few taps
    transposes(square(1, 48, 2, 7, 7, 7, 1, 3, 1), true, false);
    transposes(square(1, 64, 1, 2100, 2100, 5, 1, 0, 512), false, false);  // a map of hundreds of MB under a tile
  }
}

int run(uint64_t seed, int random_shapes) {
  report_faults();
  const int variants = test_table();
  check(variants > 0, "no variant ran on this machine");
  test_transposes<float>();
  test_transposes<double>();
  test_transposes<Float16>();
  test_transposes<BFloat16>();
  Random random(seed);
  std::vector<Involution2dShape> shapes = chosen_shapes();
  for (int i = 0; i < random_shapes; ++i) shapes.push_back(random_shape(random));
  for (const Involution2dShape& s : shapes) {
    test_shape<float>(s, random);
    test_shape<double>(s, random);
    test_shape<Float16>(s, random);
    test_shape<BFloat16>(s, random);
  }
  const auto every_dtype = [&](const Involution2dShape& s, View view) {
    test_shape<float>(s, random, &view);
    test_shape<double>(s, random, &view);
    test_shape<Float16>(s, random, &view);
    test_shape<BFloat16>(s, random, &view);
  };
  // Groups of several vectors of neighbouring channels have kernels of their own, and so have maps of up to a vector of
  // columns, whose 16-bit weights are widened once for several blocks of channels.
  for (const View view : {View::kChannelsLast, View::kContiguous})
    for (const int64_t k : {3, 5, 7})
      for (const int64_t width : {1, 7, 14, 19})
        every_dtype({1, 134, 2, 5, width, 5, width, k, k, 1, 1, k / 2, k / 2, 1, 1}, view);
  // Few neighbouring channels a group: lanes are taps of two pixels, whose windows begin 8 columns apart, 1 to 3 rows at a
  // time.
  for (const int64_t stride : {1, 2})
    for (const int64_t k : {5, 7})
      for (const int64_t width : {4, 14, 27})
        for (const int64_t rows : {1, 5})
          every_dtype(square(1, 10, 2, stride * rows, stride * width, k, stride, k / 2, 1), View::kChannelsLast);
  // Planes that are transposed for those kernels, since they have few columns, a stride or a dilation: whole rows with nothing
  // between them or something, several tiles, every length of a row of taps.
  for (const View view : {View::kContiguous, View::kWiderRows, View::kMoreChannels})
    for (const int64_t k : {5, 7})
      for (const int64_t width : {1, 5, 7, 8}) {
        every_dtype(square(1, 48, 2, 4, width, k, 1, k / 2, 1), view);
        for (const int64_t stride : {2, 3}) every_dtype(square(1, 32, 2, 5, stride * width, k, stride, k / 2, 1), view);
      }
  for (const View view : {View::kContiguous, View::kWiderRows, View::kEveryOtherColumn}) {
    every_dtype(square(1, 12, 1, 39, 21, 5, 1, 4, 2), view);
    every_dtype(padded(square(1, 16, 1, 3, 271, 5, 2, 2, 1), 1, 30), view);
  }
  // Gradients of the map whose even and odd columns are computed apart: an odd one missing, whole vectors and parts.
  for (const int64_t width : {1, 2, 7, 16, 31, 33, 64}) every_dtype(square(1, 9, 1, 6, width, 3, 2, 1, 1), View::kContiguous);
  // Neighbouring channels read in place: tasks of several groups, the last of fewer.
  for (const int64_t groups : {10, 19})
    for (const int64_t stride : {1, 2})
      for (const int64_t k : {3, 7})
        every_dtype(square(1, 2 * groups, groups, 6, 13, k, stride, k / 2, 1), View::kChannelsLast);
  // More weights in 16 bit than a task packs at a time.
  const View contiguous = View::kContiguous;
  test_shape<BFloat16>(square(12, 32, 1, 9, 81, 7, 1, 3, 1), random, &contiguous);
  // More channels a group than 16-bit gradients of the weights are summed of in one go.
  every_dtype({1, 130, 1, 3, 18, 3, 18, 5, 5, 1, 1, 2, 2, 1, 1}, View::kContiguous);
  // Rows of whole cache lines, several tiles side by side: windows from aligned loads, masked at the border alone.
  for (const int64_t width : {48, 64}) {
    const Involution2dShape s = square(1, 8, 1, 9, width, 3, 1, 1, 1);
    test_shape<float>(s, random, &contiguous);
    test_shape<double>(s, random, &contiguous);
  }
  std::printf("%zu shapes, %d variants, seed %llu\n", shapes.size(), variants, static_cast<unsigned long long>(seed));
  return verdict(variants > 0);
}

}  // namespace
}  // namespace lgld::test

// lgld_native_tests [SEED [RANDOM_SHAPES]]
int main(int argc, char** argv) {
  return lgld::test::run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20261121, argc > 2 ? std::atoi(argv[2]) : 120);
}
