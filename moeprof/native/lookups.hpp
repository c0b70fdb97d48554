// The lookups of a trace in the order a machine makes them, and what is computed of them.
//
// Batch b looks up cells[batch_start[b]] to cells[batch_start[b + 1] - 1], which are distinct and
// of one layer. The definitions of what is computed are in reference/replay.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "expert_cache.hpp"

namespace moeprof {

struct Lookups {
    const std::int64_t* batch_start;  // [num_batches + 1]
    std::size_t num_batches;
    const Cell* cells;

    std::size_t first(std::size_t batch) const {
        return static_cast<std::size_t>(batch_start[batch]);
    }
    std::size_t size(std::size_t batch) const { return first(batch + 1) - first(batch); }
};

// Tokens that pass through the layers together, one run after the other: step s is tokens
// step_start[s] to step_start[s + 1] - 1. Experts of row r are experts[r] [num_tokens, top_k],
// kNoExpert where a slot is empty.
struct RoutedSteps {
    const std::uint16_t* const* experts;
    std::size_t num_rows;
    std::size_t top_k;
    std::size_t num_experts;
    const std::int64_t* step_start;
    std::size_t num_steps;
};

// Writes the lookups of each step, a batch for each row, cells in the order of their first use;
// cell is row * num_experts + expert. Ends are written to batch_end [num_steps * num_rows], counted
// from the first lookup. uses [N] is the number of assignments behind each lookup. Returns the
// number of lookups, or none where an expert id is not below num_experts.
template <typename Uses>
std::optional<std::size_t> pack_lookups(const RoutedSteps& steps, Cell* cells, Uses* uses,
                                        std::int64_t* batch_end);

// When a replay begins anew, and when time passes.
struct ReplayTimes {
    std::size_t batches_per_step;
    const std::int64_t* restarts;  // batches before which the cache is emptied, ascending
    std::size_t num_restarts;
};

// For every lookup the batch that looks the same cell up next, or kNever; what comes after a
// restart does not count.
void next_uses(const Lookups& lookups, const ReplayTimes& times, std::size_t num_cells,
               std::uint32_t* next_use);

// For every lookup what was looked up between the last use of the cell and this batch, the cell
// itself left out: the sum of `bytes` (null: the number) of the distinct cells, -1 for a first use.
// O(N log C) for C cells, memory O(C).
void reuse_distances(const Lookups& lookups, std::size_t num_cells, const std::int64_t* bytes,
                     std::int64_t* distances);

// What every batch of a replay met and moved; all [num_batches] but is_hit.
struct ReplayOutput {
    std::uint8_t* is_hit;  // [number of lookups]
    std::uint16_t* hits;
    std::uint32_t* served;  // assignments behind the hits
    std::uint16_t* uploads;
    std::int64_t* uploaded_bytes;
};

template <typename Uses>
void replay(const Lookups& lookups, const Uses* uses, const ReplayTimes& times, ExpertCache& cache,
            const ReplayOutput& output);

// Lists of cells that are always present: set_of_batch[b] names the list of batch b, row by row in
// is_member [sets, num_cells].
struct CellSets {
    const std::uint8_t* is_member;
    const std::uint32_t* set_of_batch;
    std::size_t num_cells;
};

// Which lookups a list holds; nothing is brought in.
template <typename Uses>
void look_up_sets(const Lookups& lookups, const Uses* uses, const CellSets& sets,
                  const ReplayOutput& output);

// The most lookups that can hit where is_scored[batch] holds, among all ways to keep up to
// `capacity` entries of each pool, to bring in any of a batch's cells, and to begin (and begin
// anew) with any: after each batch those stay whose next use is scored and comes first. As `replay`
// otherwise.
template <typename Uses>
void replay_optimum(const Lookups& lookups, const Uses* uses, const ReplayTimes& times,
                    const std::uint32_t* next_use, const std::uint8_t* is_scored,
                    const std::vector<std::size_t>& capacities, const std::int64_t* bytes,
                    std::size_t num_cells, const ReplayOutput& output);

}  // namespace moeprof
