// Errors that reach Python as RuntimeError("involution2d: <what is wrong, what it was, what it must be>").
#pragma once
#include <sstream>
#include <stdexcept>

namespace lgld {

template <class... Part>
[[noreturn]] void fail(const Part&... part) {
  std::ostringstream message;
  (message << ... << part);
  throw std::runtime_error(message.str());
}

// The message is put together only where the condition fails: arguments are cheap to name.
#define LGLD_CHECK(condition, ...) \
  do {                             \
    if (!(condition)) [[unlikely]] \
      ::lgld::fail(__VA_ARGS__);   \
  } while (0)

}  // namespace lgld
