// What one task of a plan covers, and where its operands and results are.
#pragma once
#include "pack.h"

namespace lgld {
namespace {

struct Task {
  int64_t image, group, groups, row, rows, col, cols;  // a tile of the result, of `groups` groups from `group` on
};

Task make_task(const Involution2dPlan& p, int64_t index, int64_t height, int64_t width) {
  Task t;
  const auto next = [&](int64_t count) LGLD_INLINE_LAMBDA {
    const int64_t number = index % count;
    index /= count;
    return number;
  };
  const int64_t parts = ceil_div(p.shape.groups, p.task_groups);
  if (p.groups_first) t.group = next(parts) * p.task_groups;
  t.col = next(p.col_tiles) * p.col_tile;
  t.row = next(p.row_tiles) * p.row_tile;
  if (!p.groups_first) t.group = next(parts) * p.task_groups;
  t.image = index;
  t.groups = p.shape.groups - t.group < p.task_groups ? p.shape.groups - t.group : p.task_groups;
  t.rows = height - t.row < p.row_tile ? height - t.row : p.row_tile;
  t.cols = width - t.col < p.col_tile ? width - t.col : p.col_tile;
  return t;
}

// Adds the tasks that follow `index`, up to `end`, to `t` while they go on below it and `most` rows are not passed, and returns
// the last one's index. For kernels that keep nothing a tile has room for: fewer rows of the map are then read twice.
int64_t merge_below(const Involution2dPlan& p, int64_t index, int64_t end, int64_t height, int64_t most, Task& t) {
  if (p.col_tiles != 1) return index;
  while (index + 1 < end && (index + 1) % p.row_tiles != 0) {
    const int64_t rows = make_task(p, index + 1, height, t.cols).rows;
    if (t.rows + rows > most) break;
    t.rows += rows;
    ++index;
  }
  return index;
}

template <class T>
T* scratch_at(void* memory, int64_t bytes) {
  return reinterpret_cast<T*>(static_cast<char*>(memory) + bytes);
}

// One image of a tensor from channel `channel` on, of the map's or of the result's size.
template <class S>
Planes<S> planes_of(const Strided<const S>& t, int64_t image, int64_t channel, int64_t height, int64_t width) {
  return {t.data + image * t.batch + channel * t.channel, t.channel, t.row, t.column, height, width};
}

template <class S>
S* corner_of(const Strided<S>& t, const Task& task, int64_t channel) {
  return t.data + task.image * t.batch + channel * t.channel + task.row * t.row + task.col * t.column;
}

// Where a tile's results are computed: in the tensor, or in strips of E that go there at the end.
template <class S, class E = Compute<S>>
struct Target {
  E* data;
  int64_t plane, row;

  Target(const Involution2dPlan& p, const Strided<S>& result, const Task& t, int64_t channel, void* memory) {
    if constexpr (std::is_same_v<S, E>) {
      if (!p.stages_result) {
        data = corner_of(result, t, channel), plane = result.channel, row = result.row;
        return;
      }
    }
    data = scratch_at<E>(memory, p.result_at), plane = p.result.plane_pitch, row = p.result.row_pitch;
  }

  void finish(const Involution2dPlan& p, const Strided<S>& result, const Task& t, int64_t channel, int64_t planes) const {
    if (p.stages_result) unpack_planes(data, p.result, planes, t.rows, t.cols, result, corner_of(result, t, channel));
  }
};

}  // namespace
}  // namespace lgld
