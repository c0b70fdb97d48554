#include "expert_cache.hpp"

#include <algorithm>
#include <utility>

namespace moeprof {

struct ExpertCache::Layer {
    CachePool& pool;
    Cell base;  // first cell of the pool
    InUse in_use;
    bool watches;  // whether its order chooses what comes in
};

ExpertCache::ExpertCache(std::vector<std::int64_t> bytes, const std::uint8_t* pinned,
                         std::vector<CachePool> pools, Admission admission,
                         std::shared_ptr<Frequencies> frequencies)
    : bytes_(std::move(bytes)),
      is_pinned_(bytes_.size()),
      is_entry_(bytes_.size()),
      last_batch_(bytes_.size()),
      pools_(std::move(pools)),
      pool_cells_(bytes_.size() / pools_.size()),
      admission_(admission),
      frequencies_(std::move(frequencies)) {
    for (std::size_t cell = 0; cell < bytes_.size(); ++cell) is_pinned_[cell] = pinned[cell] != 0;
}

BatchOutcome ExpertCache::batch(const Cell* cells, std::size_t num_cells, Tick tick,
                                std::uint8_t* is_hit) {
    BatchOutcome outcome;
    if (num_cells == 0) return outcome;
    const std::size_t index = pools_.size() == 1 ? 0 : cells[0] / pool_cells_;
    const Cell base = static_cast<Cell>(index * pool_cells_);
    CachePool& pool = pools_[index];
    ++batch_;
    if (missed_.size() < num_cells) missed_.resize(num_cells);
    const bool watches = pool.order->watches();
    const Layer layer{pool, base, {last_batch_.data() + base, batch_}, watches};
    // What an earlier batch left above the budget is gone when this one begins.
    make_room(layer, kNoCell, 0);
    outcome.hits = look_up(cells, num_cells, is_hit);
    if (frequencies_) {
        for (std::size_t i = 0; i < num_cells; ++i) frequencies_->use(cells[i]);
    }
    if (watches) {
        for (std::size_t i = 0; i < num_cells; ++i) pool.order->look_up(cells[i] - base, batch_);
    }
    bring_in(layer, num_cells - outcome.hits, outcome);
    pool.order->use({cells, num_cells, base, is_entry_.data(), tick});
    return outcome;
}

// Which cells hit, and what missed; returns the number of hits. Bytes that are written could be any
// member's, so that these are read once.
std::uint32_t ExpertCache::look_up(const Cell* cells, std::size_t num_cells, std::uint8_t* is_hit) {
    const std::uint8_t* const is_entry = is_entry_.data();
    const std::uint8_t* const is_pinned = is_pinned_.data();
    std::uint32_t* const last_batch = last_batch_.data();
    Cell* missed = missed_.data();
    const std::uint32_t batch = batch_;
    for (std::size_t i = 0; i < num_cells; ++i) {
        const Cell cell = cells[i];
        const std::uint8_t hits = is_entry[cell] | is_pinned[cell];
        last_batch[cell] = batch;
        is_hit[i] = hits;
        *missed = cell;
        missed += 1 - hits;
    }
    return static_cast<std::uint32_t>(num_cells - (missed - missed_.data()));
}

void ExpertCache::bring_in(const Layer& layer, std::size_t num_missed, BatchOutcome& outcome) {
    CachePool& pool = layer.pool;
    for (std::size_t i = 0; i < num_missed; ++i) {
        const Cell cell = missed_[i];
        if (outcome.uploads == admission_.max_uploads) break;
        if (layer.watches && !pool.order->admits(cell - layer.base)) continue;
        const bool fits = make_room(layer, cell, bytes_[cell]);
        if (!fits && admission_.is_budget_hard) continue;
        is_entry_[cell] = 1;
        pool.held_bytes += bytes_[cell];
        ++outcome.uploads;
        outcome.uploaded_bytes += bytes_[cell];
    }
}

// Gives entries up until `bytes` fit beside the others. Where the budget is hard and entries would
// have to go that are in use, or not worth less than `wanted`, it gives up none.
bool ExpertCache::make_room(const Layer& layer, Cell wanted, std::int64_t bytes) {
    CachePool& pool = layer.pool;
    std::int64_t held = pool.held_bytes + bytes;
    if (held <= pool.budget_bytes) return true;
    victims_.clear();
    bool fits = true;
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
        is_entry_[victim] = 0;
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
    for (CachePool& pool : pools_) pool.order->scale(factor);
}

void ExpertCache::clear() {
    std::fill(is_entry_.begin(), is_entry_.end(), 0);
    for (CachePool& pool : pools_) {
        pool.held_bytes = 0;
        pool.order->clear();
    }
    if (frequencies_) frequencies_->clear();
}

}  // namespace moeprof
