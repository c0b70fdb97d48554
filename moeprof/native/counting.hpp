// Counting of assignments; the definition is count_assignments in reference.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moeprof {

// A slot in which the router chose no expert.
constexpr std::uint16_t kNoExpert = 65535;

enum class CountFault { kNone, kGroup, kExpert, kRepeated };

struct CountResult {
    CountFault fault = CountFault::kNone;
    std::size_t row = 0;      // first faulty row
    std::uint32_t value = 0;  // the group or expert id found there
};

// Adds one to counts[groups[t] * num_experts + e] for every slot e of every row t of experts.
//
// experts [num_tokens, top_k], groups [num_tokens], counts [num_groups, num_experts], all
// row-major; last_seen is scratch of num_experts entries. Reads top_k * 2 + 4 bytes per token;
// bound by the latency of dependent increments, not by memory. Stops at the first faulty row.
CountResult count_assignments(const std::uint16_t* experts, const std::uint32_t* groups,
                              std::size_t num_tokens, std::size_t top_k, std::size_t num_groups,
                              std::size_t num_experts, std::int64_t* counts,
                              std::size_t* last_seen);

}  // namespace moeprof
