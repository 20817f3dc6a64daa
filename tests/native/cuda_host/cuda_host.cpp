#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda_runtime_api.h"

namespace lgld::cuda_host {

Index thread, block, block_size;
bool last_first = false;
int64_t divergent = 0;

namespace {

constexpr size_t kStackBytes = size_t{256} << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  bool ended;
  unsigned shuffles;
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
unsigned current;
const std::function<void()>* running;
std::vector<uint64_t> shared;
std::vector<uint64_t>
    passed[2];  // by lanes to each other; two in turn, so that no lane overwrites what another has yet to read

void enter() {
  (*running)();
  fibers[current].ended = true;
  swapcontext(&fibers[current].context, &scheduler);
}

void give_way() {
  swapcontext(&fibers[current].context, &scheduler);
  thread.x = current;
}

}  // namespace

unsigned char* shared_memory() { return reinterpret_cast<unsigned char*>(shared.data()); }

void barrier() { give_way(); }

uint64_t exchange(uint64_t value, int mask) {
  std::vector<uint64_t>& slots = passed[fibers[current].shuffles++ % 2];
  slots[current] = value;
  give_way();
  return slots[current ^ static_cast<unsigned>(mask)];
}

void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
  if (fibers.size() < threads) fibers.resize(threads);
  running = &kernel;
  block_size.x = threads;
  for (auto& slots : passed) slots.assign((threads + 31) / 32 * 32, 0);
  for (block.x = 0; block.x < blocks; ++block.x) {
    shared.assign((shared_bytes + 15) / 16 * 2, ~uint64_t{0});
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& f = fibers[t];
      f.ended = false, f.shuffles = 0;
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get(), f.context.uc_stack.ss_size = kStackBytes, f.context.uc_link = nullptr;
      makecontext(&f.context, enter, 0);
    }
    for (unsigned left = threads; left > 0;) {
      const unsigned before = left;
      for (unsigned n = 0; n < threads; ++n) {
        current = last_first ? threads - 1 - n : n;
        if (fibers[current].ended) continue;
        thread.x = current;
        swapcontext(&scheduler, &fibers[current].context);
        if (fibers[current].ended) --left;
      }
      // All come to the same barriers and shuffles: either every thread that was there ended, or none.
      if (left != 0 && left != before) ++divergent;
    }
  }
}

}  // namespace lgld::cuda_host
