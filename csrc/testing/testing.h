// What the files of lgld_ops._testing share.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "kernels/cpu/variants.h"

namespace lgld {

// The variant called `name`; std::invalid_argument (ValueError in Python) where it is not built or this machine lacks it.
const CpuVariant& variant_named(const std::string& name);

void define_lgldnet(pybind11::module_& m);

}  // namespace lgld
