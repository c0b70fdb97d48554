#include "expert_cache.hpp"

#include <algorithm>
#include <utility>

namespace moeprof {

struct ExpertCache::Layer {
    CachePool& pool;
    Cell base;  // first cell of the pool
    InUse in_use;
};

ExpertCache::ExpertCache(std::vector<std::int64_t> bytes, const std::uint8_t* pinned,
                         std::vector<CachePool> pools, Admission admission,
                         std::shared_ptr<Frequencies> frequencies)
    : bytes_(std::move(bytes)),
      states_(bytes_.size(), kAbsent),
      last_batch_(bytes_.size()),
      pools_(std::move(pools)),
      pool_cells_(bytes_.size() / pools_.size()),
      admission_(admission),
      frequencies_(std::move(frequencies)) {
    for (std::size_t cell = 0; cell < bytes_.size(); ++cell) {
        if (pinned[cell]) states_[cell] = kPinned;
    }
}

BatchOutcome ExpertCache::batch(const Cell* cells, std::size_t num_cells, std::uint64_t tick,
                                std::uint8_t* is_hit) {
    BatchOutcome outcome;
    if (num_cells == 0) return outcome;
    const std::size_t index = pools_.size() == 1 ? 0 : cells[0] / pool_cells_;
    const Cell base = static_cast<Cell>(index * pool_cells_);
    CachePool& pool = pools_[index];
    ++batch_;
    missed_.clear();
    const bool watched = pool.order && pool.order->watches();
    for (std::size_t i = 0; i < num_cells; ++i) {
        const Cell cell = cells[i];
        last_batch_[cell] = batch_;
        if (frequencies_) frequencies_->use(cell);
        if (watched) pool.order->look_up(cell - base, batch_);
        is_hit[i] = states_[cell] != kAbsent;
        outcome.hits += is_hit[i];
        if (!is_hit[i]) missed_.push_back(cell);
    }
    if (!pool.order) return outcome;
    bring_in({pool, base, {last_batch_.data() + base, batch_}}, outcome);
    for (std::size_t i = 0; i < num_cells; ++i) {
        if (states_[cells[i]] == kPresent) pool.order->use(cells[i] - base, tick + i);
    }
    return outcome;
}

void ExpertCache::bring_in(const Layer& layer, BatchOutcome& outcome) {
    CachePool& pool = layer.pool;
    // What an earlier batch left above the budget goes, even if nothing comes.
    make_room(layer, kNoCell, 0);
    for (const Cell cell : missed_) {
        if (outcome.uploads == admission_.max_uploads) break;
        if (!pool.order->admits(cell - layer.base)) continue;
        const bool fits = make_room(layer, cell, bytes_[cell]);
        if (!fits && admission_.is_budget_hard) continue;
        states_[cell] = kPresent;
        pool.held_bytes += bytes_[cell];
        ++outcome.uploads;
        outcome.uploaded_bytes += bytes_[cell];
    }
}

// Gives entries up until `bytes` fit beside the others. Where the budget is hard and entries would
// have to go that are in use, or not worth less than `wanted`, it gives up none.
bool ExpertCache::make_room(const Layer& layer, Cell wanted, std::int64_t bytes) {
    CachePool& pool = layer.pool;
    victims_.clear();
    bool fits = true;
    std::int64_t held = pool.held_bytes + bytes;
    while (held > pool.budget_bytes && fits) {
        const Cell victim = pool.order->victim(layer.in_use);
        if (victim == kNoCell) {
            fits = false;
        } else {
            victims_.push_back(layer.base + victim);
            held -= bytes_[victims_.back()];
            fits = wanted == kNoCell || is_worth(wanted, victims_.back());
        }
    }
    if (!fits && wanted != kNoCell && admission_.is_budget_hard) {
        while (!victims_.empty()) {
            pool.order->restore(victims_.back() - layer.base);
            victims_.pop_back();
        }
        return false;
    }
    for (const Cell victim : victims_) {
        states_[victim] = kAbsent;
        pool.held_bytes -= bytes_[victim];
    }
    return fits;
}

bool ExpertCache::is_worth(Cell wanted, Cell victim) const {
    if (!admission_.hysteresis) return true;
    const Frequencies& frequencies = *frequencies_;
    return frequencies[wanted] > (1 + *admission_.hysteresis) * frequencies[victim];
}

void ExpertCache::step() {
    if (!frequencies_) return;
    frequencies_->step();
    if (!frequencies_->overflows()) return;
    const double factor = frequencies_->rescale();
    for (CachePool& pool : pools_) {
        if (pool.order) pool.order->scale(factor);
    }
}

void ExpertCache::clear() {
    for (State& state : states_) {
        if (state == kPresent) state = kAbsent;
    }
    for (CachePool& pool : pools_) {
        pool.held_bytes = 0;
        if (pool.order) pool.order->clear();
    }
    if (frequencies_) frequencies_->clear();
}

}  // namespace moeprof
