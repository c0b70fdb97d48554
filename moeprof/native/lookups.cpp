#include "lookups.hpp"

#include <algorithm>

#include "counting.hpp"

namespace moeprof {

template <typename Uses>
std::optional<std::size_t> pack_lookups(const RoutedSteps& steps, Cell* cells, Uses* uses,
                                        std::int64_t* batch_end) {
    // The lookup of each expert in the current batch, if it is not below the batch's first.
    std::vector<std::size_t> lookup_of(steps.num_experts);
    std::size_t end = 1;  // one too many, so that no expert seems to have been looked up
    for (std::size_t step = 0; step < steps.num_steps; ++step) {
        const std::size_t from = static_cast<std::size_t>(steps.step_start[step]) * steps.top_k;
        const std::size_t to = static_cast<std::size_t>(steps.step_start[step + 1]) * steps.top_k;
        for (std::size_t row = 0; row < steps.num_rows; ++row) {
            const std::size_t first = end;
            const Cell base = static_cast<Cell>(row * steps.num_experts);
            const std::uint16_t* experts = steps.experts[row];
            for (std::size_t slot = from; slot < to; ++slot) {
                const std::uint16_t expert = experts[slot];
                if (expert == kNoExpert) continue;
                if (expert >= steps.num_experts) return std::nullopt;
                std::size_t& lookup = lookup_of[expert];
                if (lookup >= first) {
                    ++uses[lookup - 1];
                } else {
                    lookup = end;
                    cells[end - 1] = base + expert;
                    uses[end - 1] = 1;
                    ++end;
                }
            }
            *batch_end++ = static_cast<std::int64_t>(end - 1);
        }
    }
    return end - 1;
}

template std::optional<std::size_t> pack_lookups(const RoutedSteps&, Cell*, std::uint16_t*,
                                                 std::int64_t*);
template std::optional<std::size_t> pack_lookups(const RoutedSteps&, Cell*, std::uint32_t*,
                                                 std::int64_t*);

void next_uses(const Lookups& lookups, const ReplayTimes& times, std::size_t num_cells,
               std::uint32_t* next_use) {
    std::vector<std::uint32_t> next(num_cells, kNever);
    std::size_t restarts = times.num_restarts;
    for (std::size_t batch = lookups.num_batches; batch-- > 0;) {
        if (restarts > 0 && times.restarts[restarts - 1] == static_cast<std::int64_t>(batch + 1)) {
            std::fill(next.begin(), next.end(), kNever);
            --restarts;
        }
        for (std::size_t i = lookups.first(batch); i < lookups.first(batch + 1); ++i) {
            next_use[i] = next[lookups.cells[i]];
            next[lookups.cells[i]] = static_cast<std::uint32_t>(batch);
        }
    }
}

}  // namespace moeprof
