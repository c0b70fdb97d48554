#include "routed_tokens.hpp"

#include <algorithm>
#include <vector>

#include "counting.hpp"

namespace moeprof {
namespace {

// words[i] & word counted in 64-bit words, added to sums[i].
inline void add_common_bits(const std::uint64_t* words, std::uint64_t word, std::size_t size,
                            std::int64_t* sums) {
    for (std::size_t i = 0; i < size; ++i) {
        sums[i] += __builtin_popcountll(words[i] & word);
    }
}

inline void add_row(const float* row, std::size_t size, float* sums) {
    for (std::size_t i = 0; i < size; ++i) sums[i] += row[i];
}

// Candidates that stand before candidate `id`: of a higher score, or of its score and a lower id.
inline std::size_t rank_of(const float* scores, std::size_t size, std::size_t id) {
    const float score = scores[id];
    std::uint32_t before = 0;
    for (std::size_t i = 0; i < size; ++i) before += scores[i] > score ? 1 : 0;
    for (std::size_t i = 0; i < id; ++i) before += scores[i] == score ? 1 : 0;
    return before;
}

MOEPROF_WIDEST std::uint32_t num_foreign(const std::uint16_t* ids, std::size_t size,
                                         std::uint32_t num_experts) {
    std::uint32_t found = 0;
    for (std::size_t i = 0; i < size; ++i) {
        found += (ids[i] >= num_experts) & (ids[i] != kNoExpert) ? 1 : 0;
    }
    return found;
}

}  // namespace

std::size_t first_foreign_id(const std::uint16_t* ids, std::size_t size, std::size_t num_experts) {
    constexpr std::size_t kBlock = 1 << 14;
    for (std::size_t from = 0; from < size; from += kBlock) {
        const std::size_t to = std::min(size, from + kBlock);
        if (num_foreign(ids + from, to - from, static_cast<std::uint32_t>(num_experts)) == 0) {
            continue;
        }
        for (std::size_t i = from; i < to; ++i) {
            if (ids[i] >= num_experts && ids[i] != kNoExpert) return i;
        }
    }
    return size;
}

MOEPROF_WIDEST void lag_overlap(const ChosenExperts& routed, const std::int64_t* runs,
                                const std::uint32_t* groups, std::size_t num_runs,
                                std::size_t num_experts, std::size_t max_lag, std::int64_t* shared,
                                std::int64_t* held) {
    const std::size_t num_words = (num_experts + 63) / 64;
    std::vector<std::uint64_t> bits;  // [num_words, tokens of the run]
    std::vector<std::int64_t> sizes;
    for (std::size_t run = 0; run < num_runs; ++run) {
        const std::size_t first = static_cast<std::size_t>(runs[run]);
        const std::size_t length = static_cast<std::size_t>(runs[run + 1]) - first;
        bits.assign(num_words * length, 0);
        sizes.assign(length, 0);
        for (std::size_t t = 0; t < length; ++t) {
            const std::uint16_t* row = routed.row(first + t);
            for (std::size_t slot = 0; slot < routed.top_k; ++slot) {
                if (row[slot] == kNoExpert) continue;
                bits[row[slot] / 64 * length + t] |= std::uint64_t{1} << row[slot] % 64;
                ++sizes[t];
            }
        }
        std::int64_t* run_shared = shared + groups[run] * max_lag;
        std::int64_t* run_held = held + groups[run] * max_lag;
        for (std::size_t t = 0; t < length; ++t) {
            const std::size_t later = std::min(max_lag, length - 1 - t);
            for (std::size_t word = 0; word < num_words; ++word) {
                const std::uint64_t* of_word = bits.data() + word * length + t;
                if (*of_word != 0) add_common_bits(of_word + 1, *of_word, later, run_shared);
            }
            for (std::size_t lag = 1; lag <= later; ++lag) {
                run_held[lag - 1] += sizes[t + lag] != 0 ? sizes[t] : 0;
            }
        }
    }
}

void pair_counts(const ChosenExperts& first, const ChosenExperts& second,
                 const std::uint32_t* groups, std::size_t num_tokens, std::size_t num_experts,
                 std::int64_t* counts) {
    for (std::size_t t = 0; t < num_tokens; ++t) {
        std::int64_t* table = counts + groups[t] * num_experts * num_experts;
        for (std::size_t i = 0; i < first.top_k; ++i) {
            const std::uint16_t one = first.row(t)[i];
            if (one == kNoExpert) continue;
            for (std::size_t j = 0; j < second.top_k; ++j) {
                const std::uint16_t other = second.row(t)[j];
                if (other != kNoExpert) ++table[one * num_experts + other];
            }
        }
    }
}

MOEPROF_WIDEST void candidate_ranks(const ChosenExperts& given, const ChosenExperts& chosen,
                                    const Tables<float>& evidence, std::int64_t* ranks) {
    const std::size_t num_experts = evidence.num_experts;
    std::vector<float> scores(num_experts);
    for (std::size_t t = 0; t < evidence.num_tokens; ++t) {
        const float* outset = evidence.table(t) + num_experts * num_experts;
        std::copy(outset, outset + num_experts, scores.begin());
        bool is_given = false;
        for (std::size_t slot = 0; slot < given.top_k; ++slot) {
            const std::uint16_t expert = given.row(t)[slot];
            if (expert == kNoExpert) continue;
            is_given = true;
            add_row(evidence.table(t) + expert * num_experts, num_experts, scores.data());
        }
        if (!is_given) continue;
        std::int64_t* of_group = ranks + evidence.groups[t] * num_experts;
        for (std::size_t slot = 0; slot < chosen.top_k; ++slot) {
            const std::uint16_t expert = chosen.row(t)[slot];
            if (expert != kNoExpert) ++of_group[rank_of(scores.data(), num_experts, expert)];
        }
    }
}

void chosen_pairs(const ChosenExperts& routed, const Tables<std::uint8_t>& marked,
                  std::int64_t* pairs) {
    for (std::size_t t = 0; t < marked.num_tokens; ++t) {
        const std::uint8_t* table = marked.table(t);
        const std::uint16_t* row = routed.row(t);
        std::int64_t found = 0;
        for (std::size_t i = 0; i + 1 < routed.top_k; ++i) {
            if (row[i] == kNoExpert) continue;
            for (std::size_t j = i + 1; j < routed.top_k; ++j) {
                if (row[j] != kNoExpert) found += table[row[i] * marked.num_experts + row[j]];
            }
        }
        pairs[marked.groups[t]] += found;
    }
}

}  // namespace moeprof
