// Hands a plan's tasks to torch's threads, all phases of all images in one parallel region.
#pragma once
#include <sched.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "csrc/cpu/lgldnet_cache.h"

namespace lgld {

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Each worker has an equal run of a stage's tasks, the same one in every call, so that it finds in its core's caches what it
// wrote in the stage before; who is done early takes from the others. Before a phase a worker waits until all tasks of the
// phases before are done: it found none of them left, so each is being run by a thread that is awake, and one thread alone
// never waits. It is all the same whether torch runs the workers at once or one after the other.
template <class CallOf>
void run_lgldnet(const LgldnetKernels& kernels, const LgldnetLease& lease, int64_t images, int first_stage, int last_stage,
                 CallOf&& call_of) {
  const LgldnetPlan& plan = lease.plan();
  int64_t widest = 1;
  for (int stage = first_stage; stage < last_stage; ++stage) widest = std::max(widest, plan.stages[stage].tasks);
  const int64_t workers = std::min(lease.workers(), widest);
  std::atomic<int64_t> done{0};
  // Runs number their own images: a counter of an earlier one counts as new.
  const uint64_t first_turn = lease.take_turns(images);

  const auto run_stage = [&](const LgldnetCall& call, int stage, int64_t worker, uint64_t turn) {
    const int64_t tasks = plan.stages[stage].tasks;
    for (int64_t k = 0; k < workers; ++k) {
      const int64_t owner = (worker + k) % workers, begin = tasks * owner / workers, end = tasks * (owner + 1) / workers;
      std::atomic<uint64_t>& drawn = lease.drawn(stage, owner);
      for (uint64_t seen = drawn.load(std::memory_order_relaxed);;) {
        const uint64_t count = seen >> 32 == turn ? seen & 0xffffffffu : 0;
        // A later turn's counter: this stage was over long ago.
        if (seen >> 32 > turn || begin + static_cast<int64_t>(count) >= end) break;
        if (!drawn.compare_exchange_weak(seen, turn << 32 | (count + 1), std::memory_order_relaxed)) continue;
        kernels.run(call, stage, begin + static_cast<int64_t>(count), lease.scratch(worker));
        done.fetch_add(1, std::memory_order_release);
        seen = drawn.load(std::memory_order_relaxed);
      }
    }
  };
  const auto work = [&](int64_t worker) {
    int64_t before = 0;  // tasks of all phases before
    for (int64_t image = 0; image < images; ++image) {
      const LgldnetCall call = call_of(image);
      for (int stage = first_stage; stage < last_stage;) {
        for (int spins = 0; done.load(std::memory_order_acquire) < before; ++spins) {
          // Where there are more threads than processors, whoever is awaited may need this one.
          if (spins < 4096) {
            pause_briefly();
          } else {
            sched_yield();
          }
        }
        for (const int phase = plan.stages[stage].phase; stage < last_stage && plan.stages[stage].phase == phase; ++stage) {
          run_stage(call, stage, worker, first_turn + static_cast<uint64_t>(image));
          before += plan.stages[stage].tasks;
        }
      }
    }
  };
  if (workers == 1) return work(0);
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) work(worker);
  });
}

}  // namespace lgld
