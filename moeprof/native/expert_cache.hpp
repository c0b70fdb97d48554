// A cache of experts under a budget of bytes: what is present, what is brought in, what has to go.
//
// A replay over a trace and the runtime decide with this code, so that the same lookups give the
// same hits. The definition is ReferenceCache in reference/replay.py.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "eviction.hpp"

namespace moeprof {

// Which missed cells are brought in.
struct Admission {
    std::size_t max_uploads = ~std::size_t{0};  // of each batch, in the order of its lookups
    // A cell comes in only if it was used more than 1 + hysteresis times as often as each entry
    // that has to go for it.
    std::optional<double> hysteresis;
    // What does not fit beside the entries that a batch uses stays outside. Otherwise the pool is
    // above its budget after a batch that is larger than it.
    bool is_budget_hard = false;
};

// What a batch met and moved.
struct BatchOutcome {
    std::uint32_t hits = 0;     // cells that were present
    std::uint32_t uploads = 0;  // cells brought in
    std::int64_t uploaded_bytes = 0;
};

// One budget and the order in which its entries are given up.
struct CachePool {
    std::unique_ptr<EvictionOrder> order;
    std::int64_t budget_bytes = 0;
    std::int64_t held_bytes = 0;
};

class ExpertCache {
  public:
    // `pinned` marks cells that are always present and count for no budget. With one pool the
    // whole model shares a budget; otherwise pool i is that of cells i * pool_cells and above.
    // Orders know a pool's cells by their index within it. `frequencies` is counted here.
    ExpertCache(std::vector<std::int64_t> bytes, const std::uint8_t* pinned,
                std::vector<CachePool> pools, Admission admission,
                std::shared_ptr<Frequencies> frequencies);

    // Trims the pool to its budget, then looks up the distinct cells of a batch, all of one layer.
    // Afterwards the missed cells that are admitted are present, for which only entries were given
    // up that this batch does not use. `tick` numbers the first lookup; is_hit [num_cells] is
    // written.
    BatchOutcome batch(const Cell* cells, std::size_t num_cells, Tick tick, std::uint8_t* is_hit);
    // A token, or a window of a prompt, has passed through all layers.
    void step();
    // Forgets everything but what is pinned.
    void clear();

  private:
    struct Layer;  // the pool of a batch

    std::uint32_t look_up(const Cell* cells, std::size_t num_cells, std::uint8_t* is_hit);
    void bring_in(const Layer& layer, std::size_t num_missed, BatchOutcome& outcome);
    bool make_room(const Layer& layer, Cell wanted, std::int64_t bytes);
    bool is_worth(Cell wanted, Cell victim) const;

    std::vector<std::int64_t> bytes_;
    std::vector<std::uint8_t> is_pinned_;
    std::vector<std::uint8_t> is_entry_;  // under the budget
    std::vector<std::uint32_t> last_batch_;
    std::vector<CachePool> pools_;
    std::size_t pool_cells_;
    Admission admission_;
    std::shared_ptr<Frequencies> frequencies_;
    std::uint32_t batch_ = 0;
    std::vector<Cell> missed_;  // of a batch, in its order
    std::vector<Cell> victims_;
};

}  // namespace moeprof
