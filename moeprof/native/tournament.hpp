// A tournament of cells: the one that goes first is at the top, and any cell's place can change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moeprof {

// Numbers the lookups of a whole replay.
using Tick = std::uint32_t;

// A complete binary tree of matches. A change at a cell is played upwards only as far as the cell
// won before or wins now: about two matches for most cells, all of them for the one at the top.
class Tournament {
  public:
    explicit Tournament(std::size_t num_cells) {
        while (num_leaves_ < num_cells) num_leaves_ *= 2;
        winners_.assign(2 * num_leaves_, kNobody);
    }

    bool empty() const { return size_ == 0; }
    std::size_t size() const { return size_; }
    bool holds(std::uint32_t cell) const { return winners_[num_leaves_ + cell] != kNobody; }
    std::uint32_t top() const { return cell_of(winners_[1]); }

    // Lets a cell take part, whether it did before or not. Lower keys go first, among equal keys
    // the earlier tick, so that there are no ties.
    void put(std::uint64_t key, Tick tick, std::uint32_t cell) {
        size_ += !holds(cell);
        play(cell, Contender{key} << 64 | std::uint64_t{tick} << 32 | cell);
    }

    // Takes out a cell that takes part.
    void remove(std::uint32_t cell) {
        --size_;
        play(cell, kNobody);
    }

    // Changes every key in a way that leaves the order as it is.
    template <typename Change>
    void change_keys(const Change& change) {
        for (Contender& winner : winners_) {
            if (winner == kNobody) continue;
            const Contender key = change(static_cast<std::uint64_t>(winner >> 64));
            winner = key << 64 | static_cast<std::uint64_t>(winner);
        }
    }

    void clear() {
        winners_.assign(winners_.size(), kNobody);
        size_ = 0;
    }

  private:
    // Key, tick and cell, from the highest bits down: compared and chosen without a branch.
    __extension__ using Contender = unsigned __int128;
    static constexpr Contender kNobody = ~Contender{0};

    static std::uint32_t cell_of(Contender contender) {
        return static_cast<std::uint32_t>(contender);
    }

    void play(std::uint32_t cell, Contender winner) {
        std::size_t at = num_leaves_ + cell;
        winners_[at] = winner;
        while (at > 1) {
            const Contender other = winners_[at ^ 1];
            at /= 2;
            const Contender before = winners_[at];
            if (cell_of(before) != cell && winner >= before) return;
            winner = other < winner ? other : winner;
            winners_[at] = winner;
        }
    }

    std::size_t num_leaves_ = 1;
    std::vector<Contender> winners_;  // of the matches, from the last one at 1; then the leaves
    std::size_t size_ = 0;
};

}  // namespace moeprof
