#include "eviction.hpp"

#include <algorithm>
#include <cstring>

namespace moeprof {
namespace {

// Of numbers that are not negative: in their order.
std::uint64_t bits_of_score(double score) {
    std::uint64_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    return bits;
}

double score_of(std::uint64_t bits) {
    double score;
    std::memcpy(&score, &bits, sizeof score);
    return score;
}

// The first entry that is not in use; those before it go, too.
Cell take_out(Tournament& entries, const InUse& in_use) {
    while (!entries.empty()) {
        const Cell cell = entries.top();
        entries.remove(cell);
        if (!in_use(cell)) return cell;
    }
    return kNoCell;
}

}  // namespace

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

void LruOrder::use(const UsedCells& used) {
    used.for_each_entry([this](Cell cell, Tick) {
        if (list_.holds(cell)) list_.remove(cell);
        list_.push_newest(cell);
    });
}

Cell LruOrder::victim(const InUse& in_use) {
    for (;;) {
        const Cell cell = list_.oldest();
        if (cell == list_.end()) return kNoCell;
        list_.remove(cell);
        if (!in_use(cell)) return cell;
    }
}

void LfuOrder::use(const UsedCells& used) {
    used.for_each_entry([this](Cell cell, Tick tick) { use(cell, tick); });
}

void LfuOrder::use(Cell cell, Tick tick) {
    last_tick_[cell] = tick;
    entries_.put(bits_of_score(scores_[cell]), tick, cell);
}

void LfuOrder::scale(double factor) {
    entries_.change_keys(
        [factor](std::uint64_t bits) { return bits_of_score(factor * score_of(bits)); });
}

Cell LfuOrder::victim(const InUse& in_use) { return take_out(entries_, in_use); }

void LfruOrder::use(const UsedCells& used) {
    used.for_each_entry([this](Cell cell, Tick tick) { use(cell, tick); });
}

void LfruOrder::use(Cell cell, Tick tick) {
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

void BeladyOrder::use(const UsedCells& used) {
    used.for_each_entry([this](Cell cell, Tick tick) { use(cell, tick); });
}

void BeladyOrder::use(Cell cell, Tick tick) {
    last_tick_[cell] = tick;
    entries_.put(kNever - next_use_[tick], tick, cell);
}

Cell BeladyOrder::victim(const InUse& in_use) { return take_out(entries_, in_use); }

}  // namespace moeprof
