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

// Tasks are drawn in order, one by one. A task waits until all tasks of the phases before its own are done: each of these was
// drawn by a thread that is running it, so one thread alone never waits and several never wait in a circle, whether torch runs
// the workers at once or one after the other.
template <class CallOf>
void run_lgldnet(const LgldnetKernels& kernels, const LgldnetLease& lease, int64_t images, int first_phase, int last_phase,
                 CallOf&& call_of) {
  const LgldnetPlan& plan = lease.plan();
  struct Run {
    int stage;
    int64_t begin, phase_begin;  // tasks of this image before the stage, before its phase
  };
  Run runs[kLgldnetStages];
  int count = 0;
  int64_t tasks = 0, widest = 1;
  for (int phase = first_phase; phase < last_phase; ++phase) {
    const int64_t phase_begin = tasks;
    for (int stage = 0; stage < kLgldnetStages; ++stage)
      if (plan.stages[stage].phase == phase) runs[count++] = {stage, tasks, phase_begin}, tasks += plan.stages[stage].tasks;
    widest = std::max(widest, tasks - phase_begin);
  }
  // On lines of their own: one is written by whoever draws, the other read by whoever waits.
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int64_t> done{0};
  const int64_t all = tasks * images;
  const auto work = [&](int64_t worker) {
    float* scratch = lease.scratch(worker);
    int64_t image = -1;
    LgldnetCall call{};
    for (;;) {
      const int64_t ticket = next.fetch_add(1, std::memory_order_relaxed);
      if (ticket >= all) return;
      if (ticket / tasks != image) image = ticket / tasks, call = call_of(image);
      const int64_t within = ticket % tasks;
      int r = count - 1;
      while (runs[r].begin > within) --r;
      const int64_t needed = image * tasks + runs[r].phase_begin;
      for (int spins = 0; done.load(std::memory_order_acquire) < needed; ++spins) {
        // Where there are more threads than processors, whoever is awaited may need this one.
        if (spins < 4096) {
          pause_briefly();
        } else {
          sched_yield();
        }
      }
      kernels.run(call, runs[r].stage, within - runs[r].begin, scratch);
      done.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t workers = std::min(lease.workers(), widest);
  if (workers == 1) return work(0);
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) work(worker);
  });
}

// One stage alone, its inputs as an earlier run left them.
inline void run_lgldnet_stage(const LgldnetKernels& kernels, const LgldnetLease& lease, const LgldnetCall& call, int stage) {
  std::atomic<int64_t> next{0};
  const int64_t tasks = lease.plan().stages[stage].tasks;
  torch::stable::parallel_for(0, std::min(lease.workers(), tasks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t task = next++; task < tasks; task = next++) kernels.run(call, stage, task, lease.scratch(worker));
  });
}

}  // namespace lgld
