#include <algorithm>

#include "involution2d.h"

namespace lgld {
namespace {

constexpr int64_t kCacheLine = 64;

int64_t round_up(int64_t value, int64_t unit) { return ceil_div(value, unit) * unit; }

// `outputs` columns of results depend on up to `reach` columns further; whole vectors of them touch `touched` columns further.
StripLayout make_strip(int64_t rows, int64_t phases, int64_t reach, int64_t touched, int64_t outputs, int64_t lanes,
                       int64_t element) {
  StripLayout s{};
  s.rows = rows;
  s.phases = phases;
  const int64_t line = kCacheLine / element;
  s.filled = round_up(reach + outputs, lanes);
  s.pitch = round_up(touched + round_up(outputs, lanes), line);
  s.row_pitch = s.phases * s.pitch;
  s.plane_pitch = s.rows * s.row_pitch;
  // Planes a multiple of 4 KiB apart would all fall into the same cache sets.
  if (s.plane_pitch * element % 4096 == 0) s.plane_pitch += line;
  return s;
}

// a * b, or a number that no memory holds and that three of still fit 64 bits.
int64_t bounded_product(int64_t a, int64_t b) {
  constexpr int64_t kBound = int64_t{1} << 60;
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) || product > kBound ? kBound : product;
}

// Even tiles of at most `limit`, in units of `unit` where more than one is needed.
int64_t even_tile(int64_t extent, int64_t limit, int64_t unit) {
  const int64_t count = std::max<int64_t>(1, ceil_div(extent, limit));
  return count == 1 ? std::max<int64_t>(1, extent) : round_up(ceil_div(extent, count), unit);
}

}  // namespace

Involution2dPlan plan_involution2d(const Involution2dShape& s, Involution2dPass pass, const Involution2dKernels& k,
                                   bool is_double) {
  Involution2dPlan p{};
  p.shape = s;
  const int64_t lanes = is_double ? k.lanes_f64 : k.lanes_f32;
  const int64_t element = is_double ? sizeof(double) : sizeof(float);
  const bool unit = s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1;
  p.dense = unit && s.kernel_h == s.kernel_w && (s.kernel_h == 3 || s.kernel_h == 5 || s.kernel_h == 7);

  const bool grad_x = pass == Involution2dPass::kGradX;
  const int64_t height = grad_x ? s.height : s.out_height;
  const int64_t width = grad_x ? s.width : s.out_width;

  // 128 columns of 16 rows: the weights of a tile and the packed strip of a block of channels stay in L2 with K = 7. Fewer rows
  // where that leaves too few tasks to share out; 4 at least, since every tile packs K - 1 rows that its neighbour packs, too.
  p.col_tile = even_tile(width, 128, 16);
  p.col_tiles = ceil_div(width, p.col_tile);
  constexpr int64_t kEnoughTasks = 12;
  for (int64_t rows : {16, 8, 4}) {
    p.row_tile = even_tile(height, rows, 4);
    p.row_tiles = ceil_div(height, p.row_tile);
    p.tasks = s.batch * s.groups * p.row_tiles * p.col_tiles;
    if (p.tasks >= kEnoughTasks) break;
  }

  // A Window touches two vectors from its first tap on: dense ones begin at the first tap of a row, others at any.
  const auto touched = [&](int64_t reach) { return p.dense ? std::max(reach, lanes) : reach + lanes; };
  const int64_t reach_h = (s.kernel_h - 1) * s.dilation_h, reach_w = (s.kernel_w - 1) * s.dilation_w;
  if (grad_x) {
    // Rows p0 .. p0 + row_tile - 1 of grad_x read rows floor((p0 + ph - reach) / sh) .. floor((p0 + row_tile - 1 + ph) / sh)
    // of grad_y: at most (row_tile - 1 + reach) / sh + 2 of them. The same for columns.
    const int64_t rows = p.dense ? round_up(p.row_tile, k.row_block) + reach_h : (p.row_tile - 1 + reach_h) / s.stride_h + 2;
    const int64_t reach = reach_w / s.stride_w + 2;
    const int64_t outputs = ceil_div(p.col_tile, s.stride_w);
    p.map = make_strip(rows, 1, reach, touched(reach), outputs, lanes, element);
    // Dense tiles want each tap's plane moved by that tap, so that it lines up with the result; others address it like the map.
    p.weight = p.dense ? make_strip(round_up(p.row_tile, k.row_block), 1, 0, 0, outputs, lanes, element) : p.map;
  } else {
    const int64_t rows = (p.dense ? round_up(p.row_tile, k.row_block) - 1 : p.row_tile - 1) * s.stride_h + reach_h + 1;
    const int64_t phases = std::min(s.stride_w, reach_w + 1);
    const int64_t reach = reach_w / s.stride_w + 1;
    p.map = make_strip(rows, phases, reach, touched(reach), p.col_tile, lanes, element);
  }
  // The forward and grad_x tiles always compute a whole block of channels and store those that exist.
  p.planes = pass == Involution2dPass::kGradWeight ? std::min<int64_t>(k.weight_channels, s.group_channels())
             : p.dense                             ? k.dense_channels
                                                   : k.sparse_channels;

  const int64_t runs = bounded_product(s.taps(), kTapRunBytes);
  const int64_t map = bounded_product(p.planes * element, p.map.plane_pitch);
  const int64_t weight = grad_x ? bounded_product(s.taps() * element, p.weight.plane_pitch) : 0;
  p.scratch_bytes = round_up(runs, kCacheLine) + round_up(map, kCacheLine) + weight;
  return p;
}

}  // namespace lgld
