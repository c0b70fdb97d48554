// Words and scales of packed block formats as AVX-512 registers.
#pragma once

#include <immintrin.h>

#include "ready_rows.hpp"

namespace moeprof {
namespace {

constexpr std::size_t kPairs = 2;  // of rows in a quad

// Words and scales of two neighbouring rows of a full group.
struct Full {
    static constexpr std::size_t lanes = kGroup;
    __m512i words(const std::uint8_t* from) const { return _mm512_loadu_si512(from); }
    __m512 scales(const std::uint8_t* from) const {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    __m512 scales_of(const ActivationGroup& row) const {
        return _mm512_broadcast_f32x8(_mm256_load_ps(row.scales));
    }
};

// The same of the last, smaller group; nothing behind it is read.
struct Tail {
    std::size_t lanes;
    __mmask8 mask() const { return static_cast<__mmask8>((1u << lanes) - 1u); }
    __m512i words(const std::uint8_t* from) const {
        const __m256i even = _mm256_maskz_loadu_epi32(mask(), from);
        const __m256i odd = _mm256_maskz_loadu_epi32(mask(), from + lanes * 4);
        return _mm512_inserti64x4(_mm512_zextsi256_si512(even), odd, 1);
    }
    __m512 scales(const std::uint8_t* from) const {
        const __m128i even = _mm_maskz_loadu_epi16(mask(), from);
        const __m128i odd = _mm_maskz_loadu_epi16(mask(), from + lanes * kScaleBytes);
        return _mm512_cvtph_ps(_mm256_set_m128i(odd, even));
    }
    __m512 scales_of(const ActivationGroup& row) const {
        return _mm512_broadcast_f32x8(_mm256_maskz_load_ps(mask(), row.scales));
    }
};

}  // namespace
}  // namespace moeprof
