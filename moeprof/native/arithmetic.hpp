// Scalar arithmetic that every device shares; the definitions are in reference/units.py, dots.py
// and formats.py.
//
// Compile without contraction (-ffp-contract=off, nvcc -fmad=false) and with subnormal numbers
// kept. Internal linkage on purpose: each instruction set compiles its own copy, and the linker
// must not choose one of them for all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MOEPROF_SHARED __host__ __device__ __forceinline__
#else
#define MOEPROF_SHARED inline __attribute__((always_inline))
#endif

namespace moeprof {

enum class UnitKind { kSilu, kGeluTanh, kClamped, kClampedSilu };

// How numbers are given and taken; all arithmetic is in float32.
enum class FloatType { kFloat32, kBfloat16, kFloat16 };

constexpr std::size_t float_bytes(FloatType type) { return type == FloatType::kFloat32 ? 4 : 2; }

struct GatedUnit {
    UnitKind kind = UnitKind::kSilu;
    float alpha = 0.0f;  // of kClamped
    float limit = 0.0f;  // of kClamped and kClampedSilu
};

namespace {

MOEPROF_SHARED std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

MOEPROF_SHARED float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// 1.5 * 2^23: adding it rounds to an integer, half to even, which then stands in the low bits.
constexpr float kRounding = 12582912.0f;
constexpr std::uint32_t kRoundingBits = 0x4B400000u;
constexpr std::uint32_t kInfinityBits = 0x7F800000u;

MOEPROF_SHARED float exponential(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504088896341f + kRounding;
    const float exponent = shifted - kRounding;
    const float r = (x - exponent * 0.693359375f) - exponent * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const float y = (p * (r * r) + r) + 1.0f;
    return y * float_of((bits_of(shifted) << 23) + 0x3F800000u);
}

MOEPROF_SHARED float silu(float x) { return x / (1.0f + exponential(-x)); }

MOEPROF_SHARED float gelu_tanh(float x) {
    const float inner = x * (1.5957691216057308f + 0.07135481282553616f * (x * x));
    return x / (1.0f + exponential(-inner));
}

MOEPROF_SHARED float clamped(float gate, float up, float alpha, float limit) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up;
    up = up < -limit ? -limit : up;
    return (up + 1.0f) * (gate / (1.0f + exponential(-(gate * alpha))));
}

MOEPROF_SHARED float clamped_silu(float gate, float up, float limit) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up;
    up = up < -limit ? -limit : up;
    return silu(gate) * up;
}

// Activation quantisation: the scale of a block from the bits of its largest magnitude, and one of
// its values as an integer.
MOEPROF_SHARED float activation_scale(std::uint32_t largest) { return float_of(largest) / 127.0f; }

MOEPROF_SHARED std::int32_t activation_quant(float value, float scale) {
    const float rounded = value / (scale == 0.0f ? 1.0f : scale) + kRounding;
    std::int32_t quant = static_cast<std::int32_t>(bits_of(rounded) - kRoundingBits);
    quant = quant > 127 ? 127 : quant;
    quant = quant < -127 ? -127 : quant;
    return scale == 0.0f ? 0 : quant;
}

MOEPROF_SHARED float round_to_bf16(float value) {
    const std::uint32_t bits = bits_of(value);
    return float_of((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u);
}

MOEPROF_SHARED float half_value(std::uint16_t half) {
    const std::uint32_t magnitude = half & 0x7FFFu;
    // 2^112 moves the exponent from float16's bias to float32's; subnormal halves included.
    std::uint32_t bits = bits_of(float_of(magnitude << 13) * 5.192296858534828e33f);
    bits |= magnitude >= 0x7C00u ? kInfinityBits : 0u;
    return float_of(bits | (half & 0x8000u) << 16);
}

// Nearest float16, half to even; a NaN stays one.
MOEPROF_SHARED std::uint16_t half_of(float value) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
    // In [0.5, 1) a float's last place is 2^-24, the unit of subnormal halves.
    const std::uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
    const std::uint32_t normal =
        (magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    std::uint32_t half = magnitude < 0x38800000u ? small : normal;
    half = magnitude >= 0x477FF000u ? 0x7C00u : half;
    half = magnitude > kInfinityBits ? 0x7E00u : half;
    return static_cast<std::uint16_t>(half | (bits >> 16 & 0x8000u));
}

MOEPROF_SHARED float bf16_value(std::uint16_t upper) {
    return float_of(static_cast<std::uint32_t>(upper) << 16);
}

// Nearest bf16, half to even; a NaN stays one.
MOEPROF_SHARED std::uint16_t bf16_of(float value) {
    const std::uint32_t bits = bits_of(value);
    const bool is_nan = (bits & 0x7FFFFFFFu) > kInfinityBits;
    return static_cast<std::uint16_t>((is_nan ? bits | 0x400000u : bits_of(round_to_bf16(value))) >>
                                      16);
}

// The sum of eight accumulators in the one order there is.
MOEPROF_SHARED float tree_sum(const float* a) {
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

}  // namespace
}  // namespace moeprof
