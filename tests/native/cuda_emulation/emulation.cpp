#undef _FORTIFY_SOURCE  // its longjmp refuses to leave for another stack
#include "emulation.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "../guarded.h"
#include "kernels/cpu/simd/half.h"

namespace emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 256 * 1024;

enum class State { kReady, kAtBlock, kAtWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool real;
};

// A stack is entered once by its context; afterwards jumps switch, which are free of swapcontext's two system calls.
struct Fiber {
  ucontext_t context;
  jmp_buf resume;
  bool fresh;
  std::unique_ptr<char[]> stack;
  State state;
  unsigned char given[8];
  std::vector<std::vector<Copy>> groups;  // of copies; the last one is open
};

struct Machine {
  Order order = Order::kForward;
  unsigned most_blocks = 0;
  int64_t launches = 0;
  jmp_buf scheduler;
  std::vector<Fiber> fibers;  // stacks are kept from launch to launch
  unsigned threads = 0, current = 0;
  void* shared = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::mt19937 random{1};
};
Machine machine;

void body() {
  (*machine.kernel)();
  machine.fibers[machine.current].state = State::kDone;
  _longjmp(machine.scheduler, 1);
}

__attribute__((noinline)) void enter(unsigned thread) {
  machine.current = threadIdx.x = thread;
  Fiber& fiber = machine.fibers[thread];
  if (_setjmp(machine.scheduler) != 0) return;
  if (!fiber.fresh) _longjmp(fiber.resume, 1);
  fiber.fresh = false;
  setcontext(&fiber.context);
}

__attribute__((noinline)) void wait(State state) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.state = state;
  if (_setjmp(fiber.resume) == 0) _longjmp(machine.scheduler, 1);
}

// Frees the threads [begin, end) where all of them that still run wait for the same.
bool free_where_all(unsigned begin, unsigned end, State state) {
  bool any = false;
  for (unsigned t = begin; t < end; ++t) {
    if (machine.fibers[t].state == State::kDone) continue;
    if (machine.fibers[t].state != state) return false;
    any = true;
  }
  for (unsigned t = begin; t < end; ++t)
    if (machine.fibers[t].state == state) machine.fibers[t].state = State::kReady;
  return any;
}

void run_block() {
  for (unsigned t = 0; t < machine.threads; ++t) {
    Fiber& fiber = machine.fibers[t];
    if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStack);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    fiber.state = State::kReady, fiber.fresh = true, fiber.groups.assign(1, {});
    makecontext(&fiber.context, body, 0);
  }
  std::vector<unsigned> sequence(machine.threads);
  for (unsigned t = 0; t < machine.threads; ++t) sequence[t] = machine.order == Order::kBackward ? machine.threads - 1 - t : t;
  for (;;) {
    if (machine.order == Order::kShuffled) std::shuffle(sequence.begin(), sequence.end(), machine.random);
    bool ran = false, running = false;
    for (const unsigned t : sequence) {
      if (machine.fibers[t].state != State::kReady) continue;
      ran = true;
      enter(t);
    }
    for (unsigned t = 0; t < machine.threads; t += kWarp)
      ran |= free_where_all(t, std::min(machine.threads, t + kWarp), State::kAtWarp);
    ran |= free_where_all(0, machine.threads, State::kAtBlock);
    for (unsigned t = 0; t < machine.threads; ++t) running |= machine.fibers[t].state != State::kDone;
    if (!running) return;
    if (!ran) {
      std::printf("FAILED: threads of a block wait for each other at different places\n");
      std::exit(1);
    }
  }
}

}  // namespace

void set_order(Order order) { machine.order = order; }
void set_most_blocks(unsigned blocks) { machine.most_blocks = blocks; }
int64_t launches() { return machine.launches; }
void* shared_memory() { return machine.shared; }
void wait_for_block() { wait(State::kAtBlock); }
void wait_for_warp() { wait(State::kAtWarp); }

void exchange(const void* give, void* take, size_t bytes, unsigned from) {
  const unsigned first = machine.current / kWarp * kWarp;
  std::memcpy(machine.fibers[machine.current].given, give, bytes);
  wait_for_warp();
  std::memcpy(take, machine.fibers[first + from].given, bytes);
  wait_for_warp();
}

void copy_later(void* to, const void* from, size_t bytes, bool real) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0) {
    std::printf("FAILED: an asynchronous copy of %zu bytes is not aligned\n", bytes);
    std::exit(1);
  }
  machine.fibers[machine.current].groups.back().push_back({to, from, bytes, real});
}

void close_group() { machine.fibers[machine.current].groups.emplace_back(); }

void wait_groups(size_t open) {
  auto& groups = machine.fibers[machine.current].groups;
  while (groups.size() > open + 1) {
    for (const Copy& c : groups.front()) {
      if (c.real) std::memcpy(c.to, c.from, c.bytes);
      if (!c.real) std::memset(c.to, 0, c.bytes);
    }
    groups.erase(groups.begin());
  }
}

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  ++machine.launches;
  if (machine.fibers.size() < block.x) machine.fibers.resize(block.x);
  machine.threads = block.x, machine.kernel = &kernel;
  blockDim = block, gridDim = dim3(machine.most_blocks > 0 ? std::min(machine.most_blocks, grid.x) : grid.x);
  const lgld::test::Guarded shared(std::max<size_t>(shared_bytes, 16), 16, lgld::test::Against::kEnd);
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    std::memset(shared.data(), 0xff, shared_bytes);
    machine.shared = shared.data();
    run_block();
  }
}

float widen_half(uint16_t bits) { return lgld::widen(lgld::Float16{bits}); }
float widen_brain(uint16_t bits) { return lgld::widen(lgld::BFloat16{bits}); }
uint16_t narrow_half(float value) { return lgld::narrow(value, lgld::Float16{}).bits; }
uint16_t narrow_brain(float value) { return lgld::narrow(value, lgld::BFloat16{}).bits; }

}  // namespace emulation
