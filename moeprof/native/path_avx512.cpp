// AVX-512 with VNNI: the eight blocks of two rows, and their accumulators, are one register.
//
// Weights: one packed quad; activations: ready rows; see paths.hpp. Four rows are read as one
// stream, a cache line per load; up to four tokens share each load. Bound by memory.
#include <immintrin.h>

#include "avx512_groups.hpp"
#include "token_tiles.hpp"

namespace moeprof {
namespace {

__m512i twice(const void* eight_words) {
    return _mm512_broadcast_i64x4(_mm256_load_si256(static_cast<const __m256i*>(eight_words)));
}

__m512 twice(const float* eight_floats) {
    return _mm512_broadcast_f32x8(_mm256_load_ps(eight_floats));
}

template <Format kFormat, int kTokens, typename Group, typename Ahead>
void add_group(const Group& group, const Ahead& ahead, const std::uint8_t* bytes,
               const ActivationGroup* const* rows, __m512 (*accumulators)[kPairs]) {
    const std::size_t pair_words = 2 * group.lanes * 4;
    const std::uint8_t* words = bytes + kQuad * group.lanes * kScaleBytes;
    ahead.prefetch(bytes, kQuad * group.lanes * block_bytes(kFormat));
    __m512i dots[kTokens][kPairs];
    for (int t = 0; t < kTokens; ++t) {
        const __m512i minus_8_sums = twice(rows[t]->minus_8_sums);
        const int more = kFormat == Format::kQ8_0 ? 4 : 0;  // -128 instead of -8
        dots[t][0] = dots[t][1] = _mm512_slli_epi32(minus_8_sums, more);
    }
    if (kFormat == Format::kQ8_0) {
        for (std::size_t k = 0; k < 8; ++k) {
            for (std::size_t p = 0; p < kPairs; ++p) {
                const __m512i weights = group.words(words + (k * kPairs + p) * pair_words);
                for (int t = 0; t < kTokens; ++t) {
                    dots[t][p] = _mm512_dpbusd_epi32(dots[t][p], weights, twice(rows[t]->words[k]));
                }
            }
        }
    } else {
        const __m512i low_mask = _mm512_set1_epi8(15);
        for (std::size_t k = 0; k < 4; ++k) {
            for (std::size_t p = 0; p < kPairs; ++p) {
                const __m512i both = group.words(words + (k * kPairs + p) * pair_words);
                const __m512i low = _mm512_and_si512(both, low_mask);
                const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_mask);
                for (int t = 0; t < kTokens; ++t) {
                    const ActivationGroup& row = *rows[t];
                    dots[t][p] = _mm512_dpbusd_epi32(dots[t][p], low, twice(row.words[k]));
                    dots[t][p] = _mm512_dpbusd_epi32(dots[t][p], high, twice(row.words[k + 4]));
                }
            }
        }
    }
    for (std::size_t p = 0; p < kPairs; ++p) {
        const __m512 weight_scales = group.scales(bytes + p * 2 * group.lanes * kScaleBytes);
        for (int t = 0; t < kTokens; ++t) {
            const __m512 scales = _mm512_mul_ps(weight_scales, group.scales_of(*rows[t]));
            const __m512 terms = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[t][p]), scales);
            accumulators[t][p] = _mm512_add_ps(accumulators[t][p], terms);
        }
    }
}

// The sums of both rows of a pair, in the order of tree_sum.
void store_sums(__m512 accumulators, float* sums) {
    const __m512 fours =
        _mm512_add_ps(accumulators, _mm512_shuffle_f32x4(accumulators, accumulators, 0xB1));
    const __m512 twos = _mm512_add_ps(fours, _mm512_permute_ps(fours, 0x4E));
    const __m512 ones = _mm512_add_ps(twos, _mm512_permute_ps(twos, 0xB1));
    sums[0] = _mm512_cvtss_f32(ones);
    sums[1] = _mm256_cvtss_f32(_mm512_extractf32x8_ps(ones, 1));
}

template <Format kFormat, int kTokens, typename Ahead>
void dot_tokens(const std::uint8_t* quad, std::size_t row_size, const std::uint8_t* const* ready,
                const Ahead& ahead, float* sums) {
    constexpr std::size_t kGroupBytes = kQuad * kGroup * block_bytes(kFormat);
    const std::size_t num_blocks = row_size / kBlockSize;
    const std::size_t num_groups = num_blocks / kGroup;
    const ActivationGroup* rows[kTokens];
    __m512 accumulators[kTokens][kPairs];
    for (int t = 0; t < kTokens; ++t) {
        rows[t] = reinterpret_cast<const ActivationGroup*>(ready[t]);
        accumulators[t][0] = accumulators[t][1] = _mm512_setzero_ps();
    }
    for (std::size_t g = 0; g < num_groups; ++g, quad += kGroupBytes) {
        add_group<kFormat, kTokens>(Full{}, ahead, quad, rows, accumulators);
        for (int t = 0; t < kTokens; ++t) ++rows[t];
    }
    if (num_blocks % kGroup) {
        add_group<kFormat, kTokens>(Tail{num_blocks % kGroup}, ahead, quad, rows, accumulators);
    }
    for (int t = 0; t < kTokens; ++t) {
        for (std::size_t p = 0; p < kPairs; ++p) {
            store_sums(accumulators[t][p], sums + t * kQuad + p * 2);
        }
    }
}

template <int kTokens, typename Ahead>
void dot_tokens_bf16(const std::uint8_t* quad, std::size_t row_size,
                     const std::uint8_t* const* ready, const Ahead& ahead, float* sums) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
    __m512 accumulators[kTokens][kPairs];
    for (int t = 0; t < kTokens; ++t) accumulators[t][0] = accumulators[t][1] = _mm512_setzero_ps();
    for (std::size_t start = 0; start < row_size; start += 2 * kGroup) {
        ahead.prefetch(quad, kQuad * kGroup * 4);
        for (std::size_t p = 0; p < kPairs; ++p, quad += 2 * kGroup * 4) {
            const __m512i words = _mm512_loadu_si512(quad);
            const __m512 lower = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
            const __m512 upper = _mm512_castsi512_ps(_mm512_and_si512(words, high));
            for (int t = 0; t < kTokens; ++t) {
                const float* row = reinterpret_cast<const float*>(ready[t]) + start;
                __m512& sum = accumulators[t][p];
                sum = _mm512_add_ps(sum, _mm512_mul_ps(lower, twice(row)));
                sum = _mm512_add_ps(sum, _mm512_mul_ps(upper, twice(row + kGroup)));
            }
        }
    }
    for (int t = 0; t < kTokens; ++t) {
        for (std::size_t p = 0; p < kPairs; ++p) {
            store_sums(accumulators[t][p], sums + t * kQuad + p * 2);
        }
    }
}

template <Format kFormat>
struct DotTokens {
    template <int kTokens, typename Ahead>
    static void of(const std::uint8_t* quad, std::size_t row_size, const std::uint8_t* const* ready,
                   const Ahead& ahead, float* sums) {
        if constexpr (kFormat == Format::kBf16) {
            dot_tokens_bf16<kTokens>(quad, row_size, ready, ahead, sums);
        } else {
            dot_tokens<kFormat, kTokens>(quad, row_size, ready, ahead, sums);
        }
    }
};

template <Format kFormat>
constexpr DotQuad dot_quad = TokenTiles<kFormat, 4, DotTokens<kFormat>>::dot_quad;

}  // namespace

const Path kAvx512Path = {
    "avx512_vnni",
    {quantize_block, quantize_block, round_block},
    unit_block,
    {dot_quad<Format::kQ8_0>, dot_quad<Format::kQ4_0>, dot_quad<Format::kBf16>},
    {
        ready_bytes,
        {ready_many<quantize_block>, ready_many<quantize_block>, ready_many<round_block>},
        no_scratch,
        {
            project_quads<Format::kQ8_0, dot_quad<Format::kQ8_0>>,
            project_quads<Format::kQ4_0, dot_quad<Format::kQ4_0>>,
            project_quads<Format::kBf16, dot_quad<Format::kBf16>>,
        },
    },
    widen,
    narrow,
    {quantize_q8_0, quantize_q4_0, quantize_bf16},
    xor_words,
};

}  // namespace moeprof
