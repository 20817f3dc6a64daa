// The index arithmetic of the CUDA involution kernels, walked on the host: every copy, load, sum and store that the kernels
// make of the same helpers, on memory that is checked, against the CPU kernel's results.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/cuda/involution2d/index.h"
#include "../../kernels/cuda/involution2d/pixels.h"
#include "../../kernels/cuda/involution2d/window.h"
#include "checks.h"
#include "variants.h"

namespace lgld::test {
namespace {

using cuda::Spot, cuda::Staged, cuda::TileAxis, cuda::TileKernel, cuda::TilePass, cuda::Tiling, cuda::TilingRequest;
using Values = std::vector<double>;

std::string describe(const Involution2dShape& s) {
  const auto n = [](int64_t v) { return std::to_string(v); };
  return "x [" + n(s.batch) + "," + n(s.channels) + "," + n(s.height) + "," + n(s.width) + "] groups " + n(s.groups) +
         " kernel " + n(s.kernel_h) + " stride " + n(s.stride_h) + " padding " + n(s.pad_h) + "," + n(s.pad_w);
}

// --- what the kernels do ----------------------------------------------------------------------------------------------

// One pass of a launch, operands dense NCHW. `skew`: bytes by which the operands miss 16-byte alignment.
struct Launch {
  Involution2dShape shape;
  bool reduces, mirrored;
  TilePass pass;
  int32_t element_bytes, skew;
  TileAxis rows, columns;
  int64_t parts;                  // pixels of the result that an output is, along an axis
  int64_t out_height, out_width;  // of the result
  TileKernel kernel;
  Tiling tiling;
  std::string name;
};

Launch make_launch(const Involution2dShape& s, bool reduces, bool mirrored, int32_t element_bytes, int32_t skew,
                   int64_t enough) {
  Launch l{};
  l.shape = s, l.reduces = reduces, l.mirrored = mirrored, l.element_bytes = element_bytes, l.skew = skew;
  l.pass = reduces ? TilePass::kGradWeight : mirrored ? TilePass::kGradX : TilePass::kForward;
  l.rows = cuda::tile_axis(l.pass, s.height, s.out_height, s.kernel_h, s.stride_h, s.pad_h);
  l.columns = cuda::tile_axis(l.pass, s.width, s.out_width, s.kernel_w, s.stride_w, s.pad_w);
  l.out_height = mirrored ? s.height : s.out_height, l.out_width = mirrored ? s.width : s.out_width;
  l.parts = mirrored ? s.stride_h : 1;
  l.kernel = cuda::tile_kernel(static_cast<int32_t>(s.kernel_h), element_bytes, l.pass, static_cast<int32_t>(s.stride_h));
  const uint64_t address = 4096 + static_cast<uint64_t>(skew);
  const TilingRequest q{s.batch,
                        s.groups,
                        s.group_channels(),
                        l.rows.map,
                        l.columns.map,
                        l.rows.origin,
                        l.columns.origin,
                        l.rows.outputs,
                        l.columns.outputs,
                        cuda::copy_bytes(address, l.columns.map, element_bytes),
                        reduces ? cuda::copy_bytes(address, l.out_width, element_bytes) : 0,
                        cuda::ceil_div(s.group_channels(), 2),
                        enough};
  l.name = describe(s) +
           (reduces    ? " grad_weight "
            : mirrored ? " grad_x "
                       : " forward ") +
           std::to_string(element_bytes) + " bytes, skew " + std::to_string(skew);
  check(cuda::fits(q), l.name + ": fits");
  l.tiling = cuda::plan_tiles(q, l.kernel);
  const Tiling& t = l.tiling;
  const int threads = t.lanes * t.thread_rows * t.planes;
  check(threads >= 1 && threads <= l.kernel.most_threads, l.name + ": " + std::to_string(threads) + " threads");
  check(t.stage_bytes * l.kernel.stages <= cuda::kSharedBytes, l.name + ": shared memory");
  check(t.stage_bytes % 16 == 0 && t.map.bytes % 16 == 0 && t.other.bytes % 16 == 0, l.name + ": alignment of stages");
  check(int64_t{t.slices} * t.slice_channels >= s.group_channels() &&
            int64_t{t.slices - 1} * t.slice_channels < s.group_channels(),
        l.name + ": slices");
  check(t.planes == 1 || t.tiles_h * t.tiles_w == 1, l.name + ": planes side by side");
  return l;
}

// What a block's threads copy of one plane. Shared memory starts as NaN: what nothing was copied to can't be read unnoticed.
void copy_plane(const Launch& l, const Staged& s, int32_t stride, const Spot& spot, const Values& from, int64_t plane_start,
                double* staged) {
  const int threads = l.tiling.lanes * l.tiling.thread_rows;
  const int64_t plane = int64_t{s.height} * s.width, room = s.bytes / l.element_bytes;
  bool inside = true, aligned = true;
  for (int thread = 0; thread < threads; ++thread) {
    for (int n = thread; n < s.rows * s.vectors; n += threads) {
      const cuda::Copy c = cuda::find_copy(s, stride, spot.tile_row, spot.tile_column, n);
      inside = inside && c.shared >= 0 && c.shared + s.vector <= room && c.global + (c.global < 0 ? 0 : s.vector) <= plane;
      aligned = aligned && c.shared % s.vector == 0 &&
                (c.global < 0 || (l.skew + (plane_start + c.global) * l.element_bytes) % (s.vector * l.element_bytes) == 0);
      if (!inside) break;
      for (int e = 0; e < s.vector; ++e)
        staged[c.shared + e] = c.global < 0 ? 0.0 : from[static_cast<size_t>(plane_start + c.global + e)];
    }
  }
  check(inside, l.name + ": a copy leaves the plane or its place in shared memory");
  check(aligned, l.name + ": a copy is not aligned");
}

// apply: a = map, b = weight; reduce: a = map (x), b = grad_y. NaN where nothing was written; `twice` where something was
// twice.
Values emulate(const Launch& l, const Values& a, const Values& b, int64_t results) {
  const Tiling& t = l.tiling;
  const int64_t taps = l.shape.taps(), kernel = l.shape.kernel_h;
  const int64_t map_plane = l.rows.map * l.columns.map, out_plane = l.out_height * l.out_width, step = l.kernel.stride;
  const auto from = [&](int64_t tap) {
    return cuda::taken(static_cast<int32_t>(tap), static_cast<int32_t>(kernel), static_cast<int32_t>(l.shape.stride_h), l.pass);
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Values out(static_cast<size_t>(results), l.reduces ? 0.0 : nan);
  std::vector<int> writes(out.size(), 0);
  const int tile_threads = t.lanes * t.thread_rows, all_threads = tile_threads * t.planes;
  const int64_t room = t.map.bytes / l.element_bytes, other_room = t.other.bytes / l.element_bytes;
  bool reads_inside = true, pairs_aligned = true;
  for (int64_t block = 0; block < t.blocks; ++block) {
    std::vector<Spot> spots;
    for (int thread = 0; thread < all_threads; ++thread) spots.push_back(cuda::find_spot(t, block, thread));
    // [thread][row][pixel][tap] weights or sums
    Values held(static_cast<size_t>(all_threads * t.rows * t.pixels * taps), 0.0);
    const auto slot = [&](int thread, int o, int p, int64_t k) -> double& {
      return held[static_cast<size_t>(((int64_t{thread} * t.rows + o) * t.pixels + p) * taps + k)];
    };
    for (int thread = 0; thread < all_threads && !l.reduces; ++thread) {
      const Spot& s = spots[static_cast<size_t>(thread)];
      for (int o = 0; o < t.rows; ++o)
        for (int p = 0; p < t.pixels; ++p)
          for (int64_t k = 0; k < taps && s.real; ++k) {
            const int64_t i = l.mirrored ? s.row + o - l.rows.origin + from(k / kernel) : s.row + o;
            const int64_t j = l.mirrored ? s.column + p - l.columns.origin + from(k % kernel) : s.column + p;
            const int64_t height = l.shape.out_height, width = l.shape.out_width;  // of the weights
            if (i < 0 || i >= height || j < 0 || j >= width) continue;
            const int64_t tap = l.mirrored && l.parts == 1 ? taps - 1 - k : k;
            slot(thread, o, p, k) = b[static_cast<size_t>(((s.map * taps + tap) * height + i) * width + j)];
          }
    }
    for (int n = 0; n < t.slice_channels; ++n) {
      Values staged(static_cast<size_t>(t.stage_bytes / l.element_bytes), nan);
      for (int plane = 0; plane < t.planes; ++plane) {
        const Spot& s = spots[static_cast<size_t>(plane * tile_threads)];
        if (n >= s.channels) continue;
        const int64_t channel = s.map * t.group_channels + int64_t{s.slice} * t.slice_channels + n;
        copy_plane(l, t.map, l.kernel.stride, s, a, channel * map_plane, staged.data() + plane * room);
        if (l.reduces)
          copy_plane(l, t.other, 1, s, b, channel * out_plane, staged.data() + t.planes * room + plane * other_room);
      }
      for (int thread = 0; thread < all_threads; ++thread) {
        const Spot& s = spots[static_cast<size_t>(thread)];
        if (n >= s.channels) continue;
        const int plane = thread / tile_threads;
        const double* mine = staged.data() + plane * room;
        const double* other = staged.data() + t.planes * room + plane * other_room;
        const int64_t channel = s.map * t.group_channels + int64_t{s.slice} * t.slice_channels + n;
        const int at = cuda::staged_at(t.map, l.kernel.stride, s.tile_row, s.tile_column, s.row, s.column);
        const int other_at = l.reduces ? cuda::staged_at(t.other, 1, s.tile_row, s.tile_column, s.row, s.column) : 0;
        // 16-bit kernels read words of two elements: which half comes first must be what the launcher says.
        const bool pairs = t.pixels == 2 || step == 2, odd = pairs && (l.columns.origin % 2 + 2) % 2 == 1;
        check(step == 1 || odd, l.name + ": what has_tile_kernel takes has odd padding");
        if (pairs)
          pairs_aligned = pairs_aligned && (at - (odd ? 1 : 0)) % 2 == 0 && t.map.pitch % 2 == 0 &&
                          (t.pixels == 1 || (other_at % 2 == 0 && t.other.pitch % 2 == 0));
        const int words_before = odd ? 1 : 0;
        const int64_t last =
            at + ((t.rows - 1) * step + l.kernel.window - 1) * t.map.pitch + (t.pixels - 1) * step + l.kernel.window - 1;
        const int64_t last_word = pairs ? (last | 1) : last;
        reads_inside = reads_inside && at - words_before >= 0 && last_word < room;
        if (l.reduces) reads_inside = reads_inside && other_at + (t.rows - 1) * t.other.pitch + t.pixels - 1 < other_room;
        if (!reads_inside) break;
        for (int o = 0; o < t.rows; ++o)
          for (int p = 0; p < t.pixels; ++p) {
            double sums[2][2] = {};
            for (int64_t k = 0; k < taps; ++k) {
              const double value = mine[at + (o * step + from(k / kernel)) * t.map.pitch + p * step + from(k % kernel)];
              if (l.reduces)
                slot(thread, o, p, k) += other[other_at + o * t.other.pitch + p] * value;
              else
                sums[(k / kernel + 1) % l.parts][(k % kernel + 1) % l.parts] += slot(thread, o, p, k) * value;
            }
            for (int64_t part = 0; part < l.parts * l.parts && !l.reduces; ++part) {
              const int64_t i = (s.row + o) * l.parts + part / l.parts;
              const int64_t j = (s.column + p) * l.parts + part % l.parts;
              if (i >= l.out_height || j >= l.out_width) continue;
              const size_t to = static_cast<size_t>(channel * out_plane + i * l.out_width + j);
              out[to] = sums[part / l.parts][part % l.parts], ++writes[to];
            }
          }
      }
    }
    for (int thread = 0; thread < all_threads && l.reduces; ++thread) {
      const Spot& s = spots[static_cast<size_t>(thread)];
      for (int o = 0; o < t.rows && s.real; ++o)
        for (int p = 0; p < t.pixels; ++p)
          for (int64_t k = 0; k < taps && s.row + o < l.out_height && s.column + p < l.out_width; ++k) {
            const size_t to = static_cast<size_t>((s.map * taps + k) * out_plane + (s.row + o) * l.out_width + s.column + p);
            out[to] += slot(thread, o, p, k), ++writes[to];
          }
    }
  }
  check(reads_inside, l.name + ": a thread reads outside its plane in shared memory");
  check(pairs_aligned, l.name + ": a pair is not aligned");
  const int expected = l.reduces ? t.slices : 1;
  check(std::all_of(writes.begin(), writes.end(), [&](int n) { return n == expected; }),
        l.name + ": an element has not exactly one writer");
  return out;
}

// --- the CPU kernel ---------------------------------------------------------------------------------------------------

Values cpu(const Involution2dShape& s, Involution2dPass pass, const Values& a, const Values& b, int64_t results) {
  const Involution2dKernels& k = *best_cpu_variant()->involution2d;
  const Involution2dPlan plan = plan_involution2d(s, pass, k, {Dtype::kFloat64, false, true, true, true});
  const auto view = [](auto* data, int64_t channels, int64_t height, int64_t width) {
    return Strided<std::remove_reference_t<decltype(*data)>>{data, channels * height * width, height * width, width, 1};
  };
  const int64_t taps = s.groups * s.taps();
  Values out(static_cast<size_t>(results));
  const auto y = [&](auto* data) { return view(data, s.channels, s.out_height, s.out_width); };
  const auto x = [&](auto* data) { return view(data, s.channels, s.height, s.width); };
  const auto w = [&](auto* data) { return view(data, taps, s.out_height, s.out_width); };
  const std::unique_ptr<void, void (*)(void*)> scratch(
      std::aligned_alloc(64, static_cast<size_t>((plan.scratch_bytes + 63) / 64 * 64)), std::free);
  const auto run = select<double>(k, pass);
  if (pass == Involution2dPass::kForward)
    run(plan, x(a.data()), w(b.data()), y(out.data()), 0, plan.tasks, scratch.get());
  else if (pass == Involution2dPass::kGradX)
    run(plan, y(a.data()), w(b.data()), x(out.data()), 0, plan.tasks, scratch.get());
  else
    run(plan, y(a.data()), x(b.data()), w(out.data()), 0, plan.tasks, scratch.get());
  return out;
}

void test_tiles(const Involution2dShape& s, Random& random) {
  std::normal_distribution<double> normal;
  const auto make = [&](int64_t count) {
    Values v(static_cast<size_t>(count));
    for (double& value : v) value = normal(random);
    return v;
  };
  const int64_t x_count = s.batch * s.channels * s.height * s.width,
                y_count = s.batch * s.channels * s.out_height * s.out_width;
  const int64_t w_count = s.batch * s.groups * s.taps() * s.out_height * s.out_width;
  const Values x = make(x_count), y = make(y_count), w = make(w_count);
  const Values forward = cpu(s, Involution2dPass::kForward, x, w, y_count);
  const Values grad_x = cpu(s, Involution2dPass::kGradX, y, w, x_count);
  const Values grad_weight = cpu(s, Involution2dPass::kGradWeight, y, x, w_count);
  const auto same = [](const Values& a, const Values& b) {
    for (size_t i = 0; i < a.size(); ++i)
      if (!(std::abs(a[i] - b[i]) <= 1e-10 * (1 + std::abs(b[i])))) return false;
    return true;
  };
  for (const int32_t bytes : {2, 4, 8}) {
    if (!cuda::has_tile_kernel(s, bytes)) continue;
    // Blocks enough that channels are split and planes stand alone, or so few that neither happens.
    const int64_t enough = pick(random, 0, 1) == 0 ? 1 : pick(random, 2, 400);
    const int32_t skew = bytes * static_cast<int32_t>(pick(random, 0, 16 / bytes - 1));
    Launch l = make_launch(s, false, false, bytes, skew, enough);
    check(same(emulate(l, x, w, y_count), forward), l.name + ": differs from the CPU");
    l = make_launch(s, false, true, bytes, skew, enough);
    check(same(emulate(l, y, w, x_count), grad_x), l.name + ": differs from the CPU");
    l = make_launch(s, true, false, bytes, skew, enough);
    check(same(emulate(l, x, y, w_count), grad_weight), l.name + ": differs from the CPU");
  }
}

// Both gradients walk as grad_weight does, with a second map of x's geometry in each step.
void test_gradients_plan(Random& random) {
  const int64_t height = pick(random, 1, 200), width = pick(random, 1, 400), channels = pick(random, 1, 80);
  for (const int32_t bytes : {2, 4}) {
    const TileKernel k = cuda::gradients_kernel_of(bytes);
    const TilingRequest q{
        pick(random, 1, 9), 1, channels, height, width, 1, 1, height, width, cuda::copy_bytes(4096, width, bytes), 0, 8, 256};
    const Tiling t = cuda::plan_tiles(q, k);
    check(t.lanes * t.thread_rows * t.planes <= k.most_threads, "both gradients: threads");
    check(t.stage_bytes == 2 * t.planes * t.map.bytes && t.stage_bytes * k.stages <= cuda::kSharedBytes,
          "both gradients: memory");
    // The pixel itself, the first of a pair in 16 bits, lies one row and column behind its window's first.
    const int at = cuda::staged_at(t.map, 1, 0, 0, 0, 0);
    check(at >= 0 && (k.pixels == 1 || (at % 2 == 1 && (t.map.pitch + at + 1) % 2 == 0)), "both gradients: pairs");
    check(t.tiles_h * t.thread_rows * t.rows >= height && t.tiles_w * t.lanes * t.pixels >= width, "both gradients: tiles");
  }
}

// --- the other walks --------------------------------------------------------------------------------------------------

void test_pixels(Random& random) {
  const int64_t batch = pick(random, 1, 3), channels = 8 * pick(random, 1, 40), height = pick(random, 1, 19),
                width = pick(random, 1, 150);
  for (const int32_t bytes : {2, 4, 8})
    for (const int32_t kernel : {3, 7}) {
      const cuda::PixelTiling t = cuda::plan_pixels(batch, channels, height, width, kernel, bytes);
      const int threads = t.lanes * t.thread_columns;
      std::vector<int> writes(static_cast<size_t>(batch * height * width * t.vectors), 0);
      for (int64_t block = 0; block < t.blocks; ++block)
        for (int thread = 0; thread < threads; ++thread) {
          const cuda::PixelSpot s = cuda::find_pixels(t, block, thread);
          if (s.vector >= t.vectors) continue;
          for (int64_t i = s.row; i < std::min(s.row + cuda::kPixelRows, height); ++i)
            for (int64_t j = s.column; j < std::min(s.column + t.columns, width); ++j)
              ++writes[static_cast<size_t>(((s.batch * height + i) * width + j) * t.vectors + s.vector)];
        }
      check(threads <= cuda::kPixelThreads, "pixels: threads");
      check(std::all_of(writes.begin(), writes.end(), [](int n) { return n == 1; }),
            "pixels: an output has not exactly one writer");
    }
}

void test_windows(Random& random) {
  const int64_t stride = pick(random, 1, 4), pad = pick(random, 0, 6), dilation = pick(random, 1, 4), taps = pick(random, 1, 7),
                size = pick(random, 1, 40), outputs = (size + 2 * pad - (taps - 1) * dilation - 1) / stride + 1;
  bool same = true;
  for (int64_t at = 0; at < size; ++at)
    for (int64_t tap = 0; tap < taps; ++tap) {
      int64_t found = -1;
      for (int64_t i = 0; i < outputs; ++i)
        if (cuda::input_of(i, tap, stride, pad, dilation) == at) found = i;
      same = same && cuda::output_of(at, tap, stride, pad, dilation, outputs) == found;
    }
  check(same, "output_of is not the inverse of input_of");
}

void test_pieces(Random& random) {
  Involution2dShape s{};
  s.batch = pick(random, 1, 3), s.groups = pick(random, 1, 3), s.channels = s.groups * pick(random, 1, 21);
  const int64_t height = pick(random, 1, 9), width = pick(random, 1, 9);
  for (const bool channels_last : {false, true}) {
    const cuda::Pieces p = cuda::plan_pieces(s, height, width, 4, channels_last);
    std::vector<int> writes(static_cast<size_t>(s.batch * s.channels * height * width), 0);
    for (int64_t number = 0; number < p.pieces; ++number) {
      const cuda::Piece at = cuda::find_piece(p, s.groups, number);
      const int64_t count = cuda::ceil_div(s.group_channels() - at.chunk, p.chunks);
      check(count >= 1 && count <= 4, "pieces: channels of a thread");
      for (int64_t k = 0; k < count; ++k) {
        const int64_t c = at.group * s.group_channels() + at.chunk + k * p.chunks;
        ++writes[static_cast<size_t>(((at.batch * s.channels + c) * height + at.row) * width + at.column)];
      }
    }
    check(std::all_of(writes.begin(), writes.end(), [](int n) { return n == 1; }), "pieces: not exactly one writer");
  }
}

Involution2dShape square(int64_t batch, int64_t channels, int64_t groups, int64_t height, int64_t width, int64_t kernel,
                         int64_t pad_h, int64_t pad_w, int64_t stride = 1) {
  return {batch,
          channels,
          groups,
          height,
          width,
          (height + 2 * pad_h - kernel) / stride + 1,
          (width + 2 * pad_w - kernel) / stride + 1,
          kernel,
          kernel,
          stride,
          stride,
          pad_h,
          pad_w,
          1,
          1};
}

// Launches that no host has the memory to walk: the last thread of the last block is where it should be.
void test_large() {
  for (const Involution2dShape& s :
       {square(1, 1000000, 1, 1, 1, 3, 1, 1), square(1, 1000000, 1000000, 1, 1, 7, 3, 3),
        square(3, 64, 2, 20000, 30000, 3, 1, 1), square(100000, 3, 3, 8, 8, 5, 2, 2), square(1, 16, 1, 1, 200000000, 3, 1, 1),
        square(70000, 70000, 1, 2, 2, 3, 1, 1), square(1, 1000000, 1, 1, 1, 7, 3, 3, 2),
        square(3, 64, 2, 20000, 30000, 3, 1, 1, 2), square(1, 16, 1, 1, 200000000, 7, 3, 3, 2)}) {
    for (const int32_t bytes : {2, 4, 8})
      for (const TilePass pass : {TilePass::kForward, TilePass::kGradX, TilePass::kGradWeight}) {
        if (!cuda::has_tile_kernel(s, bytes)) continue;
        const Launch l = make_launch(s, pass == TilePass::kGradWeight, pass == TilePass::kGradX, bytes, 0, 768);
        const Tiling& t = l.tiling;
        const int threads = t.lanes * t.thread_rows * t.planes;
        Spot last = cuda::find_spot(t, t.blocks - 1, threads - 1);
        for (int thread = threads - 1; thread >= 0 && !last.real; --thread) last = cuda::find_spot(t, t.blocks - 1, thread);
        check(last.real && last.map == s.batch * s.groups - 1 && last.slice == t.slices - 1, l.name + ": the last unit");
        check(last.tile_row + t.thread_rows * t.rows >= l.rows.outputs &&
                  last.tile_column + t.lanes * t.pixels >= l.columns.outputs,
              l.name + ": the last tile");
        check(t.blocks <= cuda::kMostBlocks || t.blocks % cuda::kMostBlocks >= 0, l.name + ": blocks");
      }
  }
  const TilingRequest wide{1, 1, 8, 65536, 65536, 1, 1, 65536, 65536, 4, 0, 1, 768};
  check(!cuda::fits(wide), "a plane of 2^32 elements is not for 32-bit offsets");
}

int run(uint64_t seed, int shapes) {
  Random random(seed);
  for (int n = 0; n < shapes; ++n) {
    const int64_t kernel = 3 + 2 * pick(random, 0, 2), groups = pick(random, 1, 3);
    const int64_t channels = groups * pick(random, 1, pick(random, 0, 3) == 0 ? 19 : 6);
    const int64_t height = pick(random, 1, pick(random, 0, 4) == 0 ? 60 : 20);
    const int64_t width = pick(random, 1, pick(random, 0, 4) == 0 ? 300 : 40);
    const int64_t pad_h = pick(random, 0, pick(random, 0, 4) == 0 ? 11 : 3),
                  pad_w = pick(random, 0, pick(random, 0, 4) == 0 ? 40 : 3);
    if (height + 2 * pad_h < kernel || width + 2 * pad_w < kernel) continue;
    test_tiles(square(pick(random, 1, 3), channels, groups, height, width, kernel, pad_h, pad_w), random);
    test_tiles(square(pick(random, 1, 3), channels, groups, height, width, kernel, pad_h | 1, pad_w | 1, 2), random);
  }
  for (const int64_t kernel : {3, 5, 7})  // the shapes that benchmarks have, fewer of them
    for (const int64_t side : {112, 56, 28, 14, 7})
      for (const int64_t stride : {1, 2})
        test_tiles(square(1, 4, 2, side, side, kernel, kernel / 2, kernel / 2, stride), random);
  for (int n = 0; n < shapes; ++n) test_pixels(random), test_windows(random), test_pieces(random), test_gradients_plan(random);
  test_large();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  return verdict();
}

}  // namespace
}  // namespace lgld::test

// lgld_cuda_index_tests [SEED [SHAPES]]
int main(int argc, char** argv) {
  return lgld::test::run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20261121, argc > 2 ? std::atoi(argv[2]) : 80);
}
