// Rows of activations made ready in shared memory: those given, and what lies between the
// projections, which blocks pass on to each other.
//
// Between: a word is the bits of a float32, all inverted, so that zero memory is empty: a NaN of
// those bits is passed on as another one. Who needs a word waits until it is not empty; no flag, no
// fence and no barrier of blocks stands between. Two buffers take turns, and each launch empties
// the one that the last launch filled.
#pragma once

#include "decode_call.cuh"

namespace moeprof {
namespace {

__device__ __forceinline__ std::uint32_t passed_word(float value) {
    const std::uint32_t word = ~bits_of(value);
    return word == 0 ? ~0x7FC00000u : word;
}

// From the beginning of a buffer to its word `at`.
__device__ __forceinline__ std::uint32_t passed_place(std::uint32_t at) {
    return at + (at & ~(kBlock - 1));
}

__device__ __forceinline__ std::uint32_t* passed_buffer(const DecodeCall& call,
                                                        std::uint32_t launch) {
    return call.between + launch % 2 * kBlock;
}

// Empties its block's part of a buffer's first `num_words`.
__device__ inline void empty(std::uint32_t* buffer, std::uint32_t num_words) {
#pragma unroll 1
    for (std::uint32_t at = 4 * (blockIdx.x * blockDim.x + threadIdx.x); at < num_words;
         at += 4 * gridDim.x * blockDim.x) {
        *reinterpret_cast<uint4*>(buffer + passed_place(at)) = make_uint4(0, 0, 0, 0);
    }
}

struct GivenRows {
    const LayerInput& input;
    std::uint32_t row_size;

    using Loaded = float4;
    __device__ Loaded load(std::uint32_t row, std::uint32_t at) const {
        return load_four(input.hidden, input.hidden_type, std::size_t{row} * row_size + at);
    }
    __device__ float4 settle(const Loaded& loaded, std::uint32_t, std::uint32_t) const {
        return loaded;
    }
};

struct PassedRows {
    const std::uint32_t* buffer;
    std::uint32_t row_size;

    using Loaded = uint4;
    __device__ Loaded load(std::uint32_t row, std::uint32_t at) const {
        return load_four_passed(buffer + passed_place(row * row_size + at));
    }
    __device__ float4 settle(Loaded loaded, std::uint32_t row, std::uint32_t at) const {
        while (loaded.x == 0 || loaded.y == 0 || loaded.z == 0 || loaded.w == 0) {
            loaded = load(row, at);
        }
        return make_float4(float_of(~loaded.x), float_of(~loaded.y), float_of(~loaded.z),
                           float_of(~loaded.w));
    }
};

// Makes rows ready, eight lanes for each block; false in threads that saw a value that is not
// finite.
template <Format kFormat, typename Rows>
__device__ bool make_rows_ready(const Rows& rows, std::uint32_t num_rows, const Projection& shape,
                                std::uint8_t* ready) {
    constexpr std::uint32_t kAhead = 4;  // loads under way
    const std::uint32_t blocks = shape.row_size / kBlock;
    const std::uint32_t num_blocks = num_rows * blocks;
    const std::uint32_t abreast = blockDim.x / 8;
    const std::uint32_t part = threadIdx.x % 8;
    bool is_finite = true;
#pragma unroll 1
    for (std::uint32_t start = threadIdx.x / 8; start - threadIdx.x % kWarp / 8 < num_blocks;
         start += kAhead * abreast) {
        typename Rows::Loaded loaded[kAhead] = {};
#pragma unroll
        for (std::uint32_t i = 0; i < kAhead; ++i) {
            const std::uint32_t at = start + i * abreast;
            if (at >= num_blocks) continue;
            const std::uint32_t row = shape.blocks.divide(at);
            loaded[i] = rows.load(row, (at - row * blocks) * kBlock + part * 4);
        }
#pragma unroll
        for (std::uint32_t i = 0; i < kAhead; ++i) {
            const std::uint32_t at = start + i * abreast;
            if (at - threadIdx.x % kWarp / 8 >= num_blocks) break;  // the same for the whole warp
            const bool writes = at < num_blocks;
            const std::uint32_t row = writes ? shape.blocks.divide(at) : 0;
            const std::uint32_t block = at - row * blocks;
            float4 values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (writes) values = rows.settle(loaded[i], row, block * kBlock + part * 4);
            __syncwarp();
            is_finite &= make_ready<kFormat>(values, part,
                                             ready + row * ready_row_bytes<kFormat>(shape.row_size),
                                             block, writes);
        }
    }
    return is_finite;
}

}  // namespace
}  // namespace moeprof
