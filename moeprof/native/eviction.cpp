#include "eviction.hpp"

#include <algorithm>

namespace moeprof {

double Frequencies::rescale() {
    const double factor = 1 / kLargest;
    for (double& score : scores_) score *= factor;
    increment_ *= factor;
    return factor;
}

void Frequencies::clear() {
    std::fill(scores_.begin(), scores_.end(), 0.0);
    increment_ = 1;
}

void RecencyList::clear() {
    std::fill(links_.begin(), links_.end(), Link{kNoCell, kNoCell});
    links_[end()] = {end(), end()};
}

void LruOrder::use(Cell cell, std::uint64_t) {
    if (list_.holds(cell)) list_.remove(cell);
    list_.push_newest(cell);
}

Cell LruOrder::victim(const InUse& in_use) {
    for (;;) {
        const Cell cell = list_.oldest();
        if (cell == list_.end()) return kNoCell;
        list_.remove(cell);
        if (!in_use(cell)) return cell;
    }
}

void LfuOrder::use(Cell cell, std::uint64_t tick) {
    last_tick_[cell] = tick;
    if (!heap_.holds(cell)) heap_.push(item_of(cell));
}

Cell LfuOrder::victim(const InUse& in_use) {
    while (!heap_.empty()) {
        const HeapItem top = heap_.top();
        if (in_use(top.cell)) {
            heap_.remove(top.cell);
        } else if (const HeapItem now = item_of(top.cell); top.before(now)) {
            heap_.update(now);
        } else {
            heap_.remove(top.cell);
            return top.cell;
        }
    }
    return kNoCell;
}

void LfruOrder::use(Cell cell, std::uint64_t tick) {
    last_tick_[cell] = tick;
    if (older_.holds(cell)) older_.remove(cell);
    if (recent_.holds(cell)) {
        recent_.remove(cell);
        held_ -= bytes_[cell];
    }
    recent_.push_newest(cell);
    held_ += bytes_[cell];
    while (held_ > room_) {
        const Cell oldest = recent_.oldest();
        recent_.remove(oldest);
        held_ -= bytes_[oldest];
        older_.use(oldest, last_tick_[oldest]);
    }
}

Cell LfruOrder::victim(const InUse& in_use) {
    const Cell least = older_.victim(in_use);
    if (least != kNoCell) {
        was_recent_[least] = 0;
        return least;
    }
    for (;;) {
        const Cell cell = recent_.oldest();
        if (cell == recent_.end()) return kNoCell;
        recent_.remove(cell);
        held_ -= bytes_[cell];
        was_recent_[cell] = 1;
        if (!in_use(cell)) return cell;
    }
}

void LfruOrder::restore(Cell cell) {
    if (!was_recent_[cell]) return older_.restore(cell);
    recent_.push_oldest(cell);
    held_ += bytes_[cell];
}

void LfruOrder::clear() {
    recent_.clear();
    older_.clear();
    held_ = 0;
}

void BeladyOrder::use(Cell cell, std::uint64_t tick) {
    last_tick_[cell] = tick;
    if (heap_.holds(cell)) {
        heap_.update(item_of(cell));
    } else {
        heap_.push(item_of(cell));
    }
}

Cell BeladyOrder::victim(const InUse& in_use) {
    while (!heap_.empty()) {
        const Cell cell = heap_.top().cell;
        heap_.remove(cell);
        if (!in_use(cell)) return cell;
    }
    return kNoCell;
}

}  // namespace moeprof
