// Activations made ready for the kernels by groups of eight lanes, four values each.
#pragma once

#include <cuda_bf16.h>

#include "device.cuh"
#include "layer.hpp"

namespace moeprof {
namespace {

constexpr std::uint32_t kBlock = 32;         // values of a block, as kBlockSize
constexpr std::uint32_t kBlocksAbreast = 8;  // as kGroup

// How four packed rows are read, and one activation row beside them, group after group: 8 blocks of
// a block format, or 8 runs of 16 values in bf16.
template <Format kFormat>
struct GroupOf {
    static constexpr std::uint32_t kValues = kFormat == Format::kBf16 ? 128 : 256;
    static constexpr std::uint32_t kBytes = kFormat == Format::kQ8_0   ? 1088
                                            : kFormat == Format::kQ4_0 ? 576
                                                                       : 1024;
    // Of the ready row. Block formats: two halves of the blocks' bytes [8 blocks, 16], the scales
    // [8] float32, and [8] int32, what the offset of unsigned weights adds to a block's product,
    // negated. bf16: 8 words for each run, word j with value j below and value j + 8 above.
    static constexpr std::uint32_t kReadyBytes = kFormat == Format::kBf16 ? 256 : 320;
};

constexpr std::uint32_t kReadyScales = 256;
constexpr std::uint32_t kReadyOffsets = 288;

__host__ __device__ constexpr std::uint32_t groups_of(std::uint32_t row_size,
                                                      std::uint32_t group_values) {
    return (row_size + group_values - 1) / group_values;
}

template <Format kFormat>
__host__ __device__ constexpr std::uint32_t ready_row_bytes(std::uint32_t row_size) {
    return groups_of(row_size, GroupOf<kFormat>::kValues) * GroupOf<kFormat>::kReadyBytes;
}

// Values are loaded as they are and widened when they are there, so that a load need not be waited
// for where it begins.
__device__ __forceinline__ std::uint32_t load_bits(const void* values, FloatType type,
                                                   std::size_t at) {
    if (type == FloatType::kFloat32) return static_cast<const std::uint32_t*>(values)[at];
    return static_cast<const std::uint16_t*>(values)[at];
}

__device__ __forceinline__ float widened(std::uint32_t bits, FloatType type) {
    if (type == FloatType::kFloat32) return float_of(bits);
    if (type == FloatType::kBfloat16) return float_of(bits << 16);
    return half_to_float(static_cast<std::uint16_t>(bits));
}

__device__ __forceinline__ float load_value(const void* values, FloatType type, std::size_t at) {
    return widened(load_bits(values, type, at), type);
}

// Values at, .., at + 3; `at` is a multiple of 4. Of 16-bit types the first two words.
__device__ __forceinline__ uint4 load_four_bits(const void* values, FloatType type,
                                                std::size_t at) {
    if (type == FloatType::kFloat32) {
        return *reinterpret_cast<const uint4*>(static_cast<const float*>(values) + at);
    }
    const uint2 words =
        *reinterpret_cast<const uint2*>(static_cast<const std::uint16_t*>(values) + at);
    return make_uint4(words.x, words.y, 0, 0);
}

__device__ __forceinline__ float4 four_widened(const uint4& words, FloatType type) {
    if (type == FloatType::kFloat32) {
        return make_float4(float_of(words.x), float_of(words.y), float_of(words.z),
                           float_of(words.w));
    }
    return make_float4(widened(words.x & 0xFFFFu, type), widened(words.x >> 16, type),
                       widened(words.y & 0xFFFFu, type), widened(words.y >> 16, type));
}

__device__ __forceinline__ float4 load_four(const void* values, FloatType type, std::size_t at) {
    return four_widened(load_four_bits(values, type, at), type);
}

__device__ __forceinline__ void store_value(void* values, FloatType type, std::size_t at,
                                            float value) {
    switch (type) {
        case FloatType::kBfloat16:
            static_cast<__nv_bfloat16*>(values)[at] = __float2bfloat16_rn(value);
            return;
        case FloatType::kFloat16:
            static_cast<__half*>(values)[at] = __float2half_rn(value);
            return;
        default:
            static_cast<float*>(values)[at] = value;
    }
}

__device__ __forceinline__ std::uint32_t magnitude_bits(float value) {
    return bits_of(value) & 0x7FFFFFFFu;
}

// Not inlined, like make_ready: a layer's code is fetched anew on every multiprocessor, and the
// time of a decode is of that order.
__device__ __noinline__ float gated(GatedUnit unit, float gate, float up) {
    switch (unit.kind) {
        case UnitKind::kGeluTanh:
            return gelu_tanh(gate) * up;
        case UnitKind::kClamped:
            return clamped(gate, up, unit.alpha, unit.limit);
        case UnitKind::kClampedSilu:
            return clamped_silu(gate, up, unit.limit);
        default:
            return silu(gate) * up;
    }
}

// The largest magnitude, as bits, of the values of eight lanes.
__device__ __forceinline__ std::uint32_t largest_of_eight(std::uint32_t bits) {
#pragma unroll
    for (unsigned far = 1; far < 8; far *= 2) {
        bits = max(bits, __shfl_xor_sync(kAllLanes, bits, far));
    }
    return bits;
}

// value / divisor, rounded as a division rounds, for quotients from 0.25 up and operands whose size
// is far from the ends of float32. The reciprocal is rounded to nearest; after the first correction
// the quotient is off by less than its last place, and then a second one rounds it (Markstein,
// "Computation of elementary functions on the IBM RISC System/6000 processor", 1990, theorem 8).
__device__ __forceinline__ float quotient(float value, float divisor, float reciprocal) {
    float q = __fmul_rn(value, reciprocal);
    q = __fmaf_rn(__fmaf_rn(-q, divisor, value), reciprocal, q);
    return __fmaf_rn(__fmaf_rn(-q, divisor, value), reciprocal, q);
}

struct QuantizedFour {
    int quants[4];
    float scale;
};

// For blocks of zeros and of numbers near the ends of float32.
__device__ __noinline__ QuantizedFour quantize_extreme(float4 values, std::uint32_t largest) {
    const float scale = activation_scale(largest);
    return {{activation_quant(values.x, scale), activation_quant(values.y, scale),
             activation_quant(values.z, scale), activation_quant(values.w, scale)},
            scale};
}

// `largest`: the bits of the largest magnitude of the block. Has the bits of activation_scale and
// activation_quant; quotients below 0.25 are rounded to 0 whatever their last places.
__device__ __forceinline__ QuantizedFour quantize_four(const float4& values,
                                                       std::uint32_t largest) {
    constexpr std::uint32_t kSmallest = 34u << 23;  // 2^-93
    constexpr std::uint32_t kLargest = 232u << 23;  // 2^105
    if (largest < kSmallest || largest > kLargest) return quantize_extreme(values, largest);
    const float scale = quotient(float_of(largest), 127.0f, 1.0f / 127.0f);
    const float reciprocal = __frcp_rn(scale);
    const float given[4] = {values.x, values.y, values.z, values.w};
    QuantizedFour four;
    four.scale = scale;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float rounded = quotient(given[i], scale, reciprocal) + kRounding;
        four.quants[i] = static_cast<int>(bits_of(rounded) - kRoundingBits);
    }
    return four;
}

// A block quantised by eight lanes, lane `part` with its values 4 part to 4 part + 3; the
// definition is quantize_activations in reference/dots.py.
struct QuantizedPart {
    std::uint32_t word;  // the lane's four bytes
    int sum;             // of the whole block, as is the scale
    float scale;
    bool is_finite;
};

__device__ __forceinline__ QuantizedPart quantize_part(const float4& values) {
    std::uint32_t largest = magnitude_bits(values.x);
    largest = max(largest, magnitude_bits(values.y));
    largest = max(largest, magnitude_bits(values.z));
    largest = largest_of_eight(max(largest, magnitude_bits(values.w)));
    const QuantizedFour four = quantize_four(values, largest);
    QuantizedPart part;
    part.scale = four.scale;
    part.is_finite = largest < kInfinityBits;
    part.word = __byte_perm(__byte_perm(four.quants[0], four.quants[1], 0x0040),
                            __byte_perm(four.quants[2], four.quants[3], 0x0040), 0x5410);
    part.sum = __dp4a(static_cast<int>(part.word), 0x01010101, 0);
#pragma unroll
    for (unsigned far = 1; far < 8; far *= 2) {
        part.sum += __shfl_xor_sync(kAllLanes, part.sum, far);
    }
    return part;
}

// Four words of a run of 16 values in bf16, for the lanes whose `part` has bit 1 clear; lane
// `part` of eight holds values 4 part to 4 part + 3 of two runs.
struct RoundedPart {
    uint4 words;
    bool is_finite;
};

__device__ __forceinline__ RoundedPart round_part(const float4& values) {
    const float rounded[4] = {round_to_bf16(values.x), round_to_bf16(values.y),
                              round_to_bf16(values.z), round_to_bf16(values.w)};
    const float given[4] = {values.x, values.y, values.z, values.w};
    std::uint32_t words[4];
    RoundedPart part{{}, true};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        // Before rounding too: a NaN's bits could wrap to a number's.
        part.is_finite &= magnitude_bits(given[i]) < kInfinityBits;
        part.is_finite &= magnitude_bits(rounded[i]) < kInfinityBits;
        const std::uint32_t above = __shfl_xor_sync(kAllLanes, bits_of(rounded[i]), 2);
        words[i] = bits_of(rounded[i]) >> 16 | (above & 0xFFFF0000u);
    }
    part.words = make_uint4(words[0], words[1], words[2], words[3]);
    return part;
}

// Writes block `block` of a ready row in the order that decode reads; false if a value is not
// finite. All lanes of a warp take part; those with `writes` false only lend their hands.
template <Format kFormat>
__device__ __noinline__ bool make_ready(float4 values, unsigned part, std::uint8_t* row,
                                        std::uint32_t block, bool writes) {
    if constexpr (kFormat == Format::kBf16) {
        const RoundedPart rounded = round_part(values);
        if (writes && (part & 2) == 0) {
            std::uint8_t* run = row + (block * 2 + (part >> 2)) * 32;
            *reinterpret_cast<uint4*>(run + (part & 1) * 16) = rounded.words;
        }
        return rounded.is_finite || !writes;
    } else {
        const QuantizedPart quantized = quantize_part(values);
        std::uint8_t* group = row + block / kBlocksAbreast * GroupOf<kFormat>::kReadyBytes;
        const std::uint32_t lane = block % kBlocksAbreast;
        if (writes) {
            std::uint8_t* word = group + (part >> 2) * 128 + lane * 16 + (part & 3) * 4;
            *reinterpret_cast<std::uint32_t*>(word) = quantized.word;
            if (part == 0) {
                constexpr int kOffset = kFormat == Format::kQ8_0 ? 128 : 8;
                *reinterpret_cast<float*>(group + kReadyScales + lane * 4) = quantized.scale;
                *reinterpret_cast<int*>(group + kReadyOffsets + lane * 4) =
                    -kOffset * quantized.sum;
            }
        }
        return quantized.is_finite || !writes;
    }
}

}  // namespace
}  // namespace moeprof
