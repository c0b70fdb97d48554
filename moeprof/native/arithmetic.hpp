// Scalar arithmetic that every device shares; the definitions are in reference/units.py, dots.py
// and formats.py.
//
// Compile without contraction (-ffp-contract=off, nvcc -fmad=false) and with subnormal numbers
// kept. Internal linkage on purpose: each instruction set compiles its own copy, and the linker
// must not choose one of them for all.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MOEPROF_SHARED __host__ __device__ __forceinline__
#else
#define MOEPROF_SHARED inline __attribute__((always_inline))
#endif

namespace moeprof {

enum class UnitKind { kSilu, kGeluTanh, kClamped, kClampedSilu };

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

MOEPROF_SHARED float round_to_bf16(float value) {
    const std::uint32_t bits = bits_of(value);
    return float_of((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u);
}

MOEPROF_SHARED float half_value(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
    const std::uint32_t magnitude = half & 0x7FFFu;
    if (magnitude >= 0x7C00u) return float_of(sign | kInfinityBits | ((magnitude & 0x3FFu) << 13));
    if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + (112u << 23)));
    const float subnormal = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -subnormal : subnormal;
}

// The sum of eight accumulators in the one order there is.
MOEPROF_SHARED float tree_sum(const float* a) {
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

}  // namespace
}  // namespace moeprof
