#include "counting.hpp"

#include <algorithm>

namespace moeprof {

CountResult count_assignments(const std::uint16_t* experts, const std::uint32_t* groups,
                              std::size_t num_tokens, std::size_t top_k, std::size_t num_groups,
                              std::size_t num_experts, std::int64_t* counts,
                              std::size_t* last_seen) {
    std::fill(last_seen, last_seen + num_experts, num_tokens);
    for (std::size_t row = 0; row < num_tokens; ++row) {
        const std::uint32_t group = groups[row];
        if (group >= num_groups) return {CountFault::kGroup, row, group};
        std::int64_t* group_counts = counts + group * num_experts;
        for (std::size_t slot = 0; slot < top_k; ++slot) {
            const std::uint16_t expert = experts[row * top_k + slot];
            if (expert >= num_experts) {
                if (expert == kNoExpert) continue;
                return {CountFault::kExpert, row, expert};
            }
            if (last_seen[expert] == row) return {CountFault::kRepeated, row, expert};
            last_seen[expert] = row;
            ++group_counts[expert];
        }
    }
    return {};
}

}  // namespace moeprof
