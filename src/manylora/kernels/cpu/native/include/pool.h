// A small pool of threads: the caller and its workers take numbered chunks of one job until none is left.
#pragma once

#include <cstdint>

namespace ml {

class Pool;

// Runs body(context, chunk) for chunk = 0 .. chunks - 1 on the pool's threads, and returns when all are done.
// Any thread may take any chunk, so a chunk's result must not depend on its thread.
void run_chunks(Pool* pool, int64_t chunks, void (*body)(void*, int64_t), void* context);
int64_t pool_threads(const Pool* pool);

template <class F> inline void parallel(Pool* pool, int64_t chunks, F&& f) {
    run_chunks(
        pool, chunks, [](void* context, int64_t chunk) { (*static_cast<F*>(context))(chunk); }, &f);
}

// Splits [0, count) into `chunks` nearly equal ranges.
inline int64_t chunk_start(int64_t count, int64_t chunks, int64_t chunk) { return count * chunk / chunks; }

// Returns the number of chunks for `items` items: about `grain` units of work each, a multiple of the thread count where
// there are enough items, so that threads finish together.
inline int64_t chunks_for(int64_t items, int64_t work, int64_t grain, int64_t threads) {
    int64_t chunks = (work + grain - 1) / grain;
    if (chunks <= 1 || threads <= 1) return items < chunks ? items : chunks;
    chunks = (chunks + threads - 1) / threads * threads;
    return items < chunks ? items : chunks;
}

}  // namespace ml
