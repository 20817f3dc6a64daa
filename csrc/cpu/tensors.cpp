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

Tensor allocate(const char* op, const Ints& size, const Ints& stride, ScalarType dtype, const char* consequence) {
  AtenTensorHandle handle = nullptr;
  const AOTITorchError status = aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), stride.data(),
                                                         aoti_dtype(dtype), aoti_torch_device_type_cpu(), 0, &handle);
  LGLD_CHECK(status == AOTI_TORCH_SUCCESS, op, ": a result of shape ", shape_text(size), " could not be allocated; ",
             consequence);
  const Tensor t(handle);
  const int64_t element = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
  int64_t count = element;
  for (const int64_t n : size) count *= n;
  advise_huge_pages(t, count);
  return t;
}

Tensor allocate_map(const char* op, const Tensor& like, const Ints& size, const char* consequence) {
  return allocate(op, size, map_strides(like, size), like.scalar_type(), consequence);
}

}  // namespace lgld
