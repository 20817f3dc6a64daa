// Types of a tensor's elements that every op takes.
#pragma once

namespace lgld {

enum class Dtype { kFloat32, kFloat64, kFloat16, kBFloat16 };

}  // namespace lgld
