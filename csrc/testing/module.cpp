// lgld_ops._testing: every compiled variant of every kernel on numpy arrays, without torch. For tests and tuning only.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "csrc/testing/testing.h"

namespace py = pybind11;

namespace lgld {
const CpuVariant& variant_named(const std::string& name) {
  const CpuVariant* variant = find_cpu_variant(name.c_str());
  if (variant == nullptr) throw std::invalid_argument("variant '" + name + "' is not in this build");
  if (!variant->supported()) throw std::invalid_argument("variant '" + name + "' needs " + variant->needs);
  return *variant;
}

namespace {

py::list variants() {
  int count = 0;
  const CpuVariant* all = cpu_variants(&count);
  py::list rows;
  for (int i = 0; i < count; ++i) rows.append(py::make_tuple(all[i].name, all[i].supported()));
  return rows;
}

template <class T, class Array>
auto strided(Array& a) {
  if (a.ndim() != 4) throw std::invalid_argument("arrays must have 4 dimensions");
  constexpr py::ssize_t size = sizeof(T);
  using Element = std::conditional_t<std::is_const_v<Array>, const T, T>;
  Element* data;
  if constexpr (std::is_const_v<Array>) {
    data = a.data();
  } else {
    data = a.mutable_data();
  }
  return Strided<Element>{data, a.strides(0) / size, a.strides(1) / size, a.strides(2) / size, a.strides(3) / size};
}

Involution2dShape shape_of(const py::dict& d) {
  const auto get = [&](const char* key) { return d[key].cast<int64_t>(); };
  const auto pair = [&](const char* key, int i) { return d[key].cast<py::tuple>()[i].cast<int64_t>(); };
  Involution2dShape s{};
  s.batch = get("batch"), s.channels = get("channels"), s.groups = get("groups");
  s.height = get("height"), s.width = get("width"), s.out_height = get("out_height"), s.out_width = get("out_width");
  s.kernel_h = pair("kernel_size", 0), s.kernel_w = pair("kernel_size", 1);
  s.stride_h = pair("stride", 0), s.stride_w = pair("stride", 1);
  s.pad_h = pair("padding", 0), s.pad_w = pair("padding", 1);
  s.dilation_h = pair("dilation", 0), s.dilation_w = pair("dilation", 1);
  return s;
}

Involution2dPass pass_named(const std::string& name) {
  if (name == "forward") return Involution2dPass::kForward;
  if (name == "grad_x") return Involution2dPass::kGradX;
  if (name == "grad_weight") return Involution2dPass::kGradWeight;
  throw std::invalid_argument("pass '" + name + "' must be forward, grad_x or grad_weight");
}

Dtype dtype_named(const std::string& name) {
  if (name == "float32") return Dtype::kFloat32;
  if (name == "float64") return Dtype::kFloat64;
  if (name == "float16") return Dtype::kFloat16;
  if (name == "bfloat16") return Dtype::kBFloat16;
  throw std::invalid_argument("dtype '" + name + "' must be float32, float64, float16 or bfloat16");
}

// Of contiguous NCHW operands and results.
Involution2dPlan plan_for(const std::string& variant, const std::string& pass, const py::dict& shape,
                          const std::string& dtype) {
  return plan_involution2d(shape_of(shape), pass_named(pass), *variant_named(variant).involution2d,
                           {dtype_named(dtype), false, true, true, true});
}

template <class T>
void involution2d(const std::string& variant, const std::string& pass, const py::array_t<T> a, const py::array_t<T> b,
                  py::array_t<T> out, py::array_t<uint8_t> scratch, const py::dict& shape, int64_t begin, int64_t end) {
  const Involution2dPlan plan = plan_for(variant, pass, shape, std::is_same_v<T, double> ? "float64" : "float32");
  if (scratch.nbytes() < plan.scratch_bytes) throw std::invalid_argument("scratch is smaller than the plan's scratch_bytes");
  if (reinterpret_cast<uintptr_t>(scratch.data()) % 64 != 0) throw std::invalid_argument("scratch must be aligned to 64 bytes");
  if (begin < 0 || end > plan.tasks) throw std::invalid_argument("tasks must be within the plan's");
  select<T>(*variant_named(variant).involution2d, pass_named(pass))(plan, strided<T>(a), strided<T>(b), strided<T>(out), begin,
                                                                    end, scratch.mutable_data());
}

}  // namespace

PYBIND11_MODULE(_testing, m) {
  m.doc() = "Every compiled variant of every kernel on numpy arrays, without torch.";
  m.def("variants", &variants, "[(name, whether this machine runs it)], the fastest first");
  m.def(
      "plan",
      [](const std::string& variant, const std::string& pass, const py::dict& shape, const std::string& dtype) {
        const Involution2dPlan p = plan_for(variant, pass, shape, dtype);
        using namespace py::literals;
        return py::dict("tasks"_a = p.tasks, "scratch_bytes"_a = p.scratch_bytes, "row_tile"_a = p.row_tile,
                        "col_tile"_a = p.col_tile, "dense"_a = p.dense);
      },
      py::arg("variant"), py::arg("pass_name"), py::arg("shape"), py::arg("dtype") = "float32");
  const auto define = [&](auto zero) {
    using T = decltype(zero);
    m.def("involution2d", &involution2d<T>, py::arg("variant"), py::arg("pass_name"), py::arg("a").noconvert(),
          py::arg("b").noconvert(), py::arg("out").noconvert(), py::arg("scratch").noconvert(), py::arg("shape"),
          py::arg("begin"), py::arg("end"), "Run tasks [begin, end) of one pass into `out`.");
  };
  define(0.0f);
  define(0.0);
  define_lgldnet(m);
}

}  // namespace lgld
