// Packed weights, plans and workspaces of the networks in use: bounded, shared by all threads, droppable, safe after fork.
#pragma once
#include <atomic>
#include <cstdint>
#include <list>
#include <memory>

#include "csrc/cpu/variant.h"
#include "kernels/cpu/lgldnet/lgldnet.h"

namespace lgld {

struct LgldnetNetwork;
struct LgldnetSize;
struct LgldnetWorkspace;

// What one call needs, for as long as it runs. A network is recognised by its parameters' values, compared with a copy on every
// call (0.6 MB, some 30 us), so that weights changed in place are never missed.
class LgldnetLease {
 public:
  LgldnetLease(const LgldnetKernels& kernels, const LgldnetGeometry& geometry, const float* parameters, int64_t threads);
  ~LgldnetLease();
  LgldnetLease(const LgldnetLease&) = delete;
  LgldnetLease& operator=(const LgldnetLease&) = delete;

  const LgldnetPlan& plan() const;
  LgldnetCall call() const;  // without image and results
  int64_t workers() const;
  float* scratch(int64_t worker) const;
  // How many of a worker's own tasks of a stage were drawn, in the lower half; the turn they belong to in the upper.
  std::atomic<uint64_t>& drawn(int stage, int64_t worker) const;
  // The first of `count` turns that no counter of this workspace has seen.
  uint64_t take_turns(int64_t count) const;

 private:
  std::shared_ptr<LgldnetNetwork> network_;
  std::shared_ptr<LgldnetSize> size_;
  std::list<LgldnetWorkspace> workspace_;  // one, which moves to the idle ones and back without an allocation
  int64_t workers_;
};

void clear_lgldnet_cache();
// counts: networks, plans, idle workspaces, and workspaces made since the cache was cleared.
void lgldnet_cached(int64_t* bytes, int64_t* counts);

}  // namespace lgld
