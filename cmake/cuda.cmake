# LGLD_CUDA=auto|on|off|check: liblgld_ops_cuda.so, a library of its own, because a torch without CUDA lacks what it links to.
#   auto   where there is an nvcc and the torch that is built against has CUDA; LGLD_CUDA_STATE says why not
#   on     the same, and an error where something is missing
#   check  compiles kernels and glue for every architecture with nvcc, needs no GPU and no CUDA torch, links nothing
# nvcc is called by custom commands: enable_language(CUDA) of the CMakes in use knows less of new nvccs than nvcc itself.
set(LGLD_CUDA_ARCHS "75;80;86;89;90;100" CACHE STRING "GPU architectures to compile for; newer ones run the last one's PTX")
set(LGLD_NVCC "" CACHE FILEPATH "nvcc; empty: $CUDACXX, $CUDA_HOME/bin, PATH, /usr/local/cuda/bin")
set(LGLD_CUDA_KERNELS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/cuda)
set(LGLD_CUDA_STATE "") # why there are no CUDA kernels; empty where there are

if(NOT LGLD_CUDA MATCHES "^(auto|on|off|check)$")
  message(FATAL_ERROR "LGLD_CUDA is '${LGLD_CUDA}'; it must be auto, on, off or check.")
endif()
string(REPLACE "," ";" LGLD_CUDA_ARCHS "${LGLD_CUDA_ARCHS}")
foreach(arch IN LISTS LGLD_CUDA_ARCHS)
  if(NOT arch MATCHES "^[1-9][0-9]+[af]?$")
    message(FATAL_ERROR "LGLD_CUDA_ARCHS is '${LGLD_CUDA_ARCHS}'; it must be numbers such as 80,90.")
  endif()
endforeach()

# What is missing for the library, as a sentence's end; empty where nothing is.
function(lgld_find_cuda missing)
  set(found "${LGLD_NVCC}")
  if(NOT found AND EXISTS "$ENV{CUDACXX}")
    set(found "$ENV{CUDACXX}")
  endif()
  if(NOT found)
    find_program(nvcc_on_path nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin PATHS /usr/local/cuda/bin NO_CACHE)
    if(nvcc_on_path)
      set(found "${nvcc_on_path}")
    endif()
  endif()
  set(LGLD_USED_NVCC "${found}" PARENT_SCOPE)
  if(NOT found OR NOT EXISTS "${found}")
    set(${missing} "there is no nvcc (set CUDA_HOME or put it on PATH)" PARENT_SCOPE)
    return()
  endif()
  # nvcc says itself where its headers and libraries are, also where it is a script that calls another.
  execute_process(COMMAND ${found} --version OUTPUT_VARIABLE version ERROR_QUIET)
  execute_process(COMMAND ${found} --dryrun -c -x cu /dev/null -o /dev/null ERROR_VARIABLE dryrun OUTPUT_QUIET)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" version "${version}")
  set(version "${CMAKE_MATCH_1}")
  string(REGEX MATCH "INCLUDES=[^\n]*-I([^\"\n]+)\"" unused "${dryrun}")
  set(LGLD_CUDA_INCLUDE "${CMAKE_MATCH_1}" PARENT_SCOPE)
  string(REGEX MATCHALL "\"-L([^\"\n]+)\"" folders "${dryrun}")
  list(TRANSFORM folders REPLACE "\"-L([^\"]+)\"" "\\1")
  set(LGLD_CUDA_LIBRARIES "${folders}" PARENT_SCOPE)
  set(LGLD_NVCC_VERSION "${version}" PARENT_SCOPE)
  if(NOT version OR version VERSION_LESS 12.8)
    set(${missing} "${found} is version '${version}', and 12.8 or newer is needed" PARENT_SCOPE)
    return()
  endif()
  if(NOT LGLD_CUDA STREQUAL "check" AND NOT EXISTS "${LGLD_TORCH_DIR}/lib/libtorch_cuda.so")
    set(${missing} "torch ${LGLD_TORCH_VERSION} was built without CUDA" PARENT_SCOPE)
    return()
  endif()
  set(${missing} "" PARENT_SCOPE)
endfunction()

if(LGLD_CUDA STREQUAL "off")
  set(LGLD_CUDA_STATE "it was built with LGLD_CUDA=off")
else()
  lgld_find_cuda(LGLD_CUDA_STATE)
  if(LGLD_CUDA_STATE AND NOT LGLD_CUDA STREQUAL "auto")
    message(FATAL_ERROR "LGLD_CUDA=${LGLD_CUDA}: ${LGLD_CUDA_STATE}.")
  endif()
endif()

file(GLOB LGLD_CUDA_SOURCES CONFIGURE_DEPENDS ${LGLD_CUDA_KERNELS}/*/*.cu)
file(GLOB LGLD_CUDA_GLUE CONFIGURE_DEPENDS csrc/cuda/*.cpp csrc/*.cpp)

if(LGLD_CUDA STREQUAL "check")
  find_package(Python COMPONENTS Interpreter REQUIRED)
  list(JOIN LGLD_CUDA_ARCHS "," archs)
  add_custom_target(
    lgld_cuda_check ALL
    COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/tools/cuda_check.py --nvcc ${LGLD_USED_NVCC} --archs ${archs}
            --torch "${LGLD_TORCH_DIR}" --table ${CMAKE_BINARY_DIR}/cuda_check.txt
    USES_TERMINAL VERBATIM)
  set(LGLD_CUDA_STATE "it was built with LGLD_CUDA=check, which links nothing")
elseif(LGLD_CUDA_STATE)
  message(STATUS "No CUDA kernels: ${LGLD_CUDA_STATE}.")
else()
  list(JOIN LGLD_CUDA_ARCHS ", " archs)
  message(STATUS "CUDA kernels: ${LGLD_USED_NVCC} ${LGLD_NVCC_VERSION} for ${archs}")
  set(codes "")
  foreach(arch IN LISTS LGLD_CUDA_ARCHS)
    list(APPEND codes -gencode "arch=compute_${arch},code=sm_${arch}")
  endforeach()
  list(GET LGLD_CUDA_ARCHS -1 newest)
  if(newest MATCHES "^[0-9]+$") # an architecture-specific one has no PTX that others run
    list(APPEND codes -gencode "arch=compute_${newest},code=compute_${newest}")
  endif()
  set(LGLD_CUDA_OBJECTS "")
  foreach(source IN LISTS LGLD_CUDA_SOURCES)
    file(RELATIVE_PATH name ${LGLD_CUDA_KERNELS} ${source})
    set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
    get_filename_component(folder ${object} DIRECTORY)
    file(MAKE_DIRECTORY ${folder})
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} ${LGLD_USED_NVCC} -c ${source} -o ${object} -MD -MF ${object}.d -std=c++17 -O3
              --expt-relaxed-constexpr -DNDEBUG -ccbin ${CMAKE_CXX_COMPILER}
              -Xcompiler=-fPIC,-fvisibility=hidden,-ffile-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}=. ${codes}
      DEPENDS ${source}
      DEPFILE ${object}.d
      COMMENT "nvcc ${name}"
      VERBATIM)
    list(APPEND LGLD_CUDA_OBJECTS ${object})
  endforeach()
  add_library(lgld_ops_cuda SHARED ${LGLD_CUDA_GLUE} ${LGLD_CUDA_OBJECTS})
  target_include_directories(lgld_ops_cuda PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_include_directories(lgld_ops_cuda SYSTEM PRIVATE ${LGLD_TORCH_DIR}/include ${LGLD_CUDA_INCLUDE})
  target_compile_definitions(lgld_ops_cuda PRIVATE TORCH_TARGET_VERSION=0x020a000000000000 USE_CUDA)
  target_link_directories(lgld_ops_cuda PRIVATE ${LGLD_TORCH_DIR}/lib ${LGLD_CUDA_LIBRARIES})
  # The runtime is linked in: the library then runs beside whichever one torch brings. Both use the device's one context.
  target_link_libraries(lgld_ops_cuda PRIVATE torch_cpu torch_cuda cudart_static rt dl pthread)
  target_link_options(lgld_ops_cuda PRIVATE -Wl,--allow-shlib-undefined -Wl,--as-needed -Wl,--exclude-libs,ALL
                      $<$<CONFIG:Release>:-Wl,-s>)
  set_target_properties(lgld_ops_cuda PROPERTIES SKIP_BUILD_RPATH ON)
  install(TARGETS lgld_ops_cuda LIBRARY DESTINATION lib)
endif()
