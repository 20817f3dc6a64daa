// Involution on the CPU: forward and both gradients, as plans that split the work into independent tasks.
//
//   y[b,c,i,j] = sum_{u,v} weight[b, g(c)*Kh*Kw + u*Kw + v, i, j] * x[b, c, i*sh - ph + u*dh, j*sw - pw + v*dw]
//
// with g(c) = c / (channels / groups) and x zero outside its bounds (D. Li et al., "Involution", CVPR 2021, eq. 4).
// Both gradients are gathers: every element of a result is written by exactly one task, in one fixed order of additions,
// so results depend neither on the number of threads nor on which thread ran which task.
//
// Tensors are float32, float64, float16 or bfloat16; the 16-bit ones are widened on the way in, summed in float32 and rounded
// once on the way out. The map (x or grad_y) may have its columns or its channels next to each other.
#pragma once
#include <cstdint>
#include <type_traits>

#include "../../dtype.h"
#include "../../involution2d_shape.h"
#include "../simd/half.h"
#include "../strided.h"

// involution2d_f32_avx512, say: what is compiled for a dtype and an instruction set.
#define LGLD_CONCAT_(a, b, c) a##b##_##c
#define LGLD_CONCAT(a, b, c) LGLD_CONCAT_(a, b, c)
#define LGLD_COMPILED(name) LGLD_CONCAT(involution2d_, name, LGLD_VARIANT)

namespace lgld {

// What a stored type is computed in.
template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
constexpr Dtype kDtype = std::is_same_v<S, double>     ? Dtype::kFloat64
                         : std::is_same_v<S, Float16>  ? Dtype::kFloat16
                         : std::is_same_v<S, BFloat16> ? Dtype::kBFloat16
                                                       : Dtype::kFloat32;

enum class Involution2dPass { kForward, kGradX, kGradWeight };

// What of the tensors' dtype and memory format decides the kernel.
struct Involution2dFormat {
  Dtype dtype;
  // Forward and grad_x: the channels of the map (x, grad_y) and of the result are neighbours, as in torch.channels_last.
  bool channels_last;
  // The columns of the map are neighbours; those of the other operand that a kernel can read in place (forward: weight,
  // grad_weight: grad_y) are.
  bool unit_map, unit_other;
  // The columns of the result are neighbours.
  bool unit_result;
  // grad_weight: the channels of grad_y are neighbours.
  bool other_channels_last = false;
};

// Zero-padded copy of some rows of some planes, in which every tap of every output is a plain vector load. With a column
// stride s the columns can be stored phase by phase (column mod s), so that the outputs' loads stay contiguous; or results in
// the same order, from where they go to a tensor.
struct StripLayout {
  int64_t rows, phases;
  // Elements of one phase of one row that whole vectors of outputs depend on, in whole vectors. Those of outputs that do not
  // exist have to be written, too: by chance they might be subnormal numbers, slow to multiply.
  int64_t filled;
  int64_t pitch;        // the same with the slack behind, which the last vectors load and don't use
  int64_t row_pitch;    // phases * pitch
  int64_t plane_pitch;  // elements between planes
};

// A copy of some rows and columns of a tensor whose channels are neighbours.
struct PixelRegion {
  int64_t rows, columns;
  int64_t channels;  // elements a pixel
};

// What a task covers: a tile of the result's rows and columns of one image, all channels or taps of one group or of several.
struct Involution2dPlan {
  Involution2dShape shape;
  int64_t row_tile, col_tile, row_tiles, col_tiles;
  int64_t task_groups;  // more than 1 where channels are neighbours: their weights are in the same cache lines
  int64_t tasks;
  bool groups_first;   // tasks that follow each other are of the same pixels and neighbouring groups; otherwise of one group
  int64_t planes;      // planes of the map strip that are packed at a time
  StripLayout map;     // of x (forward, grad_weight) or grad_y (grad_x)
  StripLayout other;   // of weight (forward, grad_x) or grad_y (grad_weight)
  StripLayout result;  // where the result is staged
  // Vectors of channels: what of the map (rows of taps: of grad_y) and of weight a task copies; no channels: nothing
  PixelRegion pixels, pixel_weights;
  bool pads;                            // pixels are copied with zeros beside their rows
  bool channels_last;                   // forward and grad_x: the kernels whose vectors are channels
  bool transposes;                      // the same for planes, which are transposed on the way in and out
  bool sums_lanes;                      // grad_weight: the same
  bool sums_rows;                       // grad_weight: vectors are rows of taps
  bool sums_whole;                      // grad_weight: all channels of a group are summed in one go, and rounded once
  bool dense;                           // stride 1, dilation 1, K in {3, 5, 7}: the unrolled kernels
  bool direct;                          // dense, and the map is read in place
  bool packs_other;                     // weight (grad_y in grad_weight) is copied to strips; otherwise it is read in place
  bool stages_result;                   // results are computed in strips and copied to the tensor at the end of a tile
  int64_t map_at, other_at, result_at;  // bytes from the start of the scratch
  int64_t scratch_bytes;                // per thread; the caller aligns it to 64 bytes
};

// One instruction set's compiled kernels. Each runs tasks [begin, end) of a plan made for this table.
struct Involution2dKernels {
  int lanes_f32, lanes_f64;
  int row_block;          // rows of a dense register tile
  int dense_channels;     // channels of a dense register tile: they share the loads of the weights
  int sparse_channels;    // the same where stride, dilation or kernel size rule the dense tile out
  int weight_channels;    // channels that grad_weight packs at a time
  bool masked_windows;    // dense tiles can read the map in place
  int pixel_channels[2];  // channels of a pixel tile in float and in double
  template <class S>
  using Run = void (*)(const Involution2dPlan&, Strided<const S> a, Strided<const S> b, Strided<S> out, int64_t begin,
                       int64_t end, void* scratch);
  // (x, weight, y), (grad_y, weight, grad_x), (grad_y, x, grad_weight)
  template <class S>
  struct Passes {
    Run<S> forward, grad_x, grad_weight;
  };
  const Passes<float>* f32;
  const Passes<double>* f64;
  const Passes<Float16>* f16;
  const Passes<BFloat16>* bf16;
};

// The plan depends on the shape, the format and the table alone, never on the number of threads.
Involution2dPlan plan_involution2d(const Involution2dShape& shape, Involution2dPass pass, const Involution2dKernels& kernels,
                                   const Involution2dFormat& format);

// The kernel of a pass and dtype.
template <class S>
__attribute__((always_inline)) inline Involution2dKernels::Run<S> select(const Involution2dKernels& k, Involution2dPass pass) {
  const auto of = [pass](const Involution2dKernels::Passes<S>& p) {
    return pass == Involution2dPass::kForward ? p.forward : pass == Involution2dPass::kGradX ? p.grad_x : p.grad_weight;
  };
  if constexpr (std::is_same_v<S, double>)
    return of(*k.f64);
  else if constexpr (std::is_same_v<S, Float16>)
    return of(*k.f16);
  else if constexpr (std::is_same_v<S, BFloat16>)
    return of(*k.bf16);
  else
    return of(*k.f32);
}

// Bytes of the weights that all channels of a dense tile read one after the other, a share of the second cache.
constexpr int64_t kWeightBytes = 128 * 1024;

// Bytes of a TapRun (correlate.h), of which a plan's scratch has one a tap; of a PixelTap (pixel_plane.h), one a tap; and of an
// AxisTap (pixel_plane.h), one a row and one a column of taps.
constexpr int64_t kTapRunBytes = 32, kPixelTapBytes = 16, kAxisTapBytes = 24;

// floor(a / b) and ceil(a / b) for b > 0 and any sign of a. `static`: what instruction sets compile separately must not be
// shared.
static constexpr int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
static constexpr int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

}  // namespace lgld
