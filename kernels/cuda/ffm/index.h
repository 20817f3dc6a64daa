// How the Fourier feature mixer is shared out among blocks and threads, and where things lie in its workspace: functions of the
// shape alone, the same on the host and on the device, so that tests on the host cover what the kernels do with them.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../../ffm_shape.h"
#include "../common/index.h"

namespace lgld::cuda {

constexpr int kWarp = 32;
constexpr int kFfmThreads = 128;
constexpr int kFfmWarps = kFfmThreads / kWarp;

// A tensor [batch][channel][row][column]; strides in elements.
struct FfmMap {
  void* data;
  int64_t batch, channel, row, column;
};

// Blocks of a grid for so many units of work; a block takes every so many of them.
constexpr int64_t blocks_for(int64_t units) { return units < 1 ? 1 : min64(units, kMostBlocks); }

struct FfmPosition {
  int64_t image, row, column;  // of the grid of pixels that are read
};

// Channels that one block goes through, at most: what its shared memory has room for.
constexpr int64_t kFfmMostChunk = 64;

// Chunks of channels, of a size that makes at least 512 units of work (some 4 for each multiprocessor of an H200) where there
// are as many, so that small maps fill a GPU as well; a multiple of 8.
constexpr int64_t ffm_chunk(int64_t channels, int64_t tiles) {
  int64_t chunk = kFfmMostChunk;
  while (chunk > 8 && (chunk / 2 >= channels || tiles * ceil_div(channels, chunk) < 512)) chunk /= 2;
  return chunk;
}

// Planes [batch][channel][row][column]: a thread has `per_thread` vectors of `lanes` neighbouring columns, whose features it
// keeps, and goes through a chunk of channels. Neighbouring threads have neighbouring vectors.
struct FfmPlanes {
  int64_t lanes, per_row, per_image, vectors;
  int64_t per_tile, tiles, chunk, chunks;

  constexpr int64_t units() const { return tiles * chunks; }
  // The vector that a thread has as its r-th; beyond `vectors` there is none.
  constexpr int64_t vector(int64_t tile, int64_t r, int64_t thread) const { return tile * per_tile + r * kFfmThreads + thread; }
  constexpr FfmPosition at(int64_t vector) const {
    const int64_t image = quotient(vector, per_image), rest = vector - image * per_image, row = quotient(rest, per_row);
    return {image, row, (rest - row * per_row) * lanes};
  }
};

constexpr FfmPlanes ffm_planes(const FfmShape& s, int lanes, int per_thread) {
  FfmPlanes p{};
  p.lanes = lanes, p.per_row = s.out_width / lanes, p.per_image = s.out_height * p.per_row, p.vectors = s.batch * p.per_image;
  p.per_tile = static_cast<int64_t>(kFfmThreads) * per_thread, p.tiles = ceil_div(p.vectors, p.per_tile);
  p.chunk = ffm_chunk(s.channels, p.tiles), p.chunks = ceil_div(s.channels, p.chunk);
  return p;
}

// Channels are neighbours: a thread has `lanes` of them, whose folded map it keeps, and goes through positions; `members`
// threads, a power of two in one warp, share a position. A tile's features lie in shared memory.
constexpr int kFfmTile = 512;

struct FfmLast {
  int64_t lanes, members, positions;
  int64_t tiles, chunk, chunks;

  constexpr int64_t units() const { return tiles * chunks; }
  constexpr int64_t first_channel(int64_t chunk_index, int64_t thread) const {
    return chunk_index * chunk + (thread & (members - 1)) * lanes;
  }
  // A thread's first position in a tile, and the distance to its next.
  constexpr int first(int thread) const { return thread / static_cast<int>(members); }
  constexpr int step() const { return kFfmThreads / static_cast<int>(members); }
};

constexpr FfmLast ffm_last(const FfmShape& s, int lanes) {
  FfmLast p{};
  p.lanes = lanes, p.positions = s.positions(), p.tiles = ceil_div(p.positions, kFfmTile);
  p.members = 1;
  while (p.members * lanes < s.channels && p.members * lanes < kFfmMostChunk && p.members < kWarp) p.members *= 2;
  p.chunk = p.members * lanes, p.chunks = ceil_div(s.channels, p.chunk);
  return p;
}

constexpr FfmPosition ffm_position(const FfmShape& s, int64_t position) {
  const int64_t plane = s.out_height * s.out_width, image = quotient(position, plane), rest = position - image * plane;
  const int64_t row = quotient(rest, s.out_width);
  return {image, row, rest - row * s.out_width};
}

// The image's moments: a task is a run of rows of the grid, of all images, and as many columns as a block has threads; a thread
// keeps to its column.
struct FfmMoments {
  int64_t columns, column_tiles;  // of a task at most
  int64_t rows, rows_per_task, row_tasks, tasks;
  int64_t record;  // doubles that a task leaves: products of pairs of channels, channels, channels times each position term

  constexpr int groups() const { return kFfmThreads / static_cast<int>(columns); }  // rows that are read at a time
};

constexpr FfmMoments ffm_moments(const FfmShape& s) {
  FfmMoments m{};
  m.columns = min64(s.out_width, kFfmThreads), m.column_tiles = ceil_div(s.out_width, m.columns);
  m.rows = s.batch * s.out_height;
  // 8 rows a thread, and no more than 1024 tasks, whose sums one block adds, where the width allows it.
  const int64_t wanted = ceil_div(m.rows, m.groups() * 8), most = max64(1, 1024 / m.column_tiles);
  m.rows_per_task = max64(1, ceil_div(m.rows, max64(1, min64(wanted, most))));
  m.row_tasks = ceil_div(m.rows, m.rows_per_task), m.tasks = m.column_tiles * m.row_tasks;
  m.record = s.pairs() + 5 * s.inputs;
  return m;
}

// Pixels that stand for the image where a mean of a few is wanted: an even grid of at most 4 images, 8 rows and 8 columns.
struct FfmSamples {
  int64_t images, rows, columns;  // how many of each
  int64_t image_step, row_step, column_step;

  constexpr int64_t count() const { return images * rows * columns; }
};

constexpr FfmSamples ffm_samples(const FfmShape& s) {
  FfmSamples q{};
  q.image_step = ceil_div(s.batch, 4), q.row_step = ceil_div(s.out_height, 8), q.column_step = ceil_div(s.out_width, 8);
  q.images = s.batch == 0 ? 0 : ceil_div(s.batch, q.image_step);
  q.rows = ceil_div(s.out_height, q.row_step), q.columns = ceil_div(s.out_width, q.column_step);
  return q;
}

// The folded map of a channel lies as [image ..., column sin, column cos, row sin, row cos, offset, ...], 16 bytes aligned.
constexpr int64_t ffm_record(int64_t inputs) { return (inputs + 5 + 3) / 4 * 4; }

// Which of the tensor's layouts the fast kernels take.
enum class FfmLayout { kPlanes, kPlanesByOne, kLast };

// Whether every run of `lanes` columns from a multiple of `lanes` on is one aligned access.
inline bool ffm_whole_vectors(const FfmMap& m, int64_t batch, int64_t channels, int64_t rows, int64_t columns, size_t element,
                              int lanes) {
  const auto whole = [&](int64_t stride, int64_t extent) { return extent == 1 || stride % lanes == 0; };
  return reinterpret_cast<uintptr_t>(m.data) % (static_cast<size_t>(lanes) * element) == 0 && m.column == 1 &&
         columns % lanes == 0 && whole(m.batch, batch) && whole(m.channel, channels) && whole(m.row, rows);
}

// Which kernels take a map of y's shape; the lanes are the elements that a thread moves at once, of a plane and of a position's
// channels. kLast takes maps whose positions are `column` elements apart throughout.
inline FfmLayout ffm_layout(const FfmShape& s, const FfmMap& m, size_t element, int lanes_of_planes, int lanes_of_last) {
  if (ffm_whole_vectors(m, s.batch, s.channels, s.out_height, s.out_width, element, lanes_of_planes)) return FfmLayout::kPlanes;
  const bool dense = (s.out_height == 1 || m.row == s.out_width * m.column) &&
                     (s.batch == 1 || m.batch == s.out_height * s.out_width * m.column);
  const bool aligned = reinterpret_cast<uintptr_t>(m.data) % (static_cast<size_t>(lanes_of_last) * element) == 0;
  if (aligned && m.channel == 1 && dense && s.channels % lanes_of_last == 0 && m.column % lanes_of_last == 0)
    return FfmLayout::kLast;
  return FfmLayout::kPlanesByOne;
}

}  // namespace lgld::cuda
