// Plain C++, for any processor, and what the vector paths are read against.
//
// Weights: one packed quad; activations: ready rows; see paths.hpp. Reads each weight byte once per
// token; bound by arithmetic.
#include "elementwise.hpp"

namespace moeprof {
namespace {

template <Format kFormat>
void dot_group(const std::uint8_t* group, std::size_t lanes, const ActivationGroup& row,
               float (*accumulators)[kGroup]) {
    const std::uint8_t* words = group + kQuad * lanes * kScaleBytes;
    const std::size_t num_words = kFormat == Format::kQ8_0 ? 8 : 4;
    for (std::size_t r = 0; r < kQuad; ++r) {
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            std::int32_t dot = row.minus_8_sums[lane] * (kFormat == Format::kQ8_0 ? 16 : 1);
            for (std::size_t k = 0; k < num_words; ++k) {
                const std::uint8_t* word = words + ((k * kQuad + r) * lanes + lane) * 4;
                for (std::size_t i = 0; i < 4; ++i) {
                    if (kFormat == Format::kQ8_0) {
                        dot += word[i] * row.words[k][lane][i];
                    } else {
                        dot += (word[i] & 15) * row.words[k][lane][i];
                        dot += (word[i] >> 4) * row.words[k + 4][lane][i];
                    }
                }
            }
            std::uint16_t half;
            std::memcpy(&half, group + (r * lanes + lane) * kScaleBytes, sizeof half);
            const float scale = half_value(half) * row.scales[lane];
            accumulators[r][lane] += static_cast<float>(dot) * scale;
        }
    }
}

template <Format kFormat>
void dot_quad(const std::uint8_t* quad, std::size_t row_size, const std::uint8_t* const* ready,
              std::size_t num_tokens, float* sums) {
    const std::size_t num_blocks = row_size / kBlockSize;
    for (std::size_t t = 0; t < num_tokens; ++t) {
        const auto* row = reinterpret_cast<const ActivationGroup*>(ready[t]);
        float accumulators[kQuad][kGroup] = {};
        const std::uint8_t* group = quad;
        for (std::size_t start = 0; start < num_blocks; start += kGroup) {
            const std::size_t left = num_blocks - start;
            const std::size_t lanes = left < kGroup ? left : kGroup;
            dot_group<kFormat>(group, lanes, row[start / kGroup], accumulators);
            group += kQuad * lanes * block_bytes(kFormat);
        }
        for (std::size_t r = 0; r < kQuad; ++r) sums[t * kQuad + r] = tree_sum(accumulators[r]);
    }
}

void dot_quad_bf16(const std::uint8_t* quad, std::size_t row_size, const std::uint8_t* const* ready,
                   std::size_t num_tokens, float* sums) {
    for (std::size_t t = 0; t < num_tokens; ++t) {
        const auto* row = reinterpret_cast<const float*>(ready[t]);
        float accumulators[kQuad][kGroup] = {};
        const std::uint8_t* words = quad;
        for (std::size_t start = 0; start < row_size; start += 2 * kGroup) {
            for (std::size_t r = 0; r < kQuad; ++r) {
                for (std::size_t lane = 0; lane < kGroup; ++lane, words += 4) {
                    std::uint32_t word;
                    std::memcpy(&word, words, sizeof word);
                    accumulators[r][lane] += float_of(word << 16) * row[start + lane];
                    accumulators[r][lane] +=
                        float_of(word & 0xFFFF0000u) * row[start + kGroup + lane];
                }
            }
        }
        for (std::size_t r = 0; r < kQuad; ++r) sums[t * kQuad + r] = tree_sum(accumulators[r]);
    }
}

}  // namespace

const Path kScalarPath = {
    "scalar",
    {quantize_block, quantize_block, round_block},
    unit_block,
    {dot_quad<Format::kQ8_0>, dot_quad<Format::kQ4_0>, dot_quad_bf16},
    {
        ready_bytes,
        {ready_many<quantize_block>, ready_many<quantize_block>, ready_many<round_block>},
        no_scratch,
        {
            project_quads<Format::kQ8_0, dot_quad<Format::kQ8_0>>,
            project_quads<Format::kQ4_0, dot_quad<Format::kQ4_0>>,
            project_quads<Format::kBf16, dot_quad_bf16>,
        },
    },
    widen,
    narrow,
    {quantize_q8_0, quantize_q4_0, quantize_bf16},
    xor_words,
};

}  // namespace moeprof
