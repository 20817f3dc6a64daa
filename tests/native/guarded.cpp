#include "guarded.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace lgld::test {
namespace {

constexpr unsigned char kPoison = 0xff;
char running_now[512] = "nothing yet";

void write_all(const char* text) {
  if (write(STDOUT_FILENO, text, std::strlen(text)) < 0) _exit(2);
}

// Only what a signal handler may call.
void on_fault(int signal_number, siginfo_t*, void*) {
  write_all(signal_number == SIGILL ? "FAILED: illegal instruction in: " : "FAILED: memory outside a buffer was touched in: ");
  write_all(running_now);
  write_all("\n");
  _exit(1);
}

}  // namespace

Guarded::Guarded(size_t bytes, size_t alignment, Against end)
    : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))), bytes_(bytes) {
  const size_t inner = bytes == 0 ? page_ : (bytes + page_ - 1) / page_ * page_;
  length_ = inner + 2 * page_;
  void* memory = mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("mmap");
    std::exit(2);
  }
  pages_ = static_cast<unsigned char*>(memory);
  if (mprotect(pages_, page_, PROT_NONE) != 0 || mprotect(pages_ + page_ + inner, page_, PROT_NONE) != 0) {
    std::perror("mprotect");
    std::exit(2);
  }
  std::memset(pages_ + page_, kPoison, inner);
  data_ = pages_ + page_ + (end == Against::kStart ? 0 : (inner - bytes) / alignment * alignment);
}

Guarded::~Guarded() { munmap(pages_, length_); }

bool Guarded::intact() const {
  for (const unsigned char* p = pages_ + page_; p < data_; ++p)
    if (*p != kPoison) return false;
  for (const unsigned char* p = data_ + bytes_; p < pages_ + length_ - page_; ++p)
    if (*p != kPoison) return false;
  return true;
}

void report_faults() {
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  for (int number : {SIGSEGV, SIGBUS, SIGILL}) sigaction(number, &action, nullptr);
}

void running(const char* what) { std::snprintf(running_now, sizeof(running_now), "%s", what); }

}  // namespace lgld::test
