// Sizes of buffers and tasks, from the geometry and the instruction set alone.
#include "lgldnet.h"

namespace lgld {
namespace {

// What one task's transformed tiles may fill: less than half of the second-level cache of everything from a Cortex-A76 (512
// KiB) on, so that the weights, which stream through it, do not push them out.
constexpr int64_t kTileFloats = 100 * 1024;

// Pixels of a map up to which the dilated convolutions are done tap by tap (docs/performance.md says what decides it).
constexpr int64_t kDirectPixels = 128;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// The size of equal pieces of `all`, none above `limit`.
int64_t equal_pieces(int64_t all, int64_t limit) {
  limit = most(1, least(limit, all));
  return ceil_div(all, ceil_div(all, limit));
}

// Every frequency's block of tiles begins a cache line later in its page than the one before: 64 blocks whose distance is a
// multiple of 4 KiB would compete for the same few cache lines.
int64_t frequency_pitch(int64_t floats) { return round_up(floats, 16) + (ceil_div(floats, 16) % 2 == 0 ? 16 : 0); }

struct Layout {
  int64_t at = 0;
  int64_t take(int64_t floats) {
    const int64_t begin = at;
    at += round_up(floats, 16);
    return begin;
  }
};

}  // namespace

LgldnetPlan lgldnet_plan(const LgldnetGeometry& g, const LgldnetVectors& v, int64_t pixel_block) {
  LgldnetPlan p{};
  p.geometry = g, p.vectors = v, p.pixel_block = pixel_block;
  p.packed = lgldnet_packed(g, v);
  p.parameters = lgldnet_parameters(g.in_channels, g.channels, g.classes);
  const int64_t h = p.height = ceil_div(g.height, 2), w = p.width = ceil_div(g.width, 2);
  const int64_t c = g.channels, d = p.hidden = c / 4;
  const int64_t columns = p.padded = round_up(c, v.lanes);
  p.padded_hidden = round_up(d, v.lanes), p.padded_taps = round_up(9, v.lanes);

  // The last register tile of a row may read pixel_block - 1 pixels too far: into the border and the row below.
  p.stem_row = (w + 4) * columns;
  const int64_t stem_map = ((h + 4) * (w + 4) + pixel_block) * columns;

  p.wide_rows = ceil_div(ceil_div(h, 4), 4), p.wide_cols = ceil_div(ceil_div(w, 4), 4);
  p.near_rows = ceil_div(ceil_div(h, 2), 4), p.near_cols = ceil_div(ceil_div(w, 2), 4);
  p.wide_grids_i = least(h, 4), p.wide_grids_j = least(w, 4), p.near_grids_i = least(h, 2), p.near_grids_j = least(w, 2);
  p.grid_columns = 4 * p.wide_cols + 4, p.grid = (4 * p.wide_rows + 4) * p.grid_columns * columns;
  p.context_columns = 4 * p.wide_cols, p.context_grid = 16 * p.wide_rows * p.wide_cols * columns;
  const int64_t wide_tiles = p.wide_rows * p.wide_cols * p.wide_grids_i * p.wide_grids_j;
  const int64_t near_tiles = p.near_rows * p.near_cols * p.near_grids_i * p.near_grids_j;
  p.wide_block = equal_pieces(wide_tiles, kTileFloats / (64 * columns));
  p.near_block = equal_pieces(near_tiles, kTileFloats / (36 * columns));
  p.wide_pitch = frequency_pitch(p.wide_block * columns), p.near_pitch = frequency_pitch(p.near_block * columns);

  p.direct = h * w <= kDirectPixels;

  // Rows of a task: enough pixels to be worth handing out, few enough that the last ones end together.
  p.stem_rows = equal_pieces(h, most(8, 1024 / w)), p.mixer_rows = equal_pieces(h, most(2, 512 / w));
  p.local_rows = equal_pieces(h, most(2, 512 / w)), p.head_rows = equal_pieces(h, most(2, 512 / w));
  p.strip = round_up(equal_pieces(w, 32), pixel_block);

  const int64_t stem_tasks = ceil_div(h, p.stem_rows), mixer_tasks = ceil_div(h, p.mixer_rows);
  const int64_t local_tasks = ceil_div(h, p.local_rows), head_tasks = ceil_div(h, p.head_rows);
  const int64_t wide_tasks = p.direct ? h : ceil_div(wide_tiles, p.wide_block);
  const int64_t near_tasks = p.direct ? h : ceil_div(near_tiles, p.near_block);

  Layout space;
  const auto buffer = [&](LgldnetBufferName which, const char* name, int64_t floats) {
    p.buffers[which] = {name, floats > 0 ? space.take(floats) : 0, floats};
    return p.buffers[which].begin;
  };
  buffer(kImage, "image", 0), buffer(kResults, "results", 0);
  p.stem_map = buffer(kStemMap, "stem map", stem_map), p.mixer_map = buffer(kMixerMap, "mixer map", 16 * p.grid);
  p.context_map = buffer(kContextMap, "context map", 16 * p.context_grid);
  p.local_map = buffer(kLocalMap, "local map", h * w * columns);
  p.local_sums = buffer(kLocalSums, "local sums", local_tasks * columns);
  p.context_sums = buffer(kContextSums, "context sums", near_tasks * columns);
  p.head_sums = buffer(kHeadSums, "head sums", head_tasks * columns), p.blend = buffer(kBlend, "blend", 4 * columns);
  p.workspace = space.at;
  p.tables = (h + w) * columns;

  const int64_t image_row = round_up(2 * w + 1, 16), ring = 3 * (w + 2) * columns;
  const int64_t stem_scratch = 3 * g.in_channels * image_row + ring + w * (p.padded_hidden + p.padded_taps);
  const int64_t mixer_scratch = g.in_channels * round_up(w, 16);
  const int64_t rows_copy = 16 * columns;  // of a product of matrices in place
  const int64_t context_scratch = p.direct ? 0 : most(64 * p.wide_pitch, 36 * p.near_pitch) + rows_copy;
  const int64_t strips = p.strip * 5 * columns;
  p.scratch = round_up(most(most(stem_scratch, mixer_scratch), most(context_scratch, strips)), 16);

  const int64_t pixels = h * w, vector = columns, f = sizeof(float);
  const int64_t map = pixels * columns * f, image = g.in_channels * g.height * g.width * f;
  // Winograd computes whole tiles.
  const int64_t wide_outputs = p.direct ? pixels : wide_tiles * 16, near_outputs = p.direct ? pixels : near_tiles * 16;
  const int64_t wide_matrices = p.direct ? 17 : 64, near_matrices = p.direct ? 9 : 36;
  const int64_t wide_macs = (p.direct ? pixels : wide_tiles) * wide_matrices * c * c;
  const int64_t near_macs = (p.direct ? pixels : near_tiles) * near_matrices * c * c;
  const auto stage = [&](LgldnetStageName which, const char* name, const char* kernel, unsigned reads, unsigned writes,
                         int phase, int64_t tasks, int64_t macs, int64_t silus, int64_t read, int64_t written) {
    p.stages[which] = {name, kernel, reads, writes, phase, tasks, macs, silus, read, written};
  };
  const auto in = [](auto... which) { return (0u | ... | (1u << which)); };
  stage(kLocalStem, "local stem", "row by row", in(kImage), in(kStemMap), 0, stem_tasks,
        pixels * (g.in_channels * 9 * (c + d) + 9 * d + 9 * c), pixels * (c + d), image, map);
  stage(kGlobalStem, "global stem", "pixel by pixel", in(kImage), in(kMixerMap), 0, mixer_tasks, pixels * g.in_channels * c,
        pixels * c, image / 4, map);
  stage(kWideContext, "context, dilations 4 and 8", p.direct ? "17 taps" : "F(4x4, 5x5)", in(kMixerMap), in(kContextMap), 1,
        wide_tasks, wide_macs, 0, map + wide_matrices * c * columns * f, wide_outputs * vector * f);
  stage(kNearContext, "context, dilation 2", p.direct ? "9 taps" : "F(4x4, 3x3)", in(kMixerMap, kContextMap),
        in(kContextMap, kContextSums), 2, near_tasks, near_macs, near_outputs * c,
        map + wide_outputs * vector * f + near_matrices * c * columns * f, near_outputs * vector * f);
  stage(kLocalFeatures, "local features", "strips of a row", in(kStemMap), in(kLocalMap, kLocalSums), 2, local_tasks,
        pixels * (34 * c + 4 * c * c), pixels * 3 * c, map + (34 + 4 * c) * columns * f, map);
  stage(kGates, "gates", "in double", in(kLocalSums, kContextSums), in(kBlend), 3, 1, 2 * c * d + 4 * c, d,
        (local_tasks + near_tasks) * columns * f, 2 * columns * f);
  stage(kHead, "head", "strips of a row", in(kLocalMap, kContextMap, kBlend), in(kHeadSums), 4, head_tasks,
        pixels * (c * c + 2 * c), pixels * c, 2 * map + c * columns * f, head_tasks * columns * f);
  stage(kLogits, "logits", "in double", in(kHeadSums), in(kResults), 5, 1, c * g.classes, 0,
        (head_tasks + g.classes) * columns * f, (c + g.classes) * f);
  p.phases = 6;
  return p;
}

}  // namespace lgld
