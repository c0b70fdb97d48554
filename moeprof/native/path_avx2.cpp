// AVX2 with F16C: a row's eight blocks, and its eight accumulators, are one register.
//
// Weights: one packed quad; activations: ready rows; see paths.hpp. Four rows are read as one
// stream, once for a few tokens (for more from the first-level cache). Bound by memory for one
// token, by arithmetic for more.
#include <immintrin.h>

#include "token_tiles.hpp"

namespace moeprof {
namespace {

constexpr std::int32_t kLaneMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// Eight words and eight scales of one row of a full group.
struct Full {
    static constexpr std::size_t lanes = kGroup;
    __m256i words(const std::uint8_t* from) const { return load(from); }
    __m256 scales(const std::uint8_t* from) const {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    __m256 scales_of(const ActivationGroup& row) const { return _mm256_load_ps(row.scales); }
};

// The same of the last, smaller group; nothing behind it is read.
struct Tail {
    std::size_t lanes;
    __m256i words(const std::uint8_t* from) const {
        const __m256i mask = load(kLaneMasks + kGroup - lanes);
        return _mm256_maskload_epi32(reinterpret_cast<const int*>(from), mask);
    }
    __m256 scales(const std::uint8_t* from) const {
        alignas(16) std::uint16_t halves[kGroup] = {};
        std::memcpy(halves, from, lanes * kScaleBytes);
        return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(halves)));
    }
    __m256 scales_of(const ActivationGroup& row) const {
        return _mm256_maskload_ps(row.scales, load(kLaneMasks + kGroup - lanes));
    }
};

// Dot products of one row's blocks with those of each token; what is done with a weight is done
// once for all.
template <Format kFormat, int kTokens, typename Group>
void dot_row(const Group& group, const std::uint8_t* words, const ActivationGroup* const* rows,
             __m256i* dots) {
    const std::size_t stride = kQuad * group.lanes * 4;
    const __m256i ones = _mm256_set1_epi16(1);
    for (int t = 0; t < kTokens; ++t) dots[t] = _mm256_setzero_si256();
    if (kFormat == Format::kQ8_0) {
        const __m256i offset = _mm256_set1_epi8(static_cast<char>(0x80));
        for (std::size_t k = 0; k < 8; ++k) {
            const __m256i weight = _mm256_xor_si256(group.words(words + k * stride), offset);
            const __m256i magnitude = _mm256_abs_epi8(weight);
            for (int t = 0; t < kTokens; ++t) {
                // |w| <= 128 times |x| <= 127, twice: below 2^15, so nothing saturates.
                const __m256i products = _mm256_maddubs_epi16(
                    magnitude, _mm256_sign_epi8(load(rows[t]->words[k]), weight));
                dots[t] = _mm256_add_epi32(dots[t], _mm256_madd_epi16(products, ones));
            }
        }
        return;
    }
    const __m256i low_mask = _mm256_set1_epi8(15);
    for (std::size_t k = 0; k < 4; ++k) {
        const __m256i word = group.words(words + k * stride);
        const __m256i low = _mm256_and_si256(word, low_mask);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(word, 4), low_mask);
        for (int t = 0; t < kTokens; ++t) {
            // 16 products of at most 15 * 127 in all: below 2^15
            const ActivationGroup& row = *rows[t];
            const __m256i first = _mm256_maddubs_epi16(low, load(row.words[k]));
            const __m256i second = _mm256_maddubs_epi16(high, load(row.words[k + 4]));
            dots[t] = _mm256_add_epi16(dots[t], _mm256_add_epi16(first, second));
        }
    }
    for (int t = 0; t < kTokens; ++t) {
        dots[t] = _mm256_add_epi32(_mm256_madd_epi16(dots[t], ones), load(rows[t]->minus_8_sums));
    }
}

template <Format kFormat, int kTokens, typename Group, typename Ahead>
void add_group(const Group& group, const Ahead& ahead, const std::uint8_t* bytes,
               const ActivationGroup* const* rows, __m256 (*accumulators)[kQuad]) {
    ahead.prefetch(bytes, kQuad * group.lanes * block_bytes(kFormat));
    const std::uint8_t* words = bytes + kQuad * group.lanes * kScaleBytes;
    for (std::size_t r = 0; r < kQuad; ++r) {
        __m256i dots[kTokens];
        dot_row<kFormat, kTokens>(group, words + r * group.lanes * 4, rows, dots);
        const __m256 weight_scales = group.scales(bytes + r * group.lanes * kScaleBytes);
        for (int t = 0; t < kTokens; ++t) {
            const __m256 scales = _mm256_mul_ps(weight_scales, group.scales_of(*rows[t]));
            const __m256 terms = _mm256_mul_ps(_mm256_cvtepi32_ps(dots[t]), scales);
            accumulators[t][r] = _mm256_add_ps(accumulators[t][r], terms);
        }
    }
}

float sum_of(__m256 accumulators) {
    const __m128 fours =
        _mm_add_ps(_mm256_castps256_ps128(accumulators), _mm256_extractf128_ps(accumulators, 1));
    const __m128 twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
    return _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)));
}

template <Format kFormat, int kTokens, typename Ahead>
void dot_tokens(const std::uint8_t* quad, std::size_t row_size, const std::uint8_t* const* ready,
                const Ahead& ahead, float* sums) {
    constexpr std::size_t kGroupBytes = kQuad * kGroup * block_bytes(kFormat);
    const std::size_t num_blocks = row_size / kBlockSize;
    const std::size_t num_groups = num_blocks / kGroup;
    const ActivationGroup* rows[kTokens];
    __m256 accumulators[kTokens][kQuad];
    for (int t = 0; t < kTokens; ++t) {
        rows[t] = reinterpret_cast<const ActivationGroup*>(ready[t]);
        for (std::size_t r = 0; r < kQuad; ++r) accumulators[t][r] = _mm256_setzero_ps();
    }
    for (std::size_t g = 0; g < num_groups; ++g, quad += kGroupBytes) {
        add_group<kFormat, kTokens>(Full{}, ahead, quad, rows, accumulators);
        for (int t = 0; t < kTokens; ++t) ++rows[t];
    }
    if (num_blocks % kGroup) {
        add_group<kFormat, kTokens>(Tail{num_blocks % kGroup}, ahead, quad, rows, accumulators);
    }
    for (int t = 0; t < kTokens; ++t) {
        for (std::size_t r = 0; r < kQuad; ++r) sums[t * kQuad + r] = sum_of(accumulators[t][r]);
    }
}

template <int kTokens, typename Ahead>
void dot_tokens_bf16(const std::uint8_t* quad, std::size_t row_size,
                     const std::uint8_t* const* ready, const Ahead& ahead, float* sums) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
    __m256 accumulators[kTokens][kQuad];
    for (int t = 0; t < kTokens; ++t) {
        for (std::size_t r = 0; r < kQuad; ++r) accumulators[t][r] = _mm256_setzero_ps();
    }
    for (std::size_t start = 0; start < row_size; start += 2 * kGroup) {
        ahead.prefetch(quad, kQuad * kGroup * 4);
        for (std::size_t r = 0; r < kQuad; ++r, quad += 4 * kGroup) {
            const __m256i word = load(quad);
            const __m256 lower = _mm256_castsi256_ps(_mm256_slli_epi32(word, 16));
            const __m256 upper = _mm256_castsi256_ps(_mm256_and_si256(word, high));
            for (int t = 0; t < kTokens; ++t) {
                const float* row = reinterpret_cast<const float*>(ready[t]) + start;
                __m256& sum = accumulators[t][r];
                sum = _mm256_add_ps(sum, _mm256_mul_ps(lower, _mm256_load_ps(row)));
                sum = _mm256_add_ps(sum, _mm256_mul_ps(upper, _mm256_load_ps(row + kGroup)));
            }
        }
    }
    for (int t = 0; t < kTokens; ++t) {
        for (std::size_t r = 0; r < kQuad; ++r) sums[t * kQuad + r] = sum_of(accumulators[t][r]);
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

// Tokens that share a weight: as many as leave registers for it, and for `bf16` for accumulators.
template <Format kFormat>
constexpr int kShared = kFormat == Format::kBf16 ? 2 : 4;

template <Format kFormat>
constexpr DotQuad dot_quad = TokenTiles<kFormat, kShared<kFormat>, DotTokens<kFormat>>::dot_quad;

}  // namespace

const Path kAvx2Path = {
    "avx2",
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
