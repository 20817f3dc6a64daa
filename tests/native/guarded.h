// Memory whose neighbours on both sides cannot be touched: one element too far ends the program with the name of what ran.
#pragma once
#include <cstddef>

namespace lgld::test {

// A buffer that touches both neighbours exists only in multiples of the page size: tests place each one against either end.
enum class Against { kStart, kEnd };

class Guarded {
 public:
  // `bytes` of memory, all bits set (a NaN in every floating-point format), against a forbidden page. `alignment` of the
  // start is kept by leaving up to alignment - 1 bytes free behind the end; intact() watches over them.
  Guarded(size_t bytes, size_t alignment, Against end);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  void* data() const { return data_; }
  // Whether the bytes between the buffer and the forbidden pages are as they were.
  bool intact() const;

 private:
  unsigned char *pages_, *data_;
  size_t page_, length_, bytes_;
};

// From here on a touched guard page prints `what is running` and ends the program with exit code 1.
void report_faults();
void running(const char* what);

}  // namespace lgld::test
