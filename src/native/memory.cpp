// Scratch memory that outlives a call, so that the system need not clear fresh pages each time.
#include <cstdlib>
#include <new>

#include "arguments.h"

namespace {

constexpr size_t ALIGNMENT = 64, KEPT = size_t(256) << 20;

struct Arena {
  float* data = nullptr;
  size_t size = 0;

  ~Arena() { std::free(data); }

  float* take(size_t bytes) {
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (bytes > size || size > KEPT) {
      std::free(data);
      data = nullptr, size = 0;
      data = static_cast<float*>(std::aligned_alloc(ALIGNMENT, bytes));
      if (!data) throw std::bad_alloc();
      size = bytes;
    }
    return data;
  }
};

}  // namespace

float* scratch_memory(size_t floats) {
  thread_local Arena arena;
  return arena.take(floats * sizeof(float));
}
