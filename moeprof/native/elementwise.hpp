// Operations on 32 values in plain loops; every path compiles them for its own instruction set.
#pragma once

#include "paths.hpp"

namespace moeprof {
namespace {

// Which memory is asked for while packed bytes are used. Alone: what lies so far ahead that it
// arrives in time, beyond the reach of the processor's own prefetch, which stops at the end of a
// page; measured with benchmarks/cpu_decode.py.
struct Alone {
    static constexpr std::size_t kDistance = 4096;
    void prefetch(const std::uint8_t* bytes, std::size_t size) const {
        for (std::size_t line = 0; line < size; line += kLine) {
            __builtin_prefetch(bytes + kDistance + line);
        }
    }
};

// The same bytes are used several times: each time asks for its share of what follows them.
struct Sharing {
    std::size_t distance;
    std::size_t first;  // in bytes, as step
    std::size_t step;
    void prefetch(const std::uint8_t* bytes, std::size_t size) const {
        for (std::size_t line = first; line < size; line += step) {
            __builtin_prefetch(bytes + distance + line);
        }
    }
};

// Activation quantisation; the definition is quantize_activations in reference/dots.py.
struct QuantizedBlock {
    std::int8_t quants[kBlockSize];
    float scale;
    std::int32_t sum;
};

inline bool quantize(const float* values, QuantizedBlock* block) {
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < kBlockSize; ++i) {
        const std::uint32_t magnitude = bits_of(values[i]) & 0x7FFFFFFFu;
        largest = magnitude > largest ? magnitude : largest;
    }
    if (largest >= kInfinityBits) return false;
    const float scale = activation_scale(largest);
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < kBlockSize; ++i) {
        const std::int32_t quant = activation_quant(values[i], scale);
        block->quants[i] = static_cast<std::int8_t>(quant);
        sum += quant;
    }
    block->scale = scale;
    block->sum = sum;
    return true;
}

inline bool quantize_block(const float* values, std::size_t block, std::uint8_t* ready) {
    auto& group = reinterpret_cast<ActivationGroup*>(ready)[block / kGroup];
    const std::size_t lane = block % kGroup;
    QuantizedBlock quantized;
    if (!quantize(values, &quantized)) return false;
    for (std::size_t k = 0; k < 8; ++k) {
        std::memcpy(group.words[k][lane], quantized.quants + 4 * k, 4);
    }
    group.scales[lane] = quantized.scale;
    group.minus_8_sums[lane] = -8 * quantized.sum;
    return true;
}

inline bool round_block(const float* values, std::size_t block, std::uint8_t* ready) {
    float* row = reinterpret_cast<float*>(ready) + block * kBlockSize;
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < kBlockSize; ++i) {
        // Before rounding: a NaN's bits could wrap to a number's.
        const std::uint32_t before = bits_of(values[i]) & 0x7FFFFFFFu;
        row[i] = round_to_bf16(values[i]);
        const std::uint32_t after = bits_of(row[i]) & 0x7FFFFFFFu;
        const std::uint32_t magnitude = before > after ? before : after;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest < kInfinityBits;
}

inline std::uint64_t xor_words(const std::uint8_t* bytes, std::size_t size) {
    constexpr std::size_t kVectorBytes = 32;
    constexpr std::size_t kVectors = 8;
    typedef std::uint64_t Vector __attribute__((vector_size(kVectorBytes)));
    Vector sums[kVectors] = {};
    Vector last[kVectors] = {};
    const std::uint8_t* const end = bytes + size;
    for (; end - bytes >= static_cast<std::ptrdiff_t>(sizeof last); bytes += sizeof last) {
        Alone{}.prefetch(bytes, sizeof last);
        for (std::size_t i = 0; i < kVectors; ++i) {
            Vector vector;
            std::memcpy(&vector, bytes + i * kVectorBytes, kVectorBytes);
            sums[i] ^= vector;
        }
    }
    std::memcpy(last, bytes, static_cast<std::size_t>(end - bytes));
    Vector all = {};
    for (std::size_t i = 0; i < kVectors; ++i) all ^= sums[i] ^ last[i];
    return (all[0] ^ all[1]) ^ (all[2] ^ all[3]);
}

inline void unit_block(const GatedUnit& unit, const float* gate, const float* up, float* values) {
    switch (unit.kind) {
        case UnitKind::kSilu:
            for (std::size_t i = 0; i < kBlockSize; ++i) values[i] = silu(gate[i]) * up[i];
            return;
        case UnitKind::kGeluTanh:
            for (std::size_t i = 0; i < kBlockSize; ++i) values[i] = gelu_tanh(gate[i]) * up[i];
            return;
        case UnitKind::kClamped:
            for (std::size_t i = 0; i < kBlockSize; ++i) {
                values[i] = clamped(gate[i], up[i], unit.alpha, unit.limit);
            }
            return;
        case UnitKind::kClampedSilu:
            for (std::size_t i = 0; i < kBlockSize; ++i) {
                values[i] = clamped_silu(gate[i], up[i], unit.limit);
            }
            return;
    }
}

using DotQuad = void (*)(const std::uint8_t* quad, std::size_t row_size,
                         const std::uint8_t* const* ready, std::size_t num_tokens, float* sums);

// ManyTokens::project by dots of one quad after the other, each read once and then kept in the
// first-level cache while the tokens pass.
template <Format kFormat, DotQuad kDotQuad>
void project_quads(const std::uint8_t* quads, std::size_t num_matrices, std::size_t row_size,
                   const std::uint8_t* ready, std::size_t num_tokens,
                   float (*sums)[kTile][kBlockSize], std::uint8_t*) {
    const std::uint8_t* rows[kTile];
    float quad_sums[kTile * kQuad];
    for (std::size_t t = 0; t < num_tokens; ++t) {
        rows[t] = ready + t * ready_bytes(kFormat, row_size);
    }
    for (std::size_t at = 0; at < kBlockSize; at += kQuad) {
        for (std::size_t m = 0; m < num_matrices; ++m, quads += quad_bytes(kFormat, row_size)) {
            kDotQuad(quads, row_size, rows, num_tokens, quad_sums);
            for (std::size_t t = 0; t < num_tokens; ++t) {
                std::memcpy(sums[m][t] + at, quad_sums + t * kQuad, kQuad * sizeof(float));
            }
        }
    }
}

using ReadyBlock = bool (*)(const float* values, std::size_t block, std::uint8_t* ready);

template <ReadyBlock kReadyBlock>
bool ready_many(const float* values, std::size_t block, std::size_t, std::uint8_t* ready) {
    return kReadyBlock(values, block, ready);
}

inline std::size_t no_scratch(Format, std::size_t) { return 0; }

inline void widen(FloatType type, const void* from, std::size_t size, float* to) {
    const auto* halves = static_cast<const std::uint16_t*>(from);
    switch (type) {
        case FloatType::kFloat32:
            std::memcpy(to, from, size * sizeof(float));
            return;
        case FloatType::kBfloat16:
            for (std::size_t i = 0; i < size; ++i) to[i] = bf16_value(halves[i]);
            return;
        case FloatType::kFloat16:
            for (std::size_t i = 0; i < size; ++i) to[i] = half_value(halves[i]);
            return;
    }
}

inline void narrow(FloatType type, const float* from, std::size_t size, void* to) {
    auto* halves = static_cast<std::uint16_t*>(to);
    switch (type) {
        case FloatType::kFloat32:
            std::memcpy(to, from, size * sizeof(float));
            return;
        case FloatType::kBfloat16:
            for (std::size_t i = 0; i < size; ++i) halves[i] = bf16_of(from[i]);
            return;
        case FloatType::kFloat16:
            for (std::size_t i = 0; i < size; ++i) halves[i] = half_of(from[i]);
            return;
    }
}

// Quantisation of weights; the definition is quantize in reference/formats.py.

constexpr float kLargestScale = 65519.99f;  // the next values round to infinity in float16

inline float magnitude_of(float value) { return float_of(bits_of(value) & 0x7FFFFFFFu); }

inline bool all_finite(const float* values) {
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < kBlockSize; ++i) {
        const std::uint32_t magnitude = bits_of(values[i]) & 0x7FFFFFFFu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest < kInfinityBits;
}

inline float inverse_of(float scale) {
    const float inverse = 1.0f / scale;
    return (bits_of(inverse) & 0x7FFFFFFFu) >= kInfinityBits ? 0.0f : inverse;
}

inline WeightFault store_scale(float scale, std::uint8_t* stored) {
    const std::uint16_t half = half_of(scale);
    std::memcpy(stored, &half, sizeof half);
    return magnitude_of(scale) > kLargestScale ? WeightFault::kScaleOverflow : WeightFault::kNone;
}

inline WeightFault quantize_q8_0(const float* values, std::uint8_t* stored) {
    if (!all_finite(values)) return WeightFault::kNotFinite;
    float largest = 0.0f;
    for (std::size_t i = 0; i < kBlockSize; ++i) {
        const float magnitude = magnitude_of(values[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    const float scale = largest / 127.0f;
    const float inverse = inverse_of(scale);
    for (std::size_t i = 0; i < kBlockSize; ++i) {
        const float scaled = values[i] * inverse;
        const float magnitude = magnitude_of(scaled);
        std::int32_t quant = static_cast<std::int32_t>(magnitude);
        quant += magnitude - static_cast<float>(quant) >= 0.5f ? 1 : 0;
        stored[kScaleBytes + i] = static_cast<std::uint8_t>(scaled < 0.0f ? -quant : quant);
    }
    return store_scale(scale, stored);
}

inline WeightFault quantize_q4_0(const float* values, std::uint8_t* stored) {
    if (!all_finite(values)) return WeightFault::kNotFinite;
    float largest = values[0];  // of largest magnitude, the first of equals
    for (std::size_t i = 1; i < kBlockSize; ++i) {
        largest = magnitude_of(values[i]) > magnitude_of(largest) ? values[i] : largest;
    }
    const float scale = largest / -8.0f;
    const float inverse = inverse_of(scale);
    std::int32_t nibbles[kBlockSize];
    for (std::size_t i = 0; i < kBlockSize; ++i) {
        const std::int32_t nibble = static_cast<std::int32_t>(values[i] * inverse + 8.5f);
        nibbles[i] = nibble > 15 ? 15 : nibble;
    }
    for (std::size_t i = 0; i < kBlockSize / 2; ++i) {
        stored[kScaleBytes + i] =
            static_cast<std::uint8_t>(nibbles[i] | nibbles[i + kBlockSize / 2] << 4);
    }
    return store_scale(scale, stored);
}

inline WeightFault quantize_bf16(const float* values, std::uint8_t* stored) {
    if (!all_finite(values)) return WeightFault::kNotFinite;
    float rounded[kBlockSize];
    for (std::size_t i = 0; i < kBlockSize; ++i) {
        const std::uint16_t half = bf16_of(values[i]);
        rounded[i] = bf16_value(half);
        std::memcpy(stored + 2 * i, &half, sizeof half);
    }
    return all_finite(rounded) ? WeightFault::kNone : WeightFault::kValueOverflow;
}

}  // namespace
}  // namespace moeprof
