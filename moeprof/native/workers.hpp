// A pool of resident worker threads that start on a flag: no allocation, lock or system call from
// task to task while they spin; after a while without work they park.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "held.hpp"
#include "host_memory.hpp"
#include "threads.hpp"

namespace moeprof {

class Workers {
  public:
    // num_threads - 1 threads are started; the caller of `run` is worker 0. Worker i is pinned to
    // cores[i % cores.size()] where the system can pin, and left alone if `cores` is empty. The
    // caller is never pinned, since threads that it starts would be, too: at the start of `run` it
    // leaves the processors of the others, and `crowded` ones, which are better left, too. A worker
    // without work spins for `spin_us` before it parks.
    Workers(unsigned num_threads, const std::vector<int>& cores, unsigned spin_us,
            const std::vector<int>& crowded = {});
    ~Workers();
    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;

    unsigned num_threads() const { return num_threads_; }

    // The pool and its scratch memory for this thread alone; `run` and `scratch` need it.
    Held hold() { return Held(busy_); }

    // Runs task(context, worker) on every worker and returns when all have finished.
    void run(void (*task)(const void* context, unsigned worker), const void* context);

    // The processor that each worker is on in a run; -1 where the system does not tell. Needs
    // `hold`, too.
    std::vector<int> processors();

    // Memory that outlives calls, so that they need no allocation: at least `num_bytes`, on a
    // 2 MiB boundary, grown where it is smaller (what it held is lost then).
    std::uint8_t* scratch(std::size_t num_bytes);

    // Waits, inside a task, until every worker has arrived.
    void barrier();

  private:
    void work(unsigned worker, int core);
    std::uint64_t next_task(std::uint64_t seen);

    const unsigned num_threads_;
    const unsigned spin_us_;
    TakenProcessors taken_;
    void (*task_)(const void*, unsigned) = nullptr;
    const void* context_ = nullptr;
    bool stopping_ = false;
    std::unique_ptr<HostMemory> scratch_;
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    alignas(64) std::atomic<std::uint64_t> epoch_{0};  // counts tasks
    alignas(64) std::atomic<unsigned> arrived_{0};
    alignas(64) std::atomic<std::uint64_t> rounds_{0};  // counts barriers passed
    alignas(64) std::atomic<unsigned> parked_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> threads_;
};

}  // namespace moeprof
