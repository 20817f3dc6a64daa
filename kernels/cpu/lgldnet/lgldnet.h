// LGLD-Net, whole, on the CPU in float32: what is computed, in which order, from and into which buffers.
//
// The published network (lgld_ops/reference.py) with these identities, none of which changes a result beyond rounding:
//   - BatchNorm is folded into the convolution before it; the involution's two 1x1 convolutions and the stem's 3x3 are one
//     convolution of the image;
//   - the four sinusoids of the Fourier mixer are a term for each row plus a term for each column;
//   - `compress` is folded into the three dilated convolutions, whose outputs are then summed. Those of dilation 4 and 8 are
//     one 5x5 convolution (17 taps that are not zero) on each of the 16 grids of pixels with equal (i mod 4, j mod 4), done as
//     Winograd F(4x4, 5x5); that of dilation 2 is a 3x3 convolution on each of the 4 grids (i mod 2, j mod 2), F(4x4, 3x3). On
//     small maps both are done tap by tap, which is faster there and more exact (kDirectPixels in plan.cpp);
//   - pooling commutes with the gates, so the gated, the blended and the head's map are never stored.
//
// Maps are channels last, channels padded with zeros to whole vectors. The caller brings all memory and the threads: it runs
// every task of a phase, in any order and on any threads, before the first of the next phase.
#pragma once
#include <cstdint>

namespace lgld {

struct LgldnetGeometry {
  int64_t in_channels, channels, classes;  // channels: base_channels, a multiple of 4
  int64_t height, width;                   // of the image
};

// Where each tensor of the state dict begins in the canonical parameters: all of them, one after the other in the order of the
// reference's state dict (num_batches_tracked left out), then the eps of the three BatchNorms. C = channels, D = C / 4.
struct LgldnetParameters {
  int64_t stem_weight, stem_bias;                        // [C, in, 3, 3], [C]
  int64_t reduce_weight, reduce_bias;                    // [D, C], [D]
  int64_t mix_weight, mix_bias, span_weight, span_bias;  // [D, D], [D], [9, D], [9]
  int64_t local_norm;                                    // weight, bias, mean, variance: [4, C]
  int64_t fourier_real, fourier_imag;                    // [C / 2] each
  int64_t mixer_weight, mixer_bias, global_norm;         // [C, in + 4], [C], [4, C]
  int64_t dw3_weight, dw3_bias, pw3_weight, pw3_bias;    // [C, 3, 3], [C], [C, C], [C]
  int64_t dw5_weight, dw5_bias, pw5_weight, pw5_bias;    // [C, 5, 5], [C], [C, C], [C]
  int64_t project_weight;                                // [C, 2C]
  int64_t dilated_weight[3], dilated_bias[3];            // dilations 2, 4, 8: [C, C, 3, 3], [C]
  int64_t compress_weight, compress_bias;                // [C, 3C], [C]
  int64_t squeeze_weight, squeeze_bias;                  // [D, C], [D]
  int64_t excite_weight, excite_bias;                    // [C, D], [C]
  int64_t fusion_weight, fusion_bias;                    // [2, 2C], [2]
  int64_t head_weight, head_bias, head_norm;             // [C, C], [C], [4, C]
  int64_t class_weight, class_bias;                      // [classes, C], [classes]
  int64_t eps;                                           // local, global, head: [3]
  int64_t count;
};

LgldnetParameters lgldnet_parameters(int64_t in_channels, int64_t channels, int64_t classes);

// What folding and packing must know of an instruction set.
struct LgldnetVectors {
  int64_t lanes;          // floats in a vector
  int64_t panel_vectors;  // vectors of a GEMM panel's row
};

// Where the folded weights stand in the packed buffer. A matrix [k][n] is stored in panels of panel_vectors * lanes columns,
// each [k][columns], the last one narrower.
struct LgldnetPacked {
  int64_t stem[2], hidden[2];  // panels [in * 9][C], [in * 9][D]; [1] is scaled by 1 / 255, for images of bytes
  int64_t stem_bias, hidden_bias, span, span_bias, stem_shift;
  int64_t mixer[2];  // [in][C]
  int64_t dw3, dw5, pw3, pw3_bias, pw5, pw5_bias, project;
  int64_t wide;                     // F(4x4, 5x5): 64 times panels [C][C]
  int64_t near;                     // F(4x4, 3x3): 36 times panels [C][C]
  int64_t wide_taps[5], near_taps;  // the same tap by tap: panels [taps * C][C] for each row of the 5x5 window, 9 times [C][C]
  int64_t context_bias;
  int64_t head, head_bias;
  int64_t count;
};

// Folds and packs the canonical parameters, in double, rounding once. `scratch` holds lgldnet_fold_scratch doubles.
LgldnetPacked lgldnet_packed(const LgldnetGeometry& g, const LgldnetVectors& v);
int64_t lgldnet_fold_scratch(const LgldnetGeometry& g);
void lgldnet_fold(const LgldnetGeometry& g, const LgldnetVectors& v, const float* parameters, double* scratch, float* packed);

// Winograd's interpolation points besides 0 and infinity, each with both signs: of all choices of eighths those with the
// smallest error (docs/performance.md).
constexpr double kPoints3[2] = {0.625, 1.5};     // F(4, 3): 6 points
constexpr double kPoints5[3] = {0.5, 1.0, 2.0};  // F(4, 5): 8 points

enum LgldnetStageName {
  kLocalStem,
  kGlobalStem,
  kWideContext,
  kNearContext,
  kLocalFeatures,
  kGates,
  kHead,
  kLogits,
  kLgldnetStages
};

// A wide window's row u - 2 has taps first, first + step, ... on the grids of dilation 4.
struct LgldnetTaps {
  int first, step, count;
};
constexpr LgldnetTaps kWideTaps[5] = {{-2, 2, 3}, {-1, 1, 3}, {-2, 1, 5}, {-1, 1, 3}, {-2, 2, 3}};

// What stages read and write: the workspace's buffers, behind the image and before the results.
enum LgldnetBufferName {
  kImage,
  kStemMap,
  kMixerMap,
  kContextMap,
  kLocalMap,
  kLocalSums,
  kContextSums,
  kHeadSums,
  kBlend,
  kResults,
  kLgldnetBuffers
};

struct LgldnetBuffer {
  const char* name;
  int64_t begin, floats;  // in the workspace; 0 floats: the caller's
};

// A stage's tasks touch disjoint parts of its result. `phase`, which never falls from one stage to the next, orders them: a
// phase needs all of those before it.
struct LgldnetStage {
  const char *name, *kernel;
  unsigned reads, writes;  // a bit for each LgldnetBufferName
  int phase;
  int64_t tasks;
  int64_t multiply_adds, silus;       // of one image
  int64_t bytes_read, bytes_written;  // of maps, image and weights, each counted once
};

struct LgldnetPlan {
  LgldnetGeometry geometry;
  LgldnetVectors vectors;
  LgldnetPacked packed;
  LgldnetParameters parameters;
  int64_t height, width;                       // of the maps
  int64_t hidden;                              // channels / 4
  int64_t padded, padded_hidden, padded_taps;  // channels, hidden, 9: rounded up to whole vectors
  int64_t pixel_block;                         // pixels that a depthwise register tile computes

  // Output of the local stem, with a border of two zeros: what the depthwise windows read.
  int64_t stem_row;  // floats of a row
  // Output of the global stem: 16 grids (i mod 4, j mod 4), each with a border of two zeros and room for whole tiles.
  int64_t grid_columns, grid;  // pixels of a row, floats of a grid
  // Sum of the dilated convolutions and then its SiLU: the same 16 grids without border, whole tiles of 4 x 4.
  int64_t context_columns, context_grid;
  int64_t wide_rows, wide_cols, wide_grids_i, wide_grids_j;  // tiles of a grid; grids that have pixels
  int64_t near_rows, near_cols, near_grids_i, near_grids_j;
  bool direct;                     // tap by tap, a task a row of the map
  int64_t wide_block, near_block;  // tiles of a task
  int64_t wide_pitch, near_pitch;  // floats from one of Winograd's frequencies to the next

  int64_t stem_rows, mixer_rows, local_rows, head_rows;  // rows of a task
  int64_t strip;                                         // pixels between two products of matrices in LFA and head

  // Floats from the workspace's start. Borders are zero when the workspace is new and stay so.
  int64_t stem_map, mixer_map, context_map, local_map;
  int64_t local_sums, context_sums, head_sums;  // one row of channels a task
  int64_t blend;                                // factors of the local and of the context map, then local means, context means
  int64_t workspace;                            // floats, all
  int64_t scratch;                              // floats of a thread
  int64_t tables;                               // floats: FFM's row terms, then its column terms
  int phases;
  LgldnetStage stages[kLgldnetStages];
  LgldnetBuffer buffers[kLgldnetBuffers];
};

// A function of its arguments alone.
LgldnetPlan lgldnet_plan(const LgldnetGeometry& g, const LgldnetVectors& v, int64_t pixel_block);

// FFM's row and column terms for the plan's image size, from the canonical parameters.
void lgldnet_tables(const LgldnetPlan& plan, const float* parameters, float* tables);

// One image: strides in elements.
struct LgldnetImage {
  const void* data;
  int64_t channel, row, column;
  bool bytes;  // uint8, 0 to 255 for 0 to 1; else float32
};

struct LgldnetCall {
  const LgldnetPlan* plan;
  const float *parameters, *packed, *tables;
  float* workspace;
  LgldnetImage image;
  float* logits;    // [classes]
  float* features;  // [channels]: what the last layer reads
};

// One instruction set's compiled kernels.
struct LgldnetKernels {
  LgldnetVectors vectors;
  int64_t pixel_block;
  void (*run)(const LgldnetCall& call, int stage, int64_t task, float* scratch);
  void (*silu)(float* p, int64_t vectors);  // the stages' SiLU in place, for its test and for the floor of benchmarks
};

}  // namespace lgld
