#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// Sixteen bytes of float32, bfloat16 or float16 at a time, as float32, and reductions over a warp.

namespace moeprof::cuda {

template <typename T>
inline constexpr int kLanes = 16 / static_cast<int>(sizeof(T));

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

template <typename T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
    return value;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}
template <>
__device__ inline __half from_float<__half>(float value) {
    return __float2half_rn(value);
}

__device__ inline float warp_max(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffU, value, offset));
    return value;
}

__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffU, value, offset);
    return value;
}

/// The values of a 16-byte chunk.
template <typename T>
__device__ void unpack(const uint4& chunk, float (&values)[kLanes<T>]);
template <>
__device__ inline void unpack<float>(const uint4& chunk, float (&values)[4]) {
    values[0] = __uint_as_float(chunk.x);
    values[1] = __uint_as_float(chunk.y);
    values[2] = __uint_as_float(chunk.z);
    values[3] = __uint_as_float(chunk.w);
}
template <>
__device__ inline void unpack<__nv_bfloat16>(const uint4& chunk, float (&values)[8]) {
    const std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        // The upper half of a float32 is a bfloat16.
        values[2 * i] = __uint_as_float(words[i] << 16);
        values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
    }
}
template <>
__device__ inline void unpack<__half>(const uint4& chunk, float (&values)[8]) {
    const std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const __half2 pair = *reinterpret_cast<const __half2*>(&words[i]);
        const float2 both = __half22float2(pair);
        values[2 * i] = both.x;
        values[2 * i + 1] = both.y;
    }
}

// Loads of 16 bytes, or zeros where not wanted. The condition is the load's own predicate: a branch
// around each load would end in a move that waits for it, and loads would go one by one.

/// Weights are read once: they pass the first-level cache by. Nothing may write them meanwhile.
__device__ inline uint4 load_weights(const void* address, bool wanted = true) {
    uint4 chunk;
    asm volatile(
        "{\n"
        ".reg .pred wanted;\n"
        "setp.ne.u32 wanted, %5, 0;\n"
        "mov.u32 %0, 0;\n"
        "mov.u32 %1, 0;\n"
        "mov.u32 %2, 0;\n"
        "mov.u32 %3, 0;\n"
        "@wanted ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
        "}"
        : "=&r"(chunk.x), "=&r"(chunk.y), "=&r"(chunk.z), "=&r"(chunk.w)
        : "l"(address), "r"(static_cast<std::uint32_t>(wanted)));
    return chunk;
}

/// Keys and values are read once too, but the kernel before may just have written them.
__device__ inline uint4 load_once(const void* address, bool wanted) {
    uint4 chunk;
    asm volatile(
        "{\n"
        ".reg .pred wanted;\n"
        "setp.ne.u32 wanted, %5, 0;\n"
        "mov.u32 %0, 0;\n"
        "mov.u32 %1, 0;\n"
        "mov.u32 %2, 0;\n"
        "mov.u32 %3, 0;\n"
        "@wanted ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
        "}"
        : "=&r"(chunk.x), "=&r"(chunk.y), "=&r"(chunk.z), "=&r"(chunk.w)
        : "l"(address), "r"(static_cast<std::uint32_t>(wanted)));
    return chunk;
}

__device__ inline uint4 load(const void* address) {
    return *reinterpret_cast<const uint4*>(address);
}

}  // namespace moeprof::cuda
