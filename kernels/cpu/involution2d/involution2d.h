// Involution on the CPU: forward and both gradients, as plans that split the work into independent tasks.
//
//   y[b,c,i,j] = sum_{u,v} weight[b, g(c)*Kh*Kw + u*Kw + v, i, j] * x[b, c, i*sh - ph + u*dh, j*sw - pw + v*dw]
//
// with g(c) = c / (channels / groups) and x zero outside its bounds (D. Li et al., "Involution", CVPR 2021, eq. 4).
// Both gradients are gathers: every element of a result is written by exactly one task, in one fixed order of additions,
// so results depend neither on the number of threads nor on which thread ran which task.
#pragma once
#include <cstdint>

#include "../strided.h"

namespace lgld {

struct Involution2dShape {
  int64_t batch, channels, groups;
  int64_t height, width;          // of x and grad_x
  int64_t out_height, out_width;  // of y, weight and their gradients
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;

  __attribute__((always_inline)) int64_t group_channels() const { return channels / groups; }
  __attribute__((always_inline)) int64_t taps() const { return kernel_h * kernel_w; }
};

enum class Involution2dPass { kForward, kGradX, kGradWeight };

// Zero-padded copy of some rows of some planes, in which every tap of every output is a plain vector load. With a column
// stride s the columns are stored phase by phase (column mod s), so that the outputs' loads stay contiguous.
struct StripLayout {
  int64_t rows, phases;
  int64_t filled;       // elements of one phase of one row that outputs depend on, in whole vectors
  int64_t pitch;        // the same with the slack behind, which the last vectors load and don't use
  int64_t row_pitch;    // phases * pitch
  int64_t plane_pitch;  // elements between planes
};

// What a task covers: a tile of the result's rows and columns of one group of one image, all channels or taps of it.
struct Involution2dPlan {
  Involution2dShape shape;
  int64_t row_tile, col_tile, row_tiles, col_tiles;
  int64_t tasks;
  int64_t planes;         // planes of the map strip that are packed at a time
  StripLayout map;        // of x (forward, grad_weight) or grad_y (grad_x)
  StripLayout weight;     // of weight (grad_x only)
  int64_t scratch_bytes;  // per thread; the caller aligns it to 64 bytes
  bool dense;             // stride 1, dilation 1, K in {3, 5, 7}: the unrolled kernels
};

// One instruction set's compiled kernels. Each runs tasks [begin, end) of a plan made for this table.
struct Involution2dKernels {
  int lanes_f32, lanes_f64;
  int row_block;        // rows of a dense register tile
  int dense_channels;   // channels of a dense register tile: they share the loads of the weights
  int sparse_channels;  // the same where stride, dilation or kernel size rule the dense tile out
  int weight_channels;  // channels that grad_weight packs at a time
  // The column stride of an operand is free where a kernel packs it and 1 where it reads it in place: forward reads `weight`,
  // grad_weight reads `grad_y` in place.
  template <class Out>
  using Run = void (*)(const Involution2dPlan&, Strided<const Out> a, Strided<const Out> b, Strided<Out> out, int64_t begin,
                       int64_t end, void* scratch);
  Run<float> forward_f32, grad_x_f32, grad_weight_f32;  // (x, weight, y), (grad_y, weight, grad_x), (grad_y, x, grad_weight)
  Run<double> forward_f64, grad_x_f64, grad_weight_f64;
};

// The plan depends on the shape and the table alone, never on the number of threads.
Involution2dPlan plan_involution2d(const Involution2dShape& shape, Involution2dPass pass, const Involution2dKernels& kernels,
                                   bool is_double);

// The kernel of a pass and dtype.
template <class T>
__attribute__((always_inline)) inline Involution2dKernels::Run<T> select(const Involution2dKernels& k, Involution2dPass pass) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return pass == Involution2dPass::kForward ? k.forward_f64
           : pass == Involution2dPass::kGradX ? k.grad_x_f64
                                              : k.grad_weight_f64;
  } else {
    return pass == Involution2dPass::kForward ? k.forward_f32
           : pass == Involution2dPass::kGradX ? k.grad_x_f32
                                              : k.grad_weight_f32;
  }
}

// Bytes of a TapRun (correlate.h), of which a plan's scratch has one a tap.
constexpr int64_t kTapRunBytes = 32;

// floor(a / b) and ceil(a / b) for b > 0 and any sign of a. `static`: what instruction sets compile separately must not be
// shared.
static constexpr int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
static constexpr int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

}  // namespace lgld
