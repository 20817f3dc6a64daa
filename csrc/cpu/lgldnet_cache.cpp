#include "csrc/cpu/lgldnet_cache.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <vector>

#include "csrc/error.h"

namespace lgld {
namespace {

constexpr size_t kMostNetworks = 4, kMostSizes = 8, kEnoughWorkspaces = 8;
constexpr int64_t kMostIdleBytes = int64_t{512} << 20;

// Zeroed floats. Asking for pages of 2 MiB keeps the translation of addresses out of the transforms, which write 64 places at
// once; advice only.
class Floats {
 public:
  explicit Floats(int64_t count) : bytes_((static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64) {
    constexpr size_t kHugePage = size_t{2} << 20;
    const size_t alignment = bytes_ >= kHugePage ? kHugePage : 64;
    if (alignment == kHugePage) bytes_ = (bytes_ + kHugePage - 1) / kHugePage * kHugePage;
    data_.reset(static_cast<float*>(std::aligned_alloc(alignment, bytes_)));
    LGLD_CHECK(data_ != nullptr, "lgldnet: not enough memory for ", bytes_, " bytes of weights or workspace");
    if (alignment == kHugePage) madvise(data_.get(), bytes_, MADV_HUGEPAGE);
    std::memset(data_.get(), 0, bytes_);
  }
  float* data() const { return data_.get(); }
  int64_t bytes() const { return static_cast<int64_t>(bytes_); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  size_t bytes_;
  std::unique_ptr<float[], Free> data_;
};

}  // namespace

struct LgldnetWorkspace {
  LgldnetWorkspace(const LgldnetPlan& plan, int64_t threads)
      : workers(threads),
        scratch_pitch(plan.scratch),
        memory(plan.workspace + threads * plan.scratch),
        counters(new Counter[static_cast<size_t>(kLgldnetStages * threads)]) {}
  // On lines of their own: each is written by one worker nearly always.
  struct alignas(64) Counter {
    std::atomic<uint64_t> drawn{0};
  };
  int64_t workers, scratch_pitch;
  Floats memory;
  std::unique_ptr<Counter[]> counters;
  mutable uint64_t turns = 1;  // taken by calls, whose lease is const
};

struct LgldnetSize {
  LgldnetSize(const LgldnetKernels& kernels, const LgldnetGeometry& g, const float* parameters)
      : plan(lgldnet_plan(g, kernels.vectors, kernels.pixel_block)), tables(plan.tables) {
    lgldnet_tables(plan, parameters, tables.data());
  }
  LgldnetPlan plan;
  Floats tables;
  std::list<LgldnetWorkspace> idle;  // most recently used first
};

struct LgldnetNetwork {
  LgldnetNetwork(const LgldnetKernels& kernels, const LgldnetGeometry& g, const float* values)
      : in_channels(g.in_channels),
        channels(g.channels),
        classes(g.classes),
        parameters(values, values + lgldnet_parameters(g.in_channels, g.channels, g.classes).count),
        packed(lgldnet_packed(g, kernels.vectors).count) {
    std::vector<double> scratch(static_cast<size_t>(lgldnet_fold_scratch(g)));
    lgldnet_fold(g, kernels.vectors, values, scratch.data(), packed.data());
  }
  bool is(const LgldnetGeometry& g, const float* values) const {
    return in_channels == g.in_channels && channels == g.channels && classes == g.classes &&
           std::memcmp(parameters.data(), values, parameters.size() * sizeof(float)) == 0;
  }
  int64_t in_channels, channels, classes;
  std::vector<float> parameters;
  Floats packed;
  std::list<std::shared_ptr<LgldnetSize>> sizes;  // most recently used first
};

namespace {

struct Cache {
  std::mutex mutex;
  std::list<std::shared_ptr<LgldnetNetwork>> networks;  // most recently used first
  int64_t idle_bytes = 0;                               // of all idle workspaces
  int64_t made = 0;                                     // workspaces, since the cache was cleared
};

Cache& cache() {
  // Never destroyed: threads may still run when the process ends. A fork waits until nobody changes the lists.
  static Cache* const instance = [] {
    pthread_atfork([] { cache().mutex.lock(); }, [] { cache().mutex.unlock(); }, [] { cache().mutex.unlock(); });
    return new Cache;
  }();
  return *instance;
}

void drop_oldest(Cache& c, LgldnetSize& size) {
  c.idle_bytes -= size.idle.back().memory.bytes();
  size.idle.pop_back();
}

void drop_idle(Cache& c, LgldnetSize& size) {
  while (!size.idle.empty()) drop_oldest(c, size);
}

// Drops idle workspaces until they hold no more than they may: those of the network used longest ago first, of its sizes those
// used longest ago. The last one of `used` stays, however large: the next call of that size would only allocate it again.
void keep_within_bytes(Cache& c, const LgldnetSize& used) {
  for (auto network = c.networks.rbegin(); network != c.networks.rend(); ++network)
    for (auto size = (*network)->sizes.rbegin(); size != (*network)->sizes.rend(); ++size) {
      const size_t stay = size->get() == &used ? 1 : 0;
      while (c.idle_bytes > kMostIdleBytes && (*size)->idle.size() > stay) drop_oldest(c, **size);
    }
}

template <class List, class Drop>
void keep_first(List& list, size_t most, Drop&& drop) {
  while (list.size() > most) {
    drop(*list.back());
    list.pop_back();
  }
}

// The entry that `matches`, moved to the front; null where there is none.
template <class List, class Matches>
typename List::value_type find(List& list, Matches&& matches) {
  for (auto at = list.begin(); at != list.end(); ++at)
    if (matches(**at)) {
      list.splice(list.begin(), list, at);
      return list.front();
    }
  return nullptr;
}

}  // namespace

LgldnetLease::LgldnetLease(const LgldnetKernels& kernels, const LgldnetGeometry& g, const float* parameters, int64_t threads)
    : workers_(threads) {
  Cache& c = cache();
  std::unique_lock<std::mutex> lock(c.mutex);
  network_ = find(c.networks, [&](const LgldnetNetwork& n) { return n.is(g, parameters); });
  if (!network_) {
    network_ = std::make_shared<LgldnetNetwork>(kernels, g, parameters);
    c.networks.push_front(network_);
    keep_first(c.networks, kMostNetworks, [&](LgldnetNetwork& n) {
      for (const auto& size : n.sizes) drop_idle(c, *size);
    });
  }
  size_ = find(network_->sizes,
               [&](const LgldnetSize& s) { return s.plan.geometry.height == g.height && s.plan.geometry.width == g.width; });
  if (!size_) {
    size_ = std::make_shared<LgldnetSize>(kernels, g, parameters);
    network_->sizes.push_front(size_);
    keep_first(network_->sizes, kMostSizes, [&](LgldnetSize& s) { drop_idle(c, s); });
  }
  auto& idle = size_->idle;
  for (auto at = idle.begin(); at != idle.end(); ++at)
    if (at->workers >= threads) {
      c.idle_bytes -= at->memory.bytes();
      workspace_.splice(workspace_.begin(), idle, at);
      return;
    }
  // All idle ones are too small: where there are enough of them, the new one takes the place of one.
  const size_t leases = static_cast<size_t>(size_.use_count()) - 1;  // of this size, this one included
  if (!idle.empty() && idle.size() + leases > kEnoughWorkspaces) drop_oldest(c, *size_);
  lock.unlock();
  workspace_.emplace_back(size_->plan, threads);
  lock.lock();
  ++c.made;
}

LgldnetLease::~LgldnetLease() {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  // A plan that was forgotten meanwhile is found by nobody and takes no workspace back.
  bool known = false;
  for (const auto& network : c.networks)
    for (const auto& size : network->sizes) known = known || size == size_;
  const LgldnetWorkspace& workspace = workspace_.front();
  if (known && workspace.turns >> 31 == 0) {  // turns have 32 bits in a counter
    c.idle_bytes += workspace.memory.bytes();
    size_->idle.splice(size_->idle.begin(), workspace_);
    keep_within_bytes(c, *size_);
  }
  size_.reset();  // under the mutex, since the constructor counts leases by it
}

const LgldnetPlan& LgldnetLease::plan() const { return size_->plan; }
int64_t LgldnetLease::workers() const { return workers_; }

LgldnetCall LgldnetLease::call() const {
  LgldnetCall call{};
  call.plan = &size_->plan;
  call.parameters = network_->parameters.data();
  call.packed = network_->packed.data();
  call.tables = size_->tables.data();
  call.workspace = workspace_.front().memory.data();
  return call;
}

float* LgldnetLease::scratch(int64_t worker) const {
  return workspace_.front().memory.data() + size_->plan.workspace + worker * workspace_.front().scratch_pitch;
}

std::atomic<uint64_t>& LgldnetLease::drawn(int stage, int64_t worker) const {
  return workspace_.front().counters[static_cast<size_t>(stage * workspace_.front().workers + worker)].drawn;
}

uint64_t LgldnetLease::take_turns(int64_t count) const {
  const uint64_t first = workspace_.front().turns;
  workspace_.front().turns += static_cast<uint64_t>(count);
  return first;
}

void clear_lgldnet_cache() {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  for (const auto& network : c.networks)
    for (const auto& size : network->sizes) drop_idle(c, *size);
  c.networks.clear();
  c.made = 0;
}

void lgldnet_cached(int64_t* bytes, int64_t* counts) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  *bytes = c.idle_bytes;
  counts[0] = counts[1] = counts[2] = 0;
  counts[3] = c.made;
  for (const auto& network : c.networks) {
    ++counts[0];
    *bytes += network->packed.bytes() + static_cast<int64_t>(network->parameters.size() * sizeof(float));
    for (const auto& size : network->sizes) {
      ++counts[1];
      counts[2] += static_cast<int64_t>(size->idle.size());
      *bytes += size->tables.bytes();
    }
  }
}

}  // namespace lgld
