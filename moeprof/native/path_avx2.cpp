// AVX2 with F16C: a row's eight blocks, and its eight accumulators, are one register.
//
// Weights: one packed quad; activations: ready rows; see paths.hpp. Four rows are read as one
// stream, once per token (for a second token from the first-level cache). Bound by memory for one
// token, by arithmetic for more.
#include <immintrin.h>

#include "elementwise.hpp"

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
};

template <Format kFormat, typename Group>
__m256i dots(const Group& group, const std::uint8_t* words, const ActivationGroup& row) {
    const std::size_t stride = kQuad * group.lanes * 4;
    const __m256i ones = _mm256_set1_epi16(1);
    if (kFormat == Format::kQ8_0) {
        __m256i sum = _mm256_setzero_si256();
        for (std::size_t k = 0; k < 8; ++k) {
            const __m256i offset = _mm256_set1_epi8(static_cast<char>(0x80));
            const __m256i weight = _mm256_xor_si256(group.words(words + k * stride), offset);
            // |w| <= 128 times |x| <= 127, twice: below 2^15, so nothing saturates.
            const __m256i products = _mm256_maddubs_epi16(
                _mm256_abs_epi8(weight), _mm256_sign_epi8(load(row.words[k]), weight));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(products, ones));
        }
        return sum;
    }
    __m256i sum = _mm256_setzero_si256();  // 16 products of at most 15 * 127: below 2^15
    const __m256i low_mask = _mm256_set1_epi8(15);
    for (std::size_t k = 0; k < 4; ++k) {
        const __m256i word = group.words(words + k * stride);
        const __m256i low = _mm256_and_si256(word, low_mask);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(word, 4), low_mask);
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(low, load(row.words[k])));
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(high, load(row.words[k + 4])));
    }
    return _mm256_add_epi32(_mm256_madd_epi16(sum, ones), load(row.minus_8_sums));
}

template <Format kFormat, typename Group>
void add_group(const Group& group, const std::uint8_t* bytes, const ActivationGroup& row,
               __m256* accumulators) {
    Alone{}.prefetch(bytes, kQuad * group.lanes * block_bytes(kFormat));
    const __m256 row_scales = _mm256_load_ps(row.scales);
    const std::uint8_t* words = bytes + kQuad * group.lanes * kScaleBytes;
    for (std::size_t r = 0; r < kQuad; ++r) {
        const __m256 dot =
            _mm256_cvtepi32_ps(dots<kFormat>(group, words + r * group.lanes * 4, row));
        const __m256 scales =
            _mm256_mul_ps(group.scales(bytes + r * group.lanes * kScaleBytes), row_scales);
        accumulators[r] = _mm256_add_ps(accumulators[r], _mm256_mul_ps(dot, scales));
    }
}

float sum_of(__m256 accumulators) {
    const __m128 fours =
        _mm_add_ps(_mm256_castps256_ps128(accumulators), _mm256_extractf128_ps(accumulators, 1));
    const __m128 twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
    return _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)));
}

template <Format kFormat>
void dot_quad(const std::uint8_t* quad, std::size_t row_size, const std::uint8_t* const* ready,
              std::size_t num_tokens, float* sums) {
    const std::size_t num_blocks = row_size / kBlockSize;
    const std::size_t num_groups = num_blocks / kGroup;
    constexpr std::size_t kGroupBytes = kQuad * kGroup * block_bytes(kFormat);
    for (std::size_t t = 0; t < num_tokens; ++t) {
        const auto* row = reinterpret_cast<const ActivationGroup*>(ready[t]);
        __m256 accumulators[kQuad] = {};
        for (std::size_t g = 0; g < num_groups; ++g) {
            add_group<kFormat>(Full{}, quad + g * kGroupBytes, row[g], accumulators);
        }
        if (num_blocks % kGroup) {
            add_group<kFormat>(Tail{num_blocks % kGroup}, quad + num_groups * kGroupBytes,
                               row[num_groups], accumulators);
        }
        for (std::size_t r = 0; r < kQuad; ++r) sums[t * kQuad + r] = sum_of(accumulators[r]);
    }
}

void dot_quad_bf16(const std::uint8_t* quad, std::size_t row_size, const std::uint8_t* const* ready,
                   std::size_t num_tokens, float* sums) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
    for (std::size_t t = 0; t < num_tokens; ++t) {
        const auto* row = reinterpret_cast<const float*>(ready[t]);
        __m256 accumulators[kQuad] = {};
        const std::uint8_t* words = quad;
        for (std::size_t start = 0; start < row_size; start += 2 * kGroup) {
            Alone{}.prefetch(words, kQuad * kGroup * 4);
            const __m256 first = _mm256_load_ps(row + start);
            const __m256 second = _mm256_load_ps(row + start + kGroup);
            for (std::size_t r = 0; r < kQuad; ++r, words += 4 * kGroup) {
                const __m256i word = load(words);
                const __m256 lower = _mm256_castsi256_ps(_mm256_slli_epi32(word, 16));
                const __m256 upper = _mm256_castsi256_ps(_mm256_and_si256(word, high));
                accumulators[r] = _mm256_add_ps(accumulators[r], _mm256_mul_ps(lower, first));
                accumulators[r] = _mm256_add_ps(accumulators[r], _mm256_mul_ps(upper, second));
            }
        }
        for (std::size_t r = 0; r < kQuad; ++r) sums[t * kQuad + r] = sum_of(accumulators[r]);
    }
}

}  // namespace

const Path kAvx2Path = {
    "avx2",
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
