// What waiting threads need of the processor and the system.
#pragma once

#include <chrono>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace moeprof {

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// The calling thread stays on `core`, where the system can pin.
inline void pin(int core) {
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<unsigned>(core), &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#else
    (void)core;
#endif
}

// Processors that a thread keeps off while it computes, as other threads are pinned to them.
class TakenProcessors {
  public:
    TakenProcessors() {
#if defined(__linux__)
        CPU_ZERO(&taken_);
#endif
    }

    void add(int processor) {
#if defined(__linux__)
        CPU_SET(static_cast<unsigned>(processor), &taken_);
#else
        (void)processor;
#endif
    }

    // The calling thread leaves one of these processors, if it is on one and may run elsewhere;
    // where it may run stays as it was. Anywhere else this is no system call.
    void leave() const {
#if defined(__linux__)
        const int here = sched_getcpu();
        if (here < 0 || !CPU_ISSET(static_cast<unsigned>(here), &taken_)) return;
        const pthread_t self = pthread_self();
        cpu_set_t allowed;
        if (pthread_getaffinity_np(self, sizeof allowed, &allowed) != 0) return;
        cpu_set_t elsewhere;
        CPU_OR(&elsewhere, &allowed, &taken_);
        CPU_XOR(&elsewhere, &elsewhere, &taken_);
        if (CPU_COUNT(&elsewhere) == 0) return;
        if (pthread_setaffinity_np(self, sizeof elsewhere, &elsewhere) != 0) return;
        pthread_setaffinity_np(self, sizeof allowed, &allowed);
#endif
    }

  private:
#if defined(__linux__)
    cpu_set_t taken_;
#endif
};

// The processor that the calling thread is on; -1 where the system does not tell.
inline int processor_here() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

// Waits, without leaving the processor, until `holds()`. After a while it lets others run: with
// more threads than processors, the one that is waited for may be among them.
template <typename Condition>
void spin_until(Condition holds) {
    using Clock = std::chrono::steady_clock;
    constexpr unsigned kPausesPerLook = 64;
    constexpr auto kPatience = std::chrono::microseconds(200);
    unsigned pauses = 0;
    Clock::time_point begun;
    while (!holds()) {
        pause();
        if (++pauses % kPausesPerLook != 0) continue;
        if (pauses == kPausesPerLook) begun = Clock::now();
        if (Clock::now() - begun > kPatience) std::this_thread::yield();
    }
}

}  // namespace moeprof
