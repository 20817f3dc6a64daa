# lgld_cpu_kernels: every op's kernels*.cpp, once per instruction set, plus what is common to all of them.
set(LGLD_KERNELS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/cpu)

if(LGLD_TARGETS_X86_64)
  set(LGLD_VARIANTS avx512 avx2 sse2 scalar) # the slowest to compile first
else()
  set(LGLD_VARIANTS scalar neon)
endif()
set(LGLD_FLAGS_scalar -fno-tree-vectorize)
set(LGLD_FLAGS_sse2 -msse2)
set(LGLD_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(LGLD_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c)
set(LGLD_FLAGS_neon "")

file(GLOB LGLD_COMMON CONFIGURE_DEPENDS ${LGLD_KERNELS}/*.cpp ${LGLD_KERNELS}/*/plan.cpp ${LGLD_KERNELS}/*/fold.cpp)
file(GLOB LGLD_OP_FOLDERS CONFIGURE_DEPENDS ${LGLD_KERNELS}/*/kernels*.cpp)
add_library(lgld_cpu_kernels STATIC ${LGLD_COMMON})
target_include_directories(lgld_cpu_kernels PRIVATE ${LGLD_KERNELS})

foreach(variant IN LISTS LGLD_VARIANTS)
  set(target lgld_cpu_${variant})
  add_library(${target} OBJECT ${LGLD_OP_FOLDERS})
  target_include_directories(${target} PRIVATE ${LGLD_KERNELS})
  target_compile_definitions(${target} PRIVATE LGLD_VARIANT=${variant} LGLD_SIMD_HEADER="simd/${variant}.h")
  # Multiply-adds are fused where a kernel says so and nowhere else: the same additions in every build.
  # Rows of a few vectors are zeroed in a few stores, not by calls of memset.
  target_compile_options(${target} PRIVATE ${LGLD_FLAGS_${variant}} -ffp-contract=off -fno-exceptions -fno-rtti
                         $<$<CXX_COMPILER_ID:GNU>:-fno-tree-loop-distribute-patterns>)
  target_sources(lgld_cpu_kernels PRIVATE $<TARGET_OBJECTS:${target}>)
endforeach()
