// In which order a cache of experts gives up its entries: one class for each policy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tournament.hpp"

namespace moeprof {

using Cell = std::uint32_t;
constexpr Cell kNoCell = ~Cell{0};
constexpr std::uint32_t kNever = ~std::uint32_t{0};

// Which entries the current batch uses; they are never given up.
struct InUse {
    const std::uint32_t* last_batch;  // of each cell, the last batch that used it
    std::uint32_t batch;              // the current one

    bool operator()(Cell cell) const { return last_batch[cell] == batch; }
};

// How often each cell was used, old uses counting less: a use counts 1, and after every step
// (token, or window of a prompt) all that was counted is worth `decay` of what it was.
//
// Kept for cells outside the cache, too. Stored divided by decay^steps, so that time passes in O(1)
// and the order of cells changes with their uses alone.
class Frequencies {
  public:
    Frequencies(std::size_t num_cells, double decay) : scores_(num_cells), growth_(1 / decay) {}

    void use(Cell cell) { scores_[cell] += increment_; }
    void step() { increment_ *= growth_; }
    // Whether `rescale` is due; everything that holds scores must be scaled by the same factor.
    bool overflows() const { return increment_ > kLargest; }
    double rescale();
    void clear();
    const double* scores() const { return scores_.data(); }
    double operator[](Cell cell) const { return scores_[cell]; }

  private:
    static constexpr double kLargest = 0x1p512;

    std::vector<double> scores_;
    double growth_;
    double increment_ = 1;
};

// The cells of a batch, of which those count that are entries.
struct UsedCells {
    const Cell* cells;
    std::size_t num_cells;
    Cell base;                     // what an order calls 0
    const std::uint8_t* is_entry;  // of each cell of the cache
    Tick tick;                     // of the first lookup

    template <typename Use>
    void for_each_entry(const Use& use) const {
        for (std::size_t i = 0; i < num_cells; ++i) {
            if (is_entry[cells[i]]) use(cells[i] - base, static_cast<Tick>(tick + i));
        }
    }
};

// The entries of one cache in the order in which they are given up.
class EvictionOrder {
  public:
    virtual ~EvictionOrder() = default;

    // A batch uses its entries, present before or just brought in.
    virtual void use(const UsedCells& used) = 0;
    // Takes out the entry to give up first, kNoCell where the batch uses all. Entries in use may
    // be taken out on the way: each of them is given to `use` before the next call from another
    // batch.
    virtual Cell victim(const InUse& in_use) = 0;
    // Puts victims back that stay after all, the last one first.
    virtual void restore(Cell cell) = 0;
    // Keys made of the scores of `Frequencies` follow their rescaling.
    virtual void scale(double) {}
    virtual void clear() = 0;

    // For policies that want to know of every lookup, and that choose what comes in.
    virtual bool watches() const { return false; }
    virtual void look_up(Cell, std::uint32_t) {}
    virtual bool admits(Cell) { return true; }
};

// Cells in the order of their last use.
class RecencyList {
  public:
    explicit RecencyList(std::size_t num_cells) : links_(num_cells + 1) { clear(); }

    bool holds(Cell cell) const { return links_[cell].next != kNoCell; }
    Cell oldest() const { return links_[end()].previous; }  // end() where empty
    Cell end() const { return static_cast<Cell>(links_.size() - 1); }
    void remove(Cell cell) {
        Link& link = links_[cell];
        links_[link.previous].next = link.next;
        links_[link.next].previous = link.previous;
        link.next = kNoCell;
    }
    void push_newest(Cell cell) { insert_after(end(), cell); }
    void push_oldest(Cell cell) { insert_after(links_[end()].previous, cell); }
    void clear();

  private:
    struct Link {
        Cell previous;
        Cell next;  // kNoCell where the cell is not in the list
    };

    void insert_after(Cell before, Cell cell) {
        const Cell after = links_[before].next;
        links_[cell] = {before, after};
        links_[before].next = cell;
        links_[after].previous = cell;
    }

    std::vector<Link> links_;  // the last one closes the circle
};

// Gives up the least recently used.
class LruOrder final : public EvictionOrder {
  public:
    explicit LruOrder(std::size_t num_cells) : list_(num_cells) {}
    void use(const UsedCells& used) override;
    Cell victim(const InUse& in_use) override;
    void restore(Cell cell) override { list_.push_oldest(cell); }
    void clear() override { list_.clear(); }

  private:
    RecencyList list_;
};

// Gives up the least frequently used, of equals the least recently used. `scores` are those of a
// `Frequencies` that has counted the use before `use` is called.
class LfuOrder final : public EvictionOrder {
  public:
    LfuOrder(std::size_t num_cells, const double* scores)
        : entries_(num_cells), last_tick_(num_cells), scores_(scores) {}
    void use(const UsedCells& used) override;
    void use(Cell cell, Tick tick);
    Cell victim(const InUse& in_use) override;
    void restore(Cell cell) override { use(cell, last_tick_[cell]); }
    void scale(double factor) override;
    void clear() override { entries_.clear(); }

    bool holds(Cell cell) const { return entries_.holds(cell); }
    void remove(Cell cell) { entries_.remove(cell); }

  private:
    Tournament entries_;
    std::vector<Tick> last_tick_;
    const double* scores_;
};

// Frequency with recency (M. Bilal, S.-G. Kang, "A Cache Management Scheme for Efficient Content
// Eviction and Replication in Cache Networks", IEEE Access 5, 2017): the most recently used
// entries, up to a share of the budget, are safe; of the others the least frequent goes.
class LfruOrder final : public EvictionOrder {
  public:
    LfruOrder(std::size_t num_cells, const double* scores, const std::int64_t* bytes,
              std::int64_t recent_bytes)
        : recent_(num_cells),
          older_(num_cells, scores),
          last_tick_(num_cells),
          was_recent_(num_cells),
          bytes_(bytes),
          room_(recent_bytes) {}
    void use(const UsedCells& used) override;
    Cell victim(const InUse& in_use) override;
    void restore(Cell cell) override;
    void scale(double factor) override { older_.scale(factor); }
    void clear() override;

  private:
    void use(Cell cell, Tick tick);

    RecencyList recent_;
    LfuOrder older_;
    std::vector<Tick> last_tick_;
    std::vector<std::uint8_t> was_recent_;  // of each victim
    const std::int64_t* bytes_;
    std::int64_t room_;
    std::int64_t held_ = 0;  // bytes of recent_
};

// Gives up what is used again last (L. A. Belady, "A study of replacement algorithms for a
// virtual-storage computer", IBM Systems Journal 5(2), 1966). `next_use` holds for each tick the
// batch that uses the same cell next, or kNever.
class BeladyOrder final : public EvictionOrder {
  public:
    BeladyOrder(std::size_t num_cells, const std::uint32_t* next_use)
        : entries_(num_cells), last_tick_(num_cells), next_use_(next_use) {}
    void use(const UsedCells& used) override;
    Cell victim(const InUse& in_use) override;
    void restore(Cell cell) override { use(cell, last_tick_[cell]); }
    void clear() override { entries_.clear(); }

  private:
    void use(Cell cell, Tick tick);

    Tournament entries_;
    std::vector<Tick> last_tick_;
    const std::uint32_t* next_use_;
};

}  // namespace moeprof
