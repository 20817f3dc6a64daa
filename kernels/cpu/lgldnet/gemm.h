// Products of matrices in registers: rows of a map times a panel of weights.
#pragma once
#include "lgldnet.h"

namespace lgld {
namespace {

#define LGLD_NOINLINE __attribute__((noinline))

using F = Vec<float>;

// A panel is as wide as leaves room for six rows: 24 or 12 sums, enough chains to hide a multiply-add's latency, with the row
// of the panel and one broadcast element in the registers that are left.
constexpr int kPanelVectors = kVectorRegisters >= 32 ? 4 : 2;
constexpr int kMostRows = 14;

template <int N>
constexpr int kTileRows = (kVectorRegisters - 1 - N) / N < kMostRows ? (kVectorRegisters - 1 - N) / N : kMostRows;

// Left operand: row r, element (s, k) at p[s * segment_pitch + r * pitch + k], for `segments` runs of `length` elements. One
// segment is a matrix; a window of an image's rows is several.
struct Rows {
  const float* p;
  int64_t pitch;
  int64_t segments, length, segment_pitch;
};

// c[r] = init[r] + rows[r] * panel. init_pitch 0 gives every row the same start; c may be the rows themselves.
template <int M, int N>
LGLD_NOINLINE void gemm_tile(const Rows& rows, int64_t row, const float* b, const float* init, int64_t init_pitch, float* c,
                             int64_t c_pitch) {
  F acc[M][N];
  unroll<M>([&](auto m) LGLD_INLINE_LAMBDA {
    unroll<N>([&](auto n) LGLD_INLINE_LAMBDA { acc[m][n] = F::load(init + m * init_pitch + n * F::kLanes); });
  });
  const float* segment = rows.p + row * rows.pitch;
  const int64_t pitch = rows.pitch;
  for (int64_t s = 0; s < rows.segments; ++s, segment += rows.segment_pitch) {
    const float* a = segment;
    for (int64_t k = 0; k < rows.length; ++k, ++a, b += N * F::kLanes) {
      F right[N];
      unroll<N>([&](auto n) LGLD_INLINE_LAMBDA { right[n] = F::load(b + n * F::kLanes); });
      unroll<M>([&](auto m) LGLD_INLINE_LAMBDA {
        const F left = F::broadcast(a[m * pitch]);
        unroll<N>([&](auto n) LGLD_INLINE_LAMBDA { acc[m][n] = F::fma(left, right[n], acc[m][n]); });
      });
    }
  }
  unroll<M>([&](auto m) LGLD_INLINE_LAMBDA {
    unroll<N>([&](auto n) LGLD_INLINE_LAMBDA { acc[m][n].store(c + m * c_pitch + n * F::kLanes); });
  });
}

using TileFunction = void (*)(const Rows&, int64_t, const float*, const float*, int64_t, float*, int64_t);

// gemm_tile<1, N> to gemm_tile<kTileRows<N>, N>.
template <int N, int... M>
LGLD_INLINE TileFunction tile_of(int64_t rows, std::integer_sequence<int, M...>) {
  static constexpr TileFunction kTiles[] = {gemm_tile<M + 1, N>...};
  return kTiles[rows - 1];
}

template <int N>
LGLD_INLINE void gemm_panel_rows(const Rows& a, int64_t row, int64_t rows, const float* b, const float* init,
                                 int64_t init_pitch, float* c, int64_t c_pitch) {
  tile_of<N>(rows, std::make_integer_sequence<int, kTileRows<N>>{})(a, row, b, init, init_pitch, c, c_pitch);
}

// c [rows][columns] = init + a * b, b in panels of kPanelVectors vectors. Where there is one panel, c may be a.
template <int N = kPanelVectors>
void gemm(const Rows& a, int64_t rows, const float* b, int64_t columns, const float* init, int64_t init_pitch, float* c,
          int64_t c_pitch) {
  const int64_t depth = a.segments * a.length, vectors = columns / F::kLanes;
  // Rows in equal pieces: 49 rows are 9 tiles of 5 or 6, never 8 of 6 and a slow one of 1.
  const auto run = [&](auto n, int64_t first, int64_t panels) {
    constexpr int kVectors = decltype(n)::value;
    constexpr int64_t kRows = kTileRows<kVectors>;
    const int64_t tiles = (rows + kRows - 1) / kRows;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = rows * t / tiles, count = rows * (t + 1) / tiles - begin;
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t column = (first + panel * kVectors) * F::kLanes;
        gemm_panel_rows<kVectors>(a, begin, count, b + column * depth, init + begin * init_pitch + column, init_pitch,
                                  c + begin * c_pitch + column, c_pitch);
      }
    }
  };
  const int64_t whole = vectors / N, rest = vectors % N;
  if (whole > 0) run(Int<N>{}, 0, whole);
  if constexpr (N > 1) {
    if (rest == 1) run(Int<1>{}, whole * N, 1);
    if constexpr (N > 2) {
      if (rest == 2) run(Int<2>{}, whole * N, 1);
      if (rest == 3) run(Int<3>{}, whole * N, 1);
    }
  }
}

// The same where c is a and b may have several panels: `copy` holds the rows of one tile.
void gemm_in_place(float* a, int64_t rows, int64_t pitch, int64_t depth, const float* b, int64_t columns, const float* zeros,
                   float* copy) {
  if (columns <= kPanelVectors * F::kLanes) {
    gemm({a, pitch, 1, depth, 0}, rows, b, columns, zeros, 0, a, pitch);
    return;
  }
  constexpr int64_t kRows = kTileRows<kPanelVectors>;
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = rows * t / tiles, count = rows * (t + 1) / tiles - begin;
    for (int64_t r = 0; r < count; ++r)
      for (int64_t n = 0; n < columns; n += F::kLanes) F::load(a + (begin + r) * pitch + n).store(copy + r * columns + n);
    gemm({copy, columns, 1, depth, 0}, count, b, columns, zeros, 0, a + begin * pitch, pitch);
  }
}

}  // namespace
}  // namespace lgld
