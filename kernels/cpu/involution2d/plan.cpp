#include <algorithm>

#include "involution2d.h"

namespace lgld {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kMostWhole = 128;                    // channels of a group whose strips are packed at a time
constexpr int64_t kMostRows = 16, kMostColumns = 128;  // of a tile
constexpr int64_t kMostTransposed = 1 << 20;           // bytes of the map under a tile

int64_t round_up(int64_t value, int64_t unit) { return ceil_div(value, unit) * unit; }

// Whole vectors of `outputs` columns of results depend on up to `reach` columns further and touch `touched` columns further.
StripLayout make_strip(int64_t rows, int64_t phases, int64_t reach, int64_t touched, int64_t outputs, int64_t lanes,
                       int64_t element) {
  StripLayout s{};
  s.rows = rows;
  s.phases = phases;
  const int64_t line = kCacheLine / element;
  const int64_t computed = round_up(outputs, lanes);
  s.filled = round_up(reach + computed, lanes);
  s.pitch = round_up(touched + computed, line);
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

// What a plan is made from, and what several of its steps want to know of it.
struct Request {
  const Involution2dShape& shape;
  const Involution2dKernels& kernels;
  const Involution2dFormat& format;
  Involution2dPass pass;
  bool forward() const { return pass == Involution2dPass::kForward; }
  bool grad_x() const { return pass == Involution2dPass::kGradX; }
  bool grad_weight() const { return pass == Involution2dPass::kGradWeight; }
  bool is_double() const { return format.dtype == Dtype::kFloat64; }
  bool widens() const { return format.dtype == Dtype::kFloat16 || format.dtype == Dtype::kBFloat16; }
  bool unit() const { return shape.stride_h == 1 && shape.stride_w == 1 && shape.dilation_h == 1 && shape.dilation_w == 1; }
  int64_t lanes() const { return is_double() ? kernels.lanes_f64 : kernels.lanes_f32; }
  int64_t element() const { return is_double() ? sizeof(double) : sizeof(float); }
  int64_t reach_h() const { return (shape.kernel_h - 1) * shape.dilation_h; }
  int64_t reach_w() const { return (shape.kernel_w - 1) * shape.dilation_w; }
  // Rows or columns of the map that `result` of them read, as in lay_out_strips.
  int64_t span(int64_t result, int64_t reach, int64_t stride) const {
    return grad_x() ? (result - 1 + reach) / stride + 2 : (result - 1) * stride + reach + 1;
  }
  // With a column stride of 2 grad_x computes the even columns and the odd ones, and vectors of both then become rows.
  int64_t result_phases() const { return grad_x() && shape.stride_w == 2 && format.unit_result ? 2 : 1; }
  // channels_last pixels in the columns at the border lack some taps and are computed by themselves, at half the speed. Where
  // they are most, a copy with zeros beside its rows makes all pixels of a row alike.
  bool narrow(int64_t columns) const { return unit() && 2 * reach_w() > columns; }
};

// Whether planes are better transposed for the kernels whose vectors are channels. The others' vectors are columns of one row,
// mostly empty where there are few, and with a stride or a dilation each multiply-add loads one. Blocks of 16 x 16 take 64
// shuffles, 16 loads and 16 stores: 12 operations a vector, in and out, beside one multiply-add and one load a tap.
bool transposes(const Request& r) {
  const Involution2dShape& s = r.shape;
  if (r.grad_weight() || r.format.channels_last || !r.format.unit_result) return false;
  const int64_t lanes = r.lanes(), width = r.grad_x() ? s.width : s.out_width, height = r.grad_x() ? s.height : s.out_height;
  const bool fills_vectors = 3 * s.group_channels() >= 2 * round_up(s.group_channels(), lanes);
  // 16-bit planes that are not read in place would be copied in any case.
  const int64_t few = r.widens() && !r.kernels.masked_windows ? std::max<int64_t>(4 * lanes, 8) : 8;
  const bool fills_rows = r.unit() && width > few;
  // What a tile of the largest size reads has to stay in the second cache, and not be zeros for the most part.
  const int64_t rows = std::min<int64_t>(height, kMostRows), columns = std::min<int64_t>(width, kMostColumns);
  const int64_t map_rows = r.span(rows, r.reach_h(), s.stride_h), map_columns = r.span(columns, r.reach_w(), s.stride_w);
  const int64_t channels = std::min<int64_t>(r.kernels.pixel_channels[r.is_double()], s.group_channels());
  const bool stays = bounded_product(bounded_product(map_rows, map_columns), channels * r.element()) <= kMostTransposed;
  return fills_vectors && !fills_rows && s.taps() >= 25 && stays && map_rows <= 8 * rows && map_columns <= 8 * columns;
}

void choose_kernels(const Request& r, Involution2dPlan& p) {
  const Involution2dShape& s = r.shape;
  const Involution2dKernels& k = r.kernels;
  p.transposes = transposes(r);
  p.channels_last = (r.format.channels_last && !r.grad_weight()) || p.transposes;
  p.dense = !p.channels_last && r.unit() && s.kernel_h == s.kernel_w && (s.kernel_h == 3 || s.kernel_h == 5 || s.kernel_h == 7);
  // A sum over the lanes costs about what multiplying and adding two vectors does.
  p.sums_lanes = r.grad_weight() && p.dense && r.format.channels_last && r.format.other_channels_last &&
                 s.group_channels() >= 4 * r.lanes();
  // Groups of fewer channels: rows of 5 or 7 taps, for which a vector has 8 lanes.
  p.sums_rows = r.grad_weight() && !p.sums_lanes && r.format.channels_last && r.format.other_channels_last &&
                s.kernel_h == s.kernel_w && (s.kernel_w == 5 || s.kernel_w == 7) && s.stride_h == s.stride_w &&
                s.stride_w <= 2 && s.dilation_h == 1 && s.dilation_w == 1 && r.lanes() >= 8;
  // Reading the map in place saves the pass that packs it. 16-bit elements are then widened in registers, each time they are
  // read: more than twice for the gradient of a window larger than 3 x 3, whose maps are better packed. Weights are worth
  // packing where 8 blocks of channels or more read them.
  const bool rereads = r.grad_weight() && s.kernel_h > 3;
  p.direct = k.masked_windows && p.dense && !p.sums_rows && r.format.unit_map &&
             (r.grad_weight() || s.group_channels() >= k.dense_channels) &&
             (!r.widens() || (r.grad_weight() ? r.format.unit_other && !rereads : r.format.unit_result));
  // Forward windows that are not dense can have 16-bit weights and results in place, or neither.
  const bool in_place = p.direct || (r.forward() && !p.dense && r.format.unit_other && r.format.unit_result);
  const bool packs_widened = !in_place || (!r.grad_weight() && s.group_channels() >= 8 * k.dense_channels);
  p.packs_other = p.channels_last ? r.widens() : r.grad_x() || !r.format.unit_other || (r.widens() && packs_widened);
  // A result of 16 bit is not added to. Strips of more channels would leave the second cache.
  p.sums_whole = p.sums_rows || (r.grad_weight() && r.widens() && (p.direct || s.group_channels() <= kMostWhole));
  const bool stages_widened = r.grad_weight() ? !p.sums_whole : !p.direct && p.packs_other;
  p.stages_result =
      !p.channels_last && !p.sums_rows && (!r.format.unit_result || (r.widens() && stages_widened) || r.result_phases() > 1);
}

void choose_tiles(const Request& r, Involution2dPlan& p) {
  const Involution2dShape& s = r.shape;
  const int64_t height = r.grad_x() ? s.height : s.out_height;
  const int64_t width = r.grad_x() ? s.width : s.out_width;
  // 128 columns of 16 rows: the weights of a tile and the packed strip of a block of channels stay in L2 with K = 7. Fewer rows
  // where that leaves too few tasks to share out; 4 at least, since every tile packs K - 1 rows that its neighbour packs, too.
  // Where strips of all channels of a group are packed at a time, they have no more room than those of 16.
  const int64_t channels = p.sums_whole && !p.direct ? std::clamp<int64_t>(s.group_channels(), 16, kMostWhole) : 16;
  p.col_tile = even_tile(width, kMostColumns * 16 / channels, 16);
  p.col_tiles = ceil_div(width, p.col_tile);
  p.pads = p.channels_last && (r.widens() || r.narrow(p.col_tile));
  // The taps of two groups share cache lines, which threads that have a group each would take from one another.
  const bool pixels = p.channels_last && !p.transposes;
  p.groups_first = pixels || p.sums_rows || p.sums_lanes;
  // Pixels read in place have the weights of all their groups in a row. A task that has few of these groups shares cache lines
  // with others, and one that has few rows computes single pixels at the border: so fewer tasks are enough, and their groups
  // are fewer than 4 only where 4 rows are too many.
  const bool shares = pixels && !p.pads;
  const int64_t enough = shares ? 8 : 12;
  for (int64_t rows : {kMostRows, kMostRows / 2, kMostRows / 4}) {
    p.row_tile = even_tile(height, rows, p.groups_first ? 1 : 4);
    p.row_tiles = ceil_div(height, p.row_tile);
    const int64_t tiles = s.batch * p.row_tiles * p.col_tiles;
    const int64_t most_parts = rows == kMostRows / 4 ? s.groups : std::max<int64_t>(1, s.groups / 4);
    const int64_t parts = shares ? std::min(ceil_div(enough, std::max<int64_t>(1, tiles)), most_parts) : s.groups;
    p.task_groups = ceil_div(s.groups, parts);
    p.tasks = tiles * ceil_div(s.groups, p.task_groups);
    if (p.tasks >= enough) break;
  }
}

// Vectors of channels: what of the map and of weight a task copies, if anything.
void lay_out_pixels(const Request& r, Involution2dPlan& p) {
  const Involution2dShape& s = r.shape;
  p.planes = std::min<int64_t>(r.kernels.pixel_channels[r.is_double()], s.group_channels());
  // Of those outside the map a copy has zeros or nothing.
  const PixelRegion window{r.span(p.row_tile, r.reach_h(), s.stride_h), r.span(p.col_tile, r.reach_w(), s.stride_w), p.planes};
  // Unless it is mostly zeros.
  p.pads = p.transposes || (p.pads && window.columns < 8 * p.col_tile);
  if (r.widens() || p.pads) p.pixels = window;
  if (r.widens() || (p.pads && r.grad_x()))
    p.pixel_weights = {r.grad_x() ? window.rows : p.row_tile, r.grad_x() ? window.columns : p.col_tile, s.taps()};
}

void lay_out_strips(const Request& r, Involution2dPlan& p) {
  const Involution2dShape& s = r.shape;
  const Involution2dKernels& k = r.kernels;
  const int64_t lanes = r.lanes(), element = r.element();
  // A Window touches two vectors from its first tap on: dense ones begin at the first tap of a row, others at any.
  const auto touched = [&](int64_t reach) { return p.dense || p.sums_rows ? std::max(reach, lanes) : reach + lanes; };
  const int64_t tile_rows = p.dense ? round_up(p.row_tile, k.row_block) : p.row_tile;
  const int64_t result_phases = r.result_phases();
  p.result = make_strip(tile_rows, result_phases, 0, 0, ceil_div(p.col_tile, result_phases), lanes, element);
  if (r.grad_x()) {
    // Rows p0 .. p0 + row_tile - 1 of grad_x read rows floor((p0 + ph - reach) / sh) .. floor((p0 + row_tile - 1 + ph) / sh)
    // of grad_y: at most (row_tile - 1 + reach) / sh + 2 of them. The same for columns.
    const int64_t rows = p.dense ? tile_rows + r.reach_h() : (p.row_tile - 1 + r.reach_h()) / s.stride_h + 2;
    const int64_t reach = r.reach_w() / s.stride_w + 2;
    const int64_t outputs = ceil_div(p.col_tile, s.stride_w);
    p.map = make_strip(rows, 1, reach, touched(reach), outputs, lanes, element);
    // Dense tiles want each tap's plane moved by that tap, so that it lines up with the result; others address it like the map.
    p.other = p.dense ? p.result : p.map;
  } else {
    const int64_t rows = (tile_rows - 1) * s.stride_h + r.reach_h() + 1;
    // Taps that stand side by side want the columns as they are, others want them by phase.
    const int64_t step = p.sums_rows ? 1 : s.stride_w;
    const int64_t phases = std::min(step, r.reach_w() + 1);
    const int64_t reach = r.reach_w() / step + 1;
    p.map = make_strip(rows, phases, reach, touched(reach), p.sums_rows ? (p.col_tile - 1) * s.stride_w + 1 : p.col_tile, lanes,
                       element);
    // A second pixel's taps are multiplied where there is none, too.
    if (p.sums_rows) p.map.filled = p.map.pitch;
    p.other = make_strip(tile_rows, 1, 0, 0, p.col_tile, lanes, element);
    // Where the map is read in place, weights are packed a few blocks of rows at a time: the more, the more of a plane is read
    // and written in one go.
    if (p.direct && r.forward()) {
      const int64_t most = kWeightBytes / (s.taps() * p.other.row_pitch * element);
      p.other = make_strip(even_tile(tile_rows, std::max<int64_t>(k.row_block, most), k.row_block), 1, 0, 0, p.col_tile, lanes,
                           element);
    }
  }
  // The forward and grad_x tiles always compute a whole block of channels and store those that exist.
  p.planes = p.sums_whole      ? s.group_channels()
             : r.grad_weight() ? std::min<int64_t>(k.weight_channels, s.group_channels())
             : p.dense         ? k.dense_channels
                               : k.sparse_channels;
  if (p.sums_rows && r.widens()) p.pixels = {p.row_tile, p.col_tile, s.group_channels()};
}

void lay_out_scratch(const Request& r, Involution2dPlan& p) {
  const Involution2dShape& s = r.shape;
  const int64_t element = r.element();
  const int64_t lists =
      bounded_product(s.taps(), p.channels_last ? kPixelTapBytes : kTapRunBytes) + (s.kernel_h + s.kernel_w) * kAxisTapBytes;
  const auto region = [&](const PixelRegion& part, int64_t rows, int64_t columns) {
    const int64_t copied = p.transposes ? part.rows : std::min(part.rows, rows);
    const int64_t pixels = bounded_product(copied, p.pads ? part.columns : std::min(part.columns, columns));
    // What is copied in whole vectors has some more.
    return bounded_product(pixels, part.channels * element) + r.lanes() * element;
  };
  const auto strips = [&](int64_t planes, const StripLayout& layout) {
    return bounded_product(planes * element, layout.plane_pitch);
  };
  const int64_t others = r.grad_weight() ? p.planes : s.taps(), results = r.grad_weight() ? s.taps() : p.planes;
  const int64_t map = p.channels_last
                          ? region(p.pixels, r.grad_x() ? s.out_height : s.height, r.grad_x() ? s.out_width : s.width)
                      : p.direct ? 0
                                 : strips(p.planes, p.map);
  const int64_t other = p.channels_last ? region(p.pixel_weights, s.out_height, s.out_width)
                        : p.sums_rows   ? region(p.pixels, s.out_height, s.out_width)
                        : p.packs_other ? strips(others, p.other)
                                        : 0;
  p.map_at = round_up(lists, kCacheLine);
  p.other_at = p.map_at + round_up(map, kCacheLine);
  p.result_at = p.other_at + round_up(other, kCacheLine);
  const int64_t staged = p.transposes      ? bounded_product(p.row_tile * p.col_tile, p.planes * element)
                         : p.stages_result ? strips(results, p.result)
                                           : 0;
  p.scratch_bytes = p.result_at + staged;
}

}  // namespace

Involution2dPlan plan_involution2d(const Involution2dShape& shape, Involution2dPass pass, const Involution2dKernels& kernels,
                                   const Involution2dFormat& format) {
  const Request request{shape, kernels, format, pass};
  Involution2dPlan p{};
  p.shape = shape;
  choose_kernels(request, p);
  choose_tiles(request, p);
  if (p.sums_lanes) return p;
  if (p.channels_last) {
    lay_out_pixels(request, p);
  } else {
    lay_out_strips(request, p);
  }
  lay_out_scratch(request, p);
  return p;
}

}  // namespace lgld
