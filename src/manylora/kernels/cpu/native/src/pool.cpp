// The pool's threads. A worker spins for a while after a job, because the next kernel of a step is usually some tens of
// microseconds away, and then sleeps, because other processes share the cores (docs/decisions/threads.md).
//
// One atomic word holds (generation, chunks not yet taken). A chunk is taken by a compare-and-swap on the whole word, so
// a worker that is late for a finished job takes nothing, and the caller never waits for a worker that has taken nothing:
// while other processes use the other cores, the caller does all the work.

#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define ML_PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define ML_PAUSE() __asm__ __volatile__("isb" ::: "memory")  // `yield` does nothing on most of these processors
#else
#define ML_PAUSE() std::this_thread::yield()
#endif

namespace ml {

namespace {
using Clock = std::chrono::steady_clock;
}  // namespace

class Pool {
   public:
    Pool(int threads, std::chrono::microseconds spin) : spin_(spin) {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
    }

    ~Pool() {
        stop_.store(true);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_all();
        }
        for (auto& worker : workers_) worker.join();
    }

    int64_t threads() const { return int64_t(workers_.size()) + 1; }

    void run(int64_t chunks, void (*body)(void*, int64_t), void* context) {
        // A second caller at the same moment, or a job inside a job, does its own work alone.
        if (chunks <= 1 || workers_.empty() || busy_.test_and_set(std::memory_order_acquire)) {
            for (int64_t chunk = 0; chunk < chunks; ++chunk) body(context, chunk);
            return;
        }
        body_.store(body, std::memory_order_relaxed);
        context_.store(context, std::memory_order_relaxed);
        total_.store(uint32_t(chunks), std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        uint64_t generation = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
        ticket_.store(generation << 32 | uint64_t(chunks));  // publishes the fields above
        if (sleepers_.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_all();
        }
        take_all(uint32_t(generation));
        for (int spins = 0; done_.load(std::memory_order_acquire) != uint32_t(chunks); ++spins) {
            // A worker that the system suspended in a chunk may need this core.
            if (spins < 4096) ML_PAUSE(); else std::this_thread::yield();
        }
        busy_.clear(std::memory_order_release);
    }

   private:
    // The fields of a job are read only after a chunk of it was taken; until that chunk is done they cannot change.
    void take_all(uint32_t generation) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        while (uint32_t(ticket >> 32) == generation && uint32_t(ticket) != 0) {
            if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
            uint32_t chunk = total_.load(std::memory_order_relaxed) - uint32_t(ticket);
            body_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), int64_t(chunk));
            done_.fetch_add(1, std::memory_order_release);
            ticket = ticket_.load(std::memory_order_acquire);
        }
    }

    void work() {
        uint32_t seen = 0;
        auto is_news = [&] { return uint32_t(ticket_.load() >> 32) != seen || stop_.load(); };
        while (!stop_.load()) {
            auto deadline = Clock::now() + spin_;
            while (!is_news() && Clock::now() < deadline)
                for (int i = 0; i < 16; ++i) ML_PAUSE();
            if (!is_news()) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleepers_.fetch_add(1);
                wake_.wait(lock, is_news);
                sleepers_.fetch_sub(1);
            }
            seen = uint32_t(ticket_.load(std::memory_order_acquire) >> 32);
            take_all(seen);
        }
    }

    const std::chrono::microseconds spin_;
    std::vector<std::thread> workers_;
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<uint32_t> done_{0};
    std::atomic<uint32_t> total_{0};
    std::atomic<void (*)(void*, int64_t)> body_{nullptr};
    std::atomic<void*> context_{nullptr};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;  // protects only the passage from spinning to sleeping
    std::condition_variable wake_;
};

void run_chunks(Pool* pool, int64_t chunks, void (*body)(void*, int64_t), void* context) {
    pool->run(chunks, body, context);
}
int64_t pool_threads(const Pool* pool) { return pool->threads(); }

}  // namespace ml

extern "C" {
// A worker without work spins for `spin_us` microseconds before it sleeps.
ml::Pool* ml_pool_new(int64_t threads, int64_t spin_us) {
    return new ml::Pool(int(threads), std::chrono::microseconds(spin_us));
}
void ml_pool_free(ml::Pool* pool) { delete pool; }
}
