#include "csrc/tensors.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace lgld {

std::string shape_text(const Ints& size) {
  std::string text = "[";
  for (size_t d = 0; d < size.size(); ++d) text += (d ? ", " : "") + std::to_string(size[d]);
  return text + "]";
}

std::string shape_of(const Tensor& t) {
  Ints size;
  for (int64_t d = 0; d < t.dim(); ++d) size.push_back(t.size(d));
  return shape_text(size);
}

const char* dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    default: return "an integer, boolean, complex or other dtype";
  }
}

std::optional<Dtype> kernel_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    default: return std::nullopt;
  }
}

Place cuda_place(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (t->is_cuda()) return {true, static_cast<int32_t>(t->get_device_index())};
  return {true, 0};
}

void check_kind(const char* op, const char* name, const Tensor& t, Place place) {
  if (place.cuda) {
    LGLD_CHECK(t.is_cuda() && t.get_device_index() == place.index, op, ": ", name, " must be on cuda:", place.index,
               ", like the other arguments");
  } else {
    LGLD_CHECK(t.is_cpu(), op, ": ", name, " must be on the CPU, like the other arguments");
  }
  LGLD_CHECK(kernel_dtype(t.scalar_type()), op, ": ", name, " must be float32, float64, float16 or bfloat16, but is ",
             dtype_of(t));
}

bool is_channels_last(const Tensor& t) { return t.size(1) > 1 && t.stride(1) == 1 && t.stride(3) != 1; }

Ints map_strides(const Tensor& like, const Ints& size) {
  const int64_t channels = size[1], height = size[2], width = size[3];
  return is_channels_last(like) ? Ints{channels * height * width, 1, channels * width, channels}
                                : Ints{channels * height * width, height * width, width, 1};
}

Geometry contiguous_like(const std::optional<Tensor>& t) {
  if (!t) return {{0}, {1}};
  const size_t dims = static_cast<size_t>(t->dim());
  Geometry g{Ints(dims), Ints(dims)};
  int64_t step = 1;
  for (size_t d = dims; d-- > 0;) {
    g.size[d] = t->size(static_cast<int64_t>(d));
    g.stride[d] = step;
    step *= g.size[d];
  }
  return g;
}

int32_t aoti_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return aoti_torch_dtype_float64();
    case ScalarType::Half: return aoti_torch_dtype_float16();
    case ScalarType::BFloat16: return aoti_torch_dtype_bfloat16();
    default: return aoti_torch_dtype_float32();
  }
}

}  // namespace lgld
