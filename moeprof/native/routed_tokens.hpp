// Statistics over the tokens of one layer; the definitions are in reference/routed_tokens.py.
//
// Experts are [num_tokens, top_k] row-major, distinct in a row, kNoExpert where a slot is empty,
// all others below num_experts (first_foreign_id says whether they are).
#pragma once

#include <cstddef>
#include <cstdint>

// Loops that vectorise are compiled for several instruction sets, one of which is chosen when the
// library is loaded. Sanitizers cannot instrument that choice.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MOEPROF_WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MOEPROF_WIDEST
#endif

namespace moeprof {

struct ChosenExperts {
    const std::uint16_t* experts;
    std::size_t top_k;

    const std::uint16_t* row(std::size_t token) const { return experts + token * top_k; }
};

// Index of the first id that is neither below num_experts nor kNoExpert; `size` if there is none.
std::size_t first_foreign_id(const std::uint16_t* ids, std::size_t size, std::size_t num_experts);

// Adds to shared and held, both [num_groups, max_lag]. Runs are [num_runs + 1] and ascend from 0.
// Reads each token's set of num_experts bits max_lag times from the nearest cache; bound by
// counting bits.
void lag_overlap(const ChosenExperts& routed, const std::int64_t* runs, const std::uint32_t* groups,
                 std::size_t num_runs, std::size_t num_experts, std::size_t max_lag,
                 std::int64_t* shared, std::int64_t* held);

// Adds to counts [num_groups, num_experts, num_experts]; K x J increments a token, in one group's
// table as long as groups follow each other.
void pair_counts(const ChosenExperts& first, const ChosenExperts& second,
                 const std::uint32_t* groups, std::size_t num_tokens, std::size_t num_experts,
                 std::int64_t* counts);

// Tables that score or mark, and which of them is meant for each token.
template <typename Entry>
struct Tables {
    const Entry* entries;  // [num_tables, num_rows, num_experts]
    std::size_t num_rows;
    const std::uint32_t* of;      // [num_tokens]
    const std::uint32_t* groups;  // [num_tokens]
    std::size_t num_tokens;
    std::size_t num_experts;

    const Entry* table(std::size_t token) const {
        return entries + of[token] * num_rows * num_experts;
    }
};

// Adds to ranks [num_groups, num_experts]. A table has one row more than experts, the scores from
// the outset. For each token adds K rows of the table and passes over the scores once for every
// chosen expert.
void candidate_ranks(const ChosenExperts& given, const ChosenExperts& chosen,
                     const Tables<float>& evidence, std::int64_t* ranks);

// Adds to pairs [num_groups].
void chosen_pairs(const ChosenExperts& routed, const Tables<std::uint8_t>& marked,
                  std::int64_t* pairs);

}  // namespace moeprof
