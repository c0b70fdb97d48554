// A phase of work in pieces: most are dealt to the workers in turn, the rest goes to who comes
// first, so that workers meet at few atomic operations and still finish together.
#pragma once

#include <atomic>
#include <cstddef>

namespace moeprof {

class DealtPieces {
  public:
    // While nobody takes any.
    void open(std::size_t num_pieces, unsigned num_workers) {
        end_ = num_pieces;
        num_workers_ = num_workers;
        num_dealt_ = num_pieces * 3 / 4 / num_workers;
        next_.store(num_dealt_ * num_workers, std::memory_order_relaxed);
    }

    // One worker's way through the pieces, in increasing order.
    class Hand {
      public:
        Hand(DealtPieces& pieces, unsigned worker) : pieces_(pieces), worker_(worker) {}

        // False if there is none left.
        bool take(std::size_t* piece) {
            *piece = num_taken_ < pieces_.num_dealt_
                         ? num_taken_ * pieces_.num_workers_ + worker_
                         : pieces_.next_.fetch_add(1, std::memory_order_relaxed);
            ++num_taken_;
            return *piece < pieces_.end_;
        }

      private:
        DealtPieces& pieces_;
        const unsigned worker_;
        std::size_t num_taken_ = 0;
    };

  private:
    alignas(64) std::atomic<std::size_t> next_{0};
    std::size_t end_ = 0;
    std::size_t num_workers_ = 1;
    std::size_t num_dealt_ = 0;  // to each worker
};

}  // namespace moeprof
