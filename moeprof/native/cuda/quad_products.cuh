// Products of two packed quads with activation rows, stage after stage; the order of sums is that
// of reference/dots.py. Lane 8 r + j is row r of both quads and accumulator j.
#pragma once

#include "weight_stream.cuh"

namespace moeprof {
namespace {

// A row's block as it is multiplied.
struct ReadyBlock {
    std::uint32_t words[8];
    int offset;
    float scale;

    // `row`: the group that the block belongs to.
    __device__ __forceinline__ ReadyBlock(SharedAddress row, std::uint32_t block) {
        const uint4 low = load_shared_four(row + block * 16);
        const uint4 high = load_shared_four(row + 128 + block * 16);
        words[0] = low.x, words[1] = low.y, words[2] = low.z, words[3] = low.w;
        words[4] = high.x, words[5] = high.y, words[6] = high.z, words[7] = high.w;
        offset = static_cast<int>(load_shared(row + kReadyOffsets + block * 4));
        scale = float_of(load_shared(row + kReadyScales + block * 4));
    }
};

// A packed block of one row.
template <Format kFormat>
struct PackedBlock {
    static constexpr int kWords = kFormat == Format::kQ8_0 ? 8 : 4;
    std::uint32_t words[kWords];
    float scale;

    // `group`: of four rows with `abreast` blocks each; `place`: row * abreast + block.
    __device__ __forceinline__ PackedBlock(SharedAddress group, std::uint32_t abreast,
                                           std::uint32_t place) {
        const SharedAddress own = group + kQuad * abreast * kScaleBytes + place * 4;
#pragma unroll
        for (int k = 0; k < kWords; ++k) words[k] = load_shared(own + k * kQuad * abreast * 4);
        scale = half_to_float(load_shared_half(group + place * kScaleBytes));
    }

    __device__ __forceinline__ float times(const ReadyBlock& block) const {
        int dot = block.offset;
        if constexpr (kFormat == Format::kQ8_0) {
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                dot = dot_bytes(words[k], static_cast<int>(block.words[k]), dot);
            }
        } else {
            int upper = 0;  // 16 times the sum of the upper halves' products
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                dot = dot_bytes(words[k] & 0x0F0F0F0Fu, static_cast<int>(block.words[k]), dot);
                upper =
                    dot_bytes(words[k] & 0xF0F0F0F0u, static_cast<int>(block.words[k + 4]), upper);
            }
            dot += upper >> 4;
        }
        return static_cast<float>(dot) * (scale * block.scale);
    }
};

// bf16: a run of 16 values of each row, two of them in a lane.
__device__ __forceinline__ float add_pair(float sum, std::uint32_t weights, std::uint32_t values) {
    sum += float_of(weights << 16) * float_of(values << 16);
    return sum + float_of(weights & 0xFFFF0000u) * float_of(values & 0xFFFF0000u);
}

// The last group of a row whose size is no multiple of a group's. `left`: values of it.
template <Format kFormat>
__device__ __noinline__ float add_last_group(float sum, SharedAddress group, std::uint32_t left,
                                             SharedAddress row) {
    const std::uint32_t lane = threadIdx.x % kWarp;
    const std::uint32_t block = lane % kBlocksAbreast;
    if constexpr (kFormat == Format::kBf16) {
#pragma unroll 1
        for (std::uint32_t run = 0; run < left / 16; ++run) {
            sum = add_pair(sum, load_shared(group + run * 128 + lane * 4),
                           load_shared(row + run * 32 + block * 4));
        }
        return sum;
    } else {
        const std::uint32_t abreast = left / kBlock;
        if (block >= abreast) return sum;
        const PackedBlock<kFormat> weights(group, abreast, lane / kBlocksAbreast * abreast + block);
        return sum + weights.times(ReadyBlock(row, block));
    }
}

// Adds a full group of both quads, `first_group` and its like, to the accumulators.
template <Format kFormat, std::uint32_t kTokens>
__device__ __forceinline__ void add_groups(SharedAddress first_group,
                                           const SharedAddress (&rows)[kTokens],
                                           std::uint32_t num_rows, float (&sums)[2][kTokens]) {
    constexpr std::uint32_t kSecond = RingOf<kFormat>::kQuadBytes;
    const std::uint32_t lane = threadIdx.x % kWarp;
    const std::uint32_t block = lane % kBlocksAbreast;
    if constexpr (kFormat == Format::kBf16) {
#pragma unroll
        for (std::uint32_t run = 0; run < 8; ++run) {
            const std::uint32_t first = load_shared(first_group + run * 128 + lane * 4);
            const std::uint32_t second = load_shared(first_group + kSecond + run * 128 + lane * 4);
#pragma unroll
            for (std::uint32_t t = 0; t < kTokens; ++t) {
                if (t >= num_rows) break;
                const std::uint32_t values = load_shared(rows[t] + run * 32 + block * 4);
                sums[0][t] = add_pair(sums[0][t], first, values);
                sums[1][t] = add_pair(sums[1][t], second, values);
            }
        }
    } else {
        const PackedBlock<kFormat> first(first_group, kBlocksAbreast, lane);
        const PackedBlock<kFormat> second(first_group + kSecond, kBlocksAbreast, lane);
#pragma unroll
        for (std::uint32_t t = 0; t < kTokens; ++t) {
            if (t >= num_rows) break;
            const ReadyBlock values(rows[t], block);
            sums[0][t] += first.times(values);
            sums[1][t] += second.times(values);
        }
    }
}

// tree_sum of the accumulators of eight lanes, the same in each.
__device__ __forceinline__ float sum_of_eight(float value) {
    value = value + __shfl_xor_sync(kAllLanes, value, 4);
    value = value + __shfl_xor_sync(kAllLanes, value, 2);
    return value + __shfl_xor_sync(kAllLanes, value, 1);
}

// sums[q][t]: the lane's row of quad q of the stream's next item times rows[t], in all lanes of the
// row.
template <Format kFormat, std::uint32_t kTokens, typename Jobs>
__device__ __forceinline__ void multiply_item(Stream<kFormat, Jobs>& stream, const Jobs& jobs,
                                              std::uint32_t row_size,
                                              SharedAddress (&rows)[kTokens],
                                              std::uint32_t num_rows, float (&sums)[2][kTokens]) {
    using Group = GroupOf<kFormat>;
    using Ring = RingOf<kFormat>;
#pragma unroll
    for (std::uint32_t t = 0; t < kTokens; ++t) sums[0][t] = sums[1][t] = 0.0f;
    std::uint32_t left = row_size;
#pragma unroll 1
    while (left != 0) {
        SharedAddress group = stream.front();
#pragma unroll 1
        for (std::uint32_t g = 0; g < Ring::kGroups && left != 0; ++g) {
            if (left >= Group::kValues) {
                add_groups<kFormat>(group, rows, num_rows, sums);
                left -= Group::kValues;
            } else {
#pragma unroll
                for (std::uint32_t t = 0; t < kTokens; ++t) {
                    if (t >= num_rows) break;
                    sums[0][t] = add_last_group<kFormat>(sums[0][t], group, left, rows[t]);
                    sums[1][t] = add_last_group<kFormat>(sums[1][t], group + Ring::kQuadBytes, left,
                                                         rows[t]);
                }
                left = 0;
            }
            group += Group::kBytes;
#pragma unroll
            for (std::uint32_t t = 0; t < kTokens; ++t) rows[t] += Group::kReadyBytes;
        }
        stream.pop(jobs);
    }
#pragma unroll
    for (std::uint32_t t = 0; t < kTokens; ++t) {
        if (t >= num_rows) break;
        sums[0][t] = sum_of_eight(sums[0][t]);
        sums[1][t] = sum_of_eight(sums[1][t]);
    }
}

}  // namespace
}  // namespace moeprof
