// Operations on 32 values in plain loops; every path compiles them for its own instruction set.
#pragma once

#include "paths.hpp"

namespace moeprof {
namespace {

// How far ahead of its use memory is asked for: beyond the reach of the processor's own prefetch,
// which stops at the end of a page. Measured with benchmarks/cpu_decode.py.
constexpr std::size_t kPrefetchDistance = 4096;

inline void prefetch(const std::uint8_t* bytes, std::size_t size) {
    for (std::size_t line = 0; line < size; line += kLine) {
        __builtin_prefetch(bytes + kPrefetchDistance + line);
    }
}

// Activation quantisation; the definition is quantize_activations in reference/dots.py.
inline bool quantize_block(const float* values, std::size_t block, std::uint8_t* ready) {
    auto& group = reinterpret_cast<ActivationGroup*>(ready)[block / kGroup];
    const std::size_t lane = block % kGroup;
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < kBlockSize; ++i) {
        const std::uint32_t magnitude = bits_of(values[i]) & 0x7FFFFFFFu;
        largest = magnitude > largest ? magnitude : largest;
    }
    if (largest >= kInfinityBits) return false;
    const float scale = float_of(largest) / 127.0f;
    const float divisor = scale == 0.0f ? 1.0f : scale;
    std::int8_t quants[kBlockSize];
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < kBlockSize; ++i) {
        const float rounded = values[i] / divisor + kRounding;
        std::int32_t quant = static_cast<std::int32_t>(bits_of(rounded) - kRoundingBits);
        quant = quant > 127 ? 127 : quant;
        quant = quant < -127 ? -127 : quant;
        quant = scale == 0.0f ? 0 : quant;
        quants[i] = static_cast<std::int8_t>(quant);
        sum += quant;
    }
    for (std::size_t k = 0; k < 8; ++k) std::memcpy(group.words[k][lane], quants + 4 * k, 4);
    group.scales[lane] = scale;
    group.minus_8_sums[lane] = -8 * sum;
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
        prefetch(bytes, sizeof last);
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

}  // namespace
}  // namespace moeprof
