// What the ops of the fused network check and allocate.
#pragma once
#include "csrc/cpu/tensors.h"
#include "kernels/cpu/lgldnet/lgldnet.h"

namespace lgld {
namespace {

constexpr int64_t kMostPixels = int64_t{1} << 28, kMostChannels = 4096;

// A contiguous result of float32.
inline Tensor empty_floats(const char* op, const Ints& size) {
  Ints stride(size.size(), 1);
  for (size_t d = size.size() - 1; d-- > 0;) stride[d] = stride[d + 1] * size[d + 1];
  return allocate(op, size, stride, ScalarType::Float, "its size follows from x, base_channels and num_classes");
}

// `name` is an image or a map of a batch; 2^31 and more images would need more turns than a counter of tasks has.
inline void check_images(const char* op, const char* name, const Tensor& x) {
  LGLD_CHECK(x.is_cpu(), op, ": ", name, " must be on the CPU");
  LGLD_CHECK(x.dim() == 4, op, ": ", name, " must have 4 dimensions, [batch, channels, height, width], but has shape ",
             shape_of(x));
  LGLD_CHECK(x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1, op, ": ", name,
             " must have at least one channel, row and column, but has shape ", shape_of(x));
  LGLD_CHECK(x.size(0) < int64_t{1} << 31, op, ": ", name, " must hold less than 2^31 images, but has shape ", shape_of(x));
}

inline void check_parameters(const char* op, const Tensor& parameters, const LgldnetGeometry& g) {
  LGLD_CHECK(parameters.is_cpu(), op, ": parameters must be on the CPU");
  LGLD_CHECK(g.height < kMostPixels && g.width < kMostPixels && g.height * g.width <= kMostPixels, op,
             ": x must have at most 2^28 pixels an image, but has ", g.height, " x ", g.width);
  LGLD_CHECK(g.channels >= 4 && g.channels % 4 == 0 && g.channels <= kMostChannels, op,
             ": base_channels must be a multiple of 4 from 4 to ", kMostChannels, ", but is ", g.channels);
  LGLD_CHECK(g.classes >= 1 && g.classes < kMostPixels, op, ": num_classes must be at least 1 and less than 2^28, but is ",
             g.classes);
  LGLD_CHECK(g.in_channels >= 1 && g.in_channels <= kMostChannels, op, ": an image must have from 1 to ", kMostChannels,
             " channels, but has ", g.in_channels);
  const int64_t count = lgldnet_parameters(g.in_channels, g.channels, g.classes).count;
  LGLD_CHECK(parameters.scalar_type() == ScalarType::Float, op, ": parameters must be float32, but is ", dtype_of(parameters));
  LGLD_CHECK(parameters.dim() == 1 && parameters.size(0) == count && (count < 2 || parameters.stride(0) == 1), op,
             ": parameters must be contiguous with shape [", count, "] for ", g.in_channels, " image channels, base_channels ",
             g.channels, " and num_classes ", g.classes, ", but has shape ", shape_of(parameters));
}

// The geometry of images [batch, in_channels, height, width], float32 or uint8.
inline LgldnetGeometry check_image(const char* op, const Tensor& x, const Tensor& parameters, int64_t channels,
                                   int64_t classes) {
  check_images(op, "x", x);
  LGLD_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Byte, op,
             ": x must be float32, or uint8 with 255 for 1.0, but is ", dtype_of(x));
  const LgldnetGeometry g{x.size(1), channels, classes, x.size(2), x.size(3)};
  check_parameters(op, parameters, g);
  return g;
}

inline LgldnetImage image_of(const Tensor& x, int64_t index) {
  const bool bytes = x.scalar_type() == ScalarType::Byte;
  const char* data = static_cast<const char*>(x.const_data_ptr()) + index * x.stride(0) * (bytes ? 1 : 4);
  return {data, x.stride(1), x.stride(2), x.stride(3), bytes};
}

}  // namespace
}  // namespace lgld
