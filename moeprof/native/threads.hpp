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
