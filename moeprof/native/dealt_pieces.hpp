// A phase of work in pieces: most are dealt to the workers in turn, the rest goes to who comes
// first. So workers meet at few atomic operations, and still finish together.
#pragma once

#include <atomic>
#include <cstddef>

namespace moeprof {

class DealtPieces {
  public:
    // While nobody takes any. `all` pieces are dealt where they are so small that meeting would
    // take longer than waiting for the slowest worker.
    void open(std::size_t num_pieces, unsigned num_workers, bool all) {
        num_pieces_ = num_pieces;
        num_dealt_ = all ? num_pieces : num_pieces * 3 / 4;
        num_workers_ = num_workers;
        next_.store(num_dealt_, std::memory_order_relaxed);
    }

    // One worker's way through the pieces, in increasing order.
    class Hand {
      public:
        Hand(DealtPieces& pieces, unsigned worker)
            : pieces_(pieces),
              next_(pieces.num_dealt_ * worker / pieces.num_workers_),
              end_(pieces.num_dealt_ * (worker + 1) / pieces.num_workers_) {}

        // False if there is none left.
        bool take(std::size_t* piece) {
            if (next_ < end_) {
                *piece = next_++;
                return true;
            }
            if (pieces_.num_dealt_ == pieces_.num_pieces_) return false;
            *piece = pieces_.next_.fetch_add(1, std::memory_order_relaxed);
            return *piece < pieces_.num_pieces_;
        }

      private:
        DealtPieces& pieces_;
        std::size_t next_;
        const std::size_t end_;
    };

  private:
    alignas(64) std::atomic<std::size_t> next_{0};
    alignas(64) std::size_t num_pieces_ = 0;
    std::size_t num_dealt_ = 0;
    std::size_t num_workers_ = 1;
};

}  // namespace moeprof
