// Reuse distances by a Fenwick tree over the cells in the order of their last use.
#include <algorithm>

#include "lookups.hpp"

namespace moeprof {
namespace {

// Sums of values at places, changed and asked for in O(log n) (P. M. Fenwick, "A new data
// structure for cumulative frequency tables", Software: Practice and Experience 24(3), 1994).
class FenwickTree {
  public:
    explicit FenwickTree(std::size_t size) : sums_(size + 1) {}

    void add(std::size_t place, std::int64_t value) {
        for (std::size_t i = place + 1; i < sums_.size(); i += i & (~i + 1)) sums_[i] += value;
    }
    // Sum of the places up to and with `place`.
    std::int64_t sum(std::size_t place) const {
        std::int64_t total = 0;
        for (std::size_t i = place + 1; i > 0; i &= i - 1) total += sums_[i];
        return total;
    }
    void clear() { std::fill(sums_.begin(), sums_.end(), 0); }

  private:
    std::vector<std::int64_t> sums_;
};

class UseOrder {
  public:
    UseOrder(std::size_t num_cells, const std::int64_t* bytes)
        : bytes_(bytes),
          place_of_(num_cells, kUnused),
          cell_at_(kPlacesPerCell * num_cells + 1, kNoCell),
          tree_(cell_at_.size()) {}

    // What was used after the cell was; -1 where it never was.
    std::int64_t distance(Cell cell) const {
        const std::size_t place = place_of_[cell];
        return place == kUnused ? -1 : total_ - tree_.sum(place);
    }

    void use(Cell cell) {
        if (next_place_ == cell_at_.size()) close_ranks();
        const std::size_t old = place_of_[cell];
        if (old == kUnused) {
            total_ += weight(cell);
        } else {
            tree_.add(old, -weight(cell));
            cell_at_[old] = kNoCell;
        }
        place_of_[cell] = next_place_;
        cell_at_[next_place_] = cell;
        tree_.add(next_place_++, weight(cell));
    }

  private:
    static constexpr std::size_t kUnused = ~std::size_t{0};
    static constexpr std::size_t kPlacesPerCell = 3;

    std::int64_t weight(Cell cell) const { return bytes_ ? bytes_[cell] : 1; }

    // Moves all cells to the first places, in their order.
    void close_ranks() {
        tree_.clear();
        std::size_t place = 0;
        for (std::size_t old = 0; old < cell_at_.size(); ++old) {
            const Cell cell = cell_at_[old];
            if (cell == kNoCell) continue;
            cell_at_[old] = kNoCell;
            cell_at_[place] = cell;
            place_of_[cell] = place;
            tree_.add(place++, weight(cell));
        }
        next_place_ = place;
    }

    const std::int64_t* bytes_;
    std::vector<std::size_t> place_of_;
    std::vector<Cell> cell_at_;
    FenwickTree tree_;
    std::size_t next_place_ = 0;
    std::int64_t total_ = 0;
};

}  // namespace

void reuse_distances(const Lookups& lookups, std::size_t num_cells, const std::int64_t* bytes,
                     std::int64_t* distances) {
    UseOrder order(num_cells, bytes);
    for (std::size_t batch = 0; batch < lookups.num_batches; ++batch) {
        const std::size_t first = lookups.first(batch);
        const std::size_t end = lookups.first(batch + 1);
        for (std::size_t i = first; i < end; ++i) {
            distances[i] = order.distance(lookups.cells[i]);
        }
        for (std::size_t i = first; i < end; ++i) order.use(lookups.cells[i]);
    }
}

}  // namespace moeprof
