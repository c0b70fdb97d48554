// NEON with the dot product instructions (Armv8.2 and later): a row's eight blocks, and its eight
// accumulators, are two registers.
//
// Weights: one packed quad; activations: ready rows; see paths.hpp. Four rows are read as one
// stream, once per token (for a second token from the first-level cache). Bound by memory for one
// token, by arithmetic for more.
#include <arm_neon.h>

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "elementwise.hpp"

namespace moeprof {
namespace {

constexpr std::size_t kHalf = kGroup / 2;

struct Halves {
    float32x4_t low;   // lanes 0 to 3
    float32x4_t high;  // lanes 4 to 7
};

// Eight words and eight scales of one row of a full group.
struct Full {
    static constexpr std::size_t lanes = kGroup;
    uint8x16x2_t words(const std::uint8_t* from) const {
        return {{vld1q_u8(from), vld1q_u8(from + 4 * kHalf)}};
    }
    Halves scales(const std::uint8_t* from) const { return widened(from); }
    Halves scales_of(const ActivationGroup& row) const {
        return {vld1q_f32(row.scales), vld1q_f32(row.scales + kHalf)};
    }

    static Halves widened(const std::uint8_t* from) {
        std::uint16_t halves[kGroup];
        std::memcpy(halves, from, sizeof halves);
        return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves))),
                vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + kHalf)))};
    }
};

// The same of the last, smaller group; nothing behind it is read.
struct Tail {
    std::size_t lanes;
    uint8x16x2_t words(const std::uint8_t* from) const {
        std::uint8_t bytes[4 * kGroup] = {};
        std::memcpy(bytes, from, 4 * lanes);
        return Full{}.words(bytes);
    }
    Halves scales(const std::uint8_t* from) const {
        std::uint8_t bytes[kGroup * kScaleBytes] = {};
        std::memcpy(bytes, from, lanes * kScaleBytes);
        return Full::widened(bytes);
    }
    Halves scales_of(const ActivationGroup& row) const {
        float values[kGroup] = {};
        std::memcpy(values, row.scales, lanes * sizeof *values);
        return {vld1q_f32(values), vld1q_f32(values + kHalf)};
    }
};

// Dot products of half a group, four lanes.
struct Dots {
    int32x4_t low;
    int32x4_t high;
};

template <Format kFormat, typename Group>
Dots dots(const Group& group, const std::uint8_t* words, const ActivationGroup& row) {
    const std::size_t stride = kQuad * group.lanes * 4;
    const auto activations = [&row](std::size_t k, std::size_t half) {
        return vld1q_s8(&row.words[k][half * kHalf][0]);
    };
    if (kFormat == Format::kQ8_0) {
        Dots sum{vdupq_n_s32(0), vdupq_n_s32(0)};
        const uint8x16_t offset = vdupq_n_u8(0x80);
        for (std::size_t k = 0; k < 8; ++k) {
            const uint8x16x2_t word = group.words(words + k * stride);
            const int8x16_t low = vreinterpretq_s8_u8(veorq_u8(word.val[0], offset));
            const int8x16_t high = vreinterpretq_s8_u8(veorq_u8(word.val[1], offset));
            sum.low = vdotq_s32(sum.low, low, activations(k, 0));
            sum.high = vdotq_s32(sum.high, high, activations(k, 1));
        }
        return sum;
    }
    Dots sum{vld1q_s32(row.minus_8_sums), vld1q_s32(row.minus_8_sums + kHalf)};
    const uint8x16_t mask = vdupq_n_u8(15);
    for (std::size_t k = 0; k < 4; ++k) {
        const uint8x16x2_t word = group.words(words + k * stride);
        for (std::size_t half = 0; half < 2; ++half) {
            int32x4_t& own = half == 0 ? sum.low : sum.high;
            const int8x16_t first = vreinterpretq_s8_u8(vandq_u8(word.val[half], mask));
            const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(word.val[half], 4));
            own = vdotq_s32(own, first, activations(k, half));
            own = vdotq_s32(own, second, activations(k + 4, half));
        }
    }
    return sum;
}

template <Format kFormat, typename Group>
void add_group(const Group& group, const std::uint8_t* bytes, const ActivationGroup& row,
               Halves* accumulators) {
    Alone{}.prefetch(bytes, kQuad * group.lanes * block_bytes(kFormat));
    const Halves row_scales = group.scales_of(row);
    const std::uint8_t* words = bytes + kQuad * group.lanes * kScaleBytes;
    for (std::size_t r = 0; r < kQuad; ++r) {
        const Dots dot = dots<kFormat>(group, words + r * group.lanes * 4, row);
        const Halves scales = group.scales(bytes + r * group.lanes * kScaleBytes);
        const float32x4_t low = vmulq_f32(scales.low, row_scales.low);
        const float32x4_t high = vmulq_f32(scales.high, row_scales.high);
        accumulators[r].low =
            vaddq_f32(accumulators[r].low, vmulq_f32(vcvtq_f32_s32(dot.low), low));
        accumulators[r].high =
            vaddq_f32(accumulators[r].high, vmulq_f32(vcvtq_f32_s32(dot.high), high));
    }
}

float sum_of(const Halves& accumulators) {
    const float32x4_t fours = vaddq_f32(accumulators.low, accumulators.high);
    const float32x2_t twos = vadd_f32(vget_low_f32(fours), vget_high_f32(fours));
    return vget_lane_f32(twos, 0) + vget_lane_f32(twos, 1);
}

void clear(Halves* accumulators) {
    for (std::size_t r = 0; r < kQuad; ++r) {
        accumulators[r] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
    }
}

template <Format kFormat>
void dot_quad(const std::uint8_t* quad, std::size_t row_size, const std::uint8_t* const* ready,
              std::size_t num_tokens, float* sums) {
    const std::size_t num_blocks = row_size / kBlockSize;
    const std::size_t num_groups = num_blocks / kGroup;
    constexpr std::size_t kGroupBytes = kQuad * kGroup * block_bytes(kFormat);
    for (std::size_t t = 0; t < num_tokens; ++t) {
        const auto* row = reinterpret_cast<const ActivationGroup*>(ready[t]);
        Halves accumulators[kQuad];
        clear(accumulators);
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

// The products of the lower and then the upper values of four words, each added on its own.
float32x4_t add_words(float32x4_t sum, const std::uint8_t* words, float32x4_t first,
                      float32x4_t second) {
    const uint32x4_t word = vreinterpretq_u32_u8(vld1q_u8(words));
    const float32x4_t lower = vreinterpretq_f32_u32(vshlq_n_u32(word, 16));
    const float32x4_t upper = vreinterpretq_f32_u32(vandq_u32(word, vdupq_n_u32(0xFFFF0000u)));
    return vaddq_f32(vaddq_f32(sum, vmulq_f32(lower, first)), vmulq_f32(upper, second));
}

void dot_quad_bf16(const std::uint8_t* quad, std::size_t row_size, const std::uint8_t* const* ready,
                   std::size_t num_tokens, float* sums) {
    for (std::size_t t = 0; t < num_tokens; ++t) {
        const auto* row = reinterpret_cast<const float*>(ready[t]);
        Halves accumulators[kQuad];
        clear(accumulators);
        const std::uint8_t* words = quad;
        for (std::size_t start = 0; start < row_size; start += 2 * kGroup) {
            Alone{}.prefetch(words, kQuad * kGroup * 4);
            const float* values = row + start;
            for (std::size_t r = 0; r < kQuad; ++r, words += 4 * kGroup) {
                accumulators[r].low = add_words(accumulators[r].low, words, vld1q_f32(values),
                                                vld1q_f32(values + kGroup));
                accumulators[r].high =
                    add_words(accumulators[r].high, words + 4 * kHalf, vld1q_f32(values + kHalf),
                              vld1q_f32(values + kGroup + kHalf));
            }
        }
        for (std::size_t r = 0; r < kQuad; ++r) sums[t * kQuad + r] = sum_of(accumulators[r]);
    }
}

}  // namespace

bool has_neon_dots() {
#if defined(__linux__)
    constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP of asm/hwcap.h
    return (getauxval(AT_HWCAP) & kDotProducts) != 0;
#elif defined(__APPLE__)
    int has = 0;
    std::size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
    return false;
#endif
}

const Path kNeonPath = {
    "neon",
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
