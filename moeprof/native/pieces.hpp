// A phase of work, handed out in ever smaller runs, so that all workers finish together.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>

namespace moeprof {

class Pieces {
  public:
    // `num_pieces` for `num_workers`, at most `most` in a run; while nobody takes any.
    void open(std::size_t num_pieces, unsigned num_workers, std::size_t most) {
        next_.store(0, std::memory_order_relaxed);
        end_ = num_pieces;
        shares_ = kShare * num_workers;
        most_ = most;
    }

    // The next run, pieces [*first, *end); false if there is none.
    bool take(std::size_t* first, std::size_t* end) {
        std::size_t next = next_.load(std::memory_order_relaxed);
        std::size_t size = 0;
        do {
            if (next >= end_) return false;
            size = std::min(std::max<std::size_t>(1, (end_ - next) / shares_), most_);
        } while (!next_.compare_exchange_weak(next, next + size, std::memory_order_relaxed));
        *first = next;
        *end = next + size;
        return true;
    }

  private:
    // A run is this share of a worker's part of what is left.
    static constexpr std::size_t kShare = 2;

    alignas(64) std::atomic<std::size_t> next_{0};
    std::size_t end_ = 0;
    std::size_t shares_ = 1;
    std::size_t most_ = 1;
};

}  // namespace moeprof
