// Rounding to nearest and subnormal numbers kept, whatever the thread was set to before.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#endif

namespace moeprof {

class PlainFloats {
  public:
    PlainFloats(const PlainFloats&) = delete;
    PlainFloats& operator=(const PlainFloats&) = delete;
#if defined(__x86_64__)
    PlainFloats() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
    ~PlainFloats() { _mm_setcsr(saved_); }

  private:
    const unsigned saved_;
#elif defined(__aarch64__)
    PlainFloats() {
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" : : "r"(std::uint64_t{0}));
    }
    ~PlainFloats() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

  private:
    std::uint64_t saved_;
#else
    PlainFloats() {}
    ~PlainFloats() {}
#endif
};

}  // namespace moeprof
