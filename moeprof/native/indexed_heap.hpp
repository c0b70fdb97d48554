// A 4-ary heap of cells, least key first, that knows where each cell is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace moeprof {

// Lower keys first; among equal keys the earlier tick, so that there are no ties.
struct HeapItem {
    double key;
    std::uint64_t tick;
    std::uint32_t cell;

    bool before(const HeapItem& other) const {
        return key < other.key || (key == other.key && tick < other.tick);
    }
};

class IndexedHeap {
  public:
    explicit IndexedHeap(std::size_t num_cells) : place_(num_cells, kNowhere) {}

    bool empty() const { return items_.empty(); }
    std::size_t size() const { return items_.size(); }
    bool holds(std::uint32_t cell) const { return place_[cell] != kNowhere; }
    const HeapItem& top() const { return items_.front(); }

    void push(const HeapItem& item) {
        items_.push_back(item);
        rise(items_.size() - 1, item);
    }

    // Gives the item's cell, which is in the heap, a new key.
    void update(const HeapItem& item) {
        const std::size_t at = place_[item.cell];
        if (item.before(items_[at])) {
            rise(at, item);
        } else {
            sink(at, item);
        }
    }

    void remove(std::uint32_t cell) {
        const std::size_t at = place_[cell];
        place_[cell] = kNowhere;
        const HeapItem last = items_.back();
        items_.pop_back();
        if (at == items_.size()) return;
        if (last.before(items_[at])) {
            rise(at, last);
        } else {
            sink(at, last);
        }
    }

    // Multiplies every key by a positive number, which leaves the order as it is.
    void scale(double factor) {
        for (HeapItem& item : items_) item.key *= factor;
    }

    void clear() {
        for (const HeapItem& item : items_) place_[item.cell] = kNowhere;
        items_.clear();
    }

  private:
    static constexpr std::uint32_t kNowhere = ~std::uint32_t{0};
    static constexpr std::size_t kChildren = 4;

    void put(std::size_t at, const HeapItem& item) {
        items_[at] = item;
        place_[item.cell] = static_cast<std::uint32_t>(at);
    }

    void rise(std::size_t at, HeapItem item) {
        while (at > 0) {
            const std::size_t parent = (at - 1) / kChildren;
            if (!item.before(items_[parent])) break;
            put(at, items_[parent]);
            at = parent;
        }
        put(at, item);
    }

    void sink(std::size_t at, HeapItem item) {
        for (;;) {
            const std::size_t first = at * kChildren + 1;
            if (first >= items_.size()) break;
            const std::size_t end = std::min(first + kChildren, items_.size());
            std::size_t least = first;
            for (std::size_t child = first + 1; child < end; ++child) {
                if (items_[child].before(items_[least])) least = child;
            }
            if (!items_[least].before(item)) break;
            put(at, items_[least]);
            at = least;
        }
        put(at, item);
    }

    std::vector<HeapItem> items_;
    std::vector<std::uint32_t> place_;
};

}  // namespace moeprof
