# LGLD_CUDA=auto|on|off|check. This version has no CUDA sources; asking for them by name is an error, never a silent no.
file(GLOB LGLD_CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/cuda/*.cu)
if(NOT LGLD_CUDA MATCHES "^(auto|on|off|check)$")
  message(FATAL_ERROR "LGLD_CUDA is '${LGLD_CUDA}'; it must be auto, on, off or check.")
endif()
if(LGLD_CUDA MATCHES "^(on|check)$" AND NOT LGLD_CUDA_SOURCES)
  message(FATAL_ERROR "LGLD_CUDA=${LGLD_CUDA}: this version of lgld_ops has no CUDA kernels yet. Use LGLD_CUDA=auto or off; "
                      "on a GPU the ops run their plain torch formulation.")
endif()
