// Exclusive use of a thing for as long as a scope lasts, without waiting for it.
#pragma once

#include <atomic>

namespace moeprof {

class Held {
  public:
    explicit Held(std::atomic_flag& busy)
        : busy_(busy.test_and_set(std::memory_order_acquire) ? nullptr : &busy) {}
    ~Held() {
        if (busy_ != nullptr) busy_->clear(std::memory_order_release);
    }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

    // False if another thread holds it.
    explicit operator bool() const { return busy_ != nullptr; }

  private:
    std::atomic_flag* const busy_;
};

}  // namespace moeprof
