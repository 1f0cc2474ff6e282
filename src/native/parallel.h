// One parallel region per call. The threads are torch's own: both use the OpenMP runtime that torch has loaded.
#pragma once

extern int interlace_most_threads;  // of any region, whatever a call asks for

namespace INTERLACE_ISA {

inline int threads_of(int asked) {
  const int most = __atomic_load_n(&interlace_most_threads, __ATOMIC_RELAXED);
  return asked < most ? asked : most;
}

inline int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Hands out consecutive parts of a thread's scratch memory; without a start it only counts.
struct Carver {
  float* start = nullptr;
  long used = 0;

  float* take(long floats) {
    float* part = start ? start + used : nullptr;
    used += (floats + LINE - 1) / LINE * LINE;
    return part;
  }
};

// work(item) for each item, on any thread, so an item's result must depend on the item alone. Equal items are dealt out
// in the same way at every call, so that a thread finds its part of the data in its own cache.
template <class Work>
inline void parallel(long items, int threads, const Work& work) {
  threads = threads_of(threads);
  (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && items > 1)
  for (long i = 0; i < items; i++) work(i);
}

// The same for items of very different size, which go to whoever is free.
template <class Work>
inline void parallel_uneven(long items, int threads, const Work& work) {
  threads = threads_of(threads);
  (void)threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && items > 1)
  for (long i = 0; i < items; i++) work(i);
}

}  // namespace INTERLACE_ISA
