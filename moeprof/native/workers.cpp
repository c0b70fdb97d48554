#include "workers.hpp"

#include <chrono>

#include "plain_floats.hpp"

namespace moeprof {
namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned kPausesPerLook = 64;  // between two looks at the clock

}  // namespace

Workers::Workers(unsigned num_threads, const std::vector<int>& cores, unsigned spin_us,
                 const std::vector<int>& crowded)
    : num_threads_(num_threads), spin_us_(spin_us) {
    for (const int processor : crowded) taken_.add(processor);
    for (unsigned worker = 1; worker < num_threads; ++worker) {
        const int core = cores.empty() ? -1 : cores[worker % cores.size()];
        if (core >= 0) taken_.add(core);
        threads_.emplace_back(&Workers::work, this, worker, core);
    }
}

Workers::~Workers() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
        epoch_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Workers::run(void (*task)(const void*, unsigned), const void* context) {
    taken_.leave();
    task_ = task;
    context_ = context;
    epoch_.fetch_add(1);
    // Sequentially consistent with the worker's increment: one of the two sees the other's.
    if (parked_.load() != 0) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
        }
        wake_.notify_all();
    }
    task(context, 0);
    barrier();
}

std::vector<int> Workers::processors() {
    std::vector<int> found(num_threads_);
    int* const places = found.data();
    const auto task = [](const void* context, unsigned worker) {
        (*static_cast<int* const*>(context))[worker] = processor_here();
    };
    run(task, &places);
    return found;
}

std::uint8_t* Workers::scratch(std::size_t num_bytes) {
    if (!scratch_ || scratch_->num_bytes() < num_bytes) {
        scratch_.reset();
        scratch_ = std::make_unique<HostMemory>(num_bytes);
    }
    return scratch_->data();
}

void Workers::barrier() {
    const std::uint64_t round = rounds_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads_) {
        arrived_.store(0, std::memory_order_relaxed);
        rounds_.store(round + 1, std::memory_order_release);
        return;
    }
    spin_until([&] { return rounds_.load(std::memory_order_acquire) != round; });
}

std::uint64_t Workers::next_task(std::uint64_t seen) {
    const Clock::time_point parking = Clock::now() + std::chrono::microseconds(spin_us_);
    for (unsigned pauses = 1;; ++pauses) {
        const std::uint64_t epoch = epoch_.load(std::memory_order_acquire);
        if (epoch != seen) return epoch;
        pause();
        if (pauses % kPausesPerLook == 0 && Clock::now() > parking) break;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    parked_.fetch_add(1);
    wake_.wait(lock, [&] { return epoch_.load() != seen; });
    parked_.fetch_sub(1);
    return epoch_.load();
}

void Workers::work(unsigned worker, int core) {
    if (core >= 0) pin(core);
    PlainFloats floats;
    for (std::uint64_t seen = 0;;) {
        seen = next_task(seen);
        if (stopping_) return;
        task_(context_, worker);
        barrier();
    }
}

}  // namespace moeprof
