#include "csrc/cpu/tensors.h"

#include <sys/mman.h>
#include <torch/csrc/stable/ops.h>

namespace lgld {
namespace {

// glibc maps every block of more than 32 MiB afresh, and the first touch of each 4 KiB page costs a fault: 25,000 of them, some
// 50 ms, for a result of 100 MiB. Asking for 2 MiB pages makes that 50. Advice only: the kernel may decline.
void advise_huge_pages(const Tensor& t, int64_t bytes) {
  constexpr int64_t kHugePage = int64_t{2} << 20, kMappedAfresh = int64_t{32} << 20;
  if (bytes < kMappedAfresh) return;
  const auto begin = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, last = (begin + bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

}  // namespace

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

Tensor allocate(const char* op, const Ints& size, const Ints& stride, ScalarType dtype, const char* consequence) {
  const int32_t code = dtype == ScalarType::Double     ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Half     ? aoti_torch_dtype_float16()
                       : dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                                                       : aoti_torch_dtype_float32();
  AtenTensorHandle handle = nullptr;
  const AOTITorchError status = aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), stride.data(), code,
                                                         aoti_torch_device_type_cpu(), 0, &handle);
  LGLD_CHECK(status == AOTI_TORCH_SUCCESS, op, ": a result of shape ", shape_text(size), " could not be allocated; ",
             consequence);
  const Tensor t(handle);
  const int64_t element = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
  int64_t count = element;
  for (const int64_t n : size) count *= n;
  advise_huge_pages(t, count);
  return t;
}

bool is_channels_last(const Tensor& t) { return t.size(1) > 1 && t.stride(1) == 1 && t.stride(3) != 1; }

Tensor allocate_map(const char* op, const Tensor& like, const Ints& size, const char* consequence) {
  const int64_t channels = size[1], height = size[2], width = size[3];
  const Ints stride = is_channels_last(like) ? Ints{channels * height * width, 1, channels * width, channels}
                                             : Ints{channels * height * width, height * width, width, 1};
  return allocate(op, size, stride, like.scalar_type(), consequence);
}

}  // namespace lgld
