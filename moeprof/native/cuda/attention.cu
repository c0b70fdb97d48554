// Decode attention over a grouped static cache, read as it lies: no head is expanded.
//
// Bytes: for each position seen Dk + Dv elements of each key-value head once (twice where more than
// eight query heads share it), one byte of mask for each position of the cache; q, the partial sums
// of the parts and the output are small. Bound: those bytes over the memory bandwidth; for a short
// context the latency of four dependent trips to memory (mask, keys, partial sums, output).
//
// The context is cut into tiles of 64 positions; part s of S takes tiles s, s + S, ... and skips
// those that the mask hides altogether. A part keeps a running maximum, sum and weighted values
// (the online softmax of Milakov and Gimelshein 2018); the last part to finish joins all in
// ascending order, so equal inputs give equal bits.

#include <cuda_runtime.h>

#include <algorithm>

#include "attention_join.cuh"
#include "launch.cuh"

namespace moeprof::cuda {
namespace {

constexpr int kRowLanes = 8;    // that share a key row
constexpr int kRowsAtOnce = 4;  // key rows of a lane whose loads are in flight together
constexpr int kPrefetched = 8;  // value rows of a thread loaded before the scores are known

/// Query heads of one block; more that share a key-value head take more blocks.
int heads_of_block(int heads, int groups) {
    const int shared = heads / groups;
    return shared == 1 ? 1 : shared <= 4 ? 4 : 8;
}

int blocks_of_group(int heads, int groups) {
    const int own = heads_of_block(heads, groups);
    return (heads / groups + own - 1) / own;
}

/// Sums over the eight lanes of a row; the lane is left with the head `head_of_lane` alone, in
/// element 0. Each exchange halves the heads that a lane still carries.
template <int kHeads>
__device__ inline void sum_over_row(float (&sums)[kHeads], int lane) {
    int carried = kHeads;
#pragma unroll
    for (int offset = kRowLanes / 2; offset > 0; offset /= 2) {
        if (carried > 1) {
            carried /= 2;
            const bool upper = (lane & offset) != 0;
#pragma unroll
            for (int i = 0; i < kHeads / 2; ++i) {
                if (i < carried) {
                    const float sent = upper ? sums[i] : sums[i + carried];
                    const float kept = upper ? sums[i + carried] : sums[i];
                    sums[i] = kept + __shfl_xor_sync(0xffffffffU, sent, offset);
                }
            }
        } else {
            sums[0] += __shfl_xor_sync(0xffffffffU, sums[0], offset);
        }
    }
}

template <int kHeads>
__device__ inline int head_of_lane(int lane) {
    return (lane % kRowLanes) / (kRowLanes / kHeads);
}

/// Scores of one tile, [kTile, kHeads] in base 2; hidden positions and absent heads get -inf.
template <typename T, int kHeads, int kChunks>
__device__ void score_tile(const DecodeAttention& job, Shared<kHeads>& shared, const T* keys,
                           int first, const unsigned* seen, int num_heads) {
    constexpr int kPerChunk = kLanes<T>;
    const int lane = threadIdx.x % 32;
    const int row_lane = lane % kRowLanes;
    const int chunks = job.key_size / kPerChunk;
    const int row0 = (threadIdx.x / 32) * (kTile / kWarps) + lane / kRowLanes;
    uint4 loaded[kRowsAtOnce][kChunks];
    bool visible[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
        const int row = row0 + r * (32 / kRowLanes);
        visible[r] = (seen[row / 32] >> (row % 32)) & 1U;
        const T* key = keys + (first + row) * job.key_strides[2];
#pragma unroll
        for (int j = 0; j < kChunks; ++j) {
            const int chunk = row_lane + kRowLanes * j;
            loaded[r][j] = load_once(key + chunk * kPerChunk, visible[r] && chunk < chunks);
        }
    }
    float sums[kRowsAtOnce][kHeads] = {};
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
        const int chunk = row_lane + kRowLanes * j;
        if (chunk >= chunks) continue;
        float key[kRowsAtOnce][kPerChunk];
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) unpack<T>(loaded[r][j], key[r]);
#pragma unroll
        for (int g = 0; g < kHeads; ++g) {
#pragma unroll
            for (int part = 0; part < kPerChunk / 4; ++part) {
                // Quarters of a chunk lie apart, so that the eight lanes of a row hit all banks.
                const float4 q = *reinterpret_cast<const float4*>(
                    &shared.query[4 * ((part * kHeads + g) * chunks + chunk)]);
#pragma unroll
                for (int r = 0; r < kRowsAtOnce; ++r) {
                    sums[r][g] = fmaf(key[r][4 * part], q.x, sums[r][g]);
                    sums[r][g] = fmaf(key[r][4 * part + 1], q.y, sums[r][g]);
                    sums[r][g] = fmaf(key[r][4 * part + 2], q.z, sums[r][g]);
                    sums[r][g] = fmaf(key[r][4 * part + 3], q.w, sums[r][g]);
                }
            }
        }
    }
    const int head = head_of_lane<kHeads>(lane);
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
        sum_over_row<kHeads>(sums[r], lane);
        float score = sums[r][0] * job.scaling;
        if (job.softcap > 0) score = job.softcap * tanhf(score / job.softcap);
        if (row_lane % (kRowLanes / kHeads) == 0) {
            const int row = row0 + r * (32 / kRowLanes);
            shared.scores[row * Shared<kHeads>::kPitch + head] =
                visible[r] && head < num_heads ? score * kLog2E : -INFINITY;
        }
    }
}

/// Turns the scores of a tile into weights and moves the running maximum and sum of each head on.
template <int kHeads>
__device__ void weigh_tile(Shared<kHeads>& shared) {
    constexpr int kPitch = Shared<kHeads>::kPitch;
    const int lane = threadIdx.x % 32;
    for (int g = threadIdx.x / 32; g < kHeads; g += kWarps) {
        float* low = &shared.scores[lane * kPitch + g];
        float* high = &shared.scores[(lane + 32) * kPitch + g];
        const float before = shared.largest[g];
        const float largest = fmaxf(before, warp_max(fmaxf(*low, *high)));
        // A head of padding has seen nothing yet and never will.
        const bool any = largest > -INFINITY;
        const float a = any ? exp2f(*low - largest) : 0;
        const float b = any ? exp2f(*high - largest) : 0;
        const float sum = warp_sum(a + b);
        *low = a;
        *high = b;
        __syncwarp();
        if (lane == 0) {
            const float rescale = any ? exp2f(before - largest) : 0;
            shared.rescale[g] = rescale;
            shared.sum[g] = shared.sum[g] * rescale + sum;
            shared.largest[g] = largest;
        }
    }
}

/// Grid [splits, groups * blocks of a group, batch]; kChunks chunks of a key row per lane.
template <typename T, int kHeads, int kChunks>
__global__ void __launch_bounds__(kThreads)
    attend(const DecodeAttention job, int blocks_per_group) {
    constexpr int kPerChunk = kLanes<T>;
    constexpr int kPitch = Shared<kHeads>::kPitch;
    __shared__ Shared<kHeads> shared;
    extern __shared__ __align__(16) float sums_of_rows[];  // [row sets, kHeads, value_size]
    wait_for_previous();

    const int split = blockIdx.x;
    const int batch = blockIdx.z;
    const int group = blockIdx.y / blocks_per_group;
    const int shared_by = job.heads / job.groups;
    const int offset = (blockIdx.y % blocks_per_group) * kHeads;
    const int head0 = group * shared_by + offset;
    const int num_heads = min(kHeads, shared_by - offset);
    const T* keys =
        static_cast<const T*>(job.keys) + batch * job.key_strides[0] + group * job.key_strides[1];
    const T* values = static_cast<const T*>(job.values) + batch * job.value_strides[0] +
                      group * job.value_strides[1];

    const int value_chunks = job.value_size / kPerChunk;
    const int row_sets = kThreads / value_chunks;
    const int row_set = threadIdx.x / value_chunks;
    const int value_chunk = threadIdx.x % value_chunks;
    const bool sums_values = row_set < row_sets;
    const T* own_values = values + value_chunk * kPerChunk;

    const int chunks = job.key_size / kPerChunk;
    const T* query = static_cast<const T*>(job.query) + batch * job.query_strides[0] +
                     head0 * job.query_strides[1];
    for (int at = threadIdx.x; at < kHeads * chunks; at += kThreads) {
        const int g = at / chunks;
        const int chunk = at - g * chunks;
        float values[kPerChunk] = {};
        if (g < num_heads)
            unpack<T>(load(query + g * job.query_strides[1] + chunk * kPerChunk), values);
#pragma unroll
        for (int part = 0; part < kPerChunk / 4; ++part)
            *reinterpret_cast<float4*>(&shared.query[4 * ((part * kHeads + g) * chunks + chunk)]) =
                make_float4(values[4 * part], values[4 * part + 1], values[4 * part + 2],
                            values[4 * part + 3]);
    }
    if (threadIdx.x < kHeads) {
        shared.largest[threadIdx.x] = -INFINITY;
        shared.sum[threadIdx.x] = 0;
    }

    float sums[kHeads][kPerChunk] = {};
    bool saw_any = false;
    const int tiles = (job.length + kTile - 1) / kTile;
    const int own_tiles = split < tiles ? (tiles - split + job.splits - 1) / job.splits : 0;
    for (int round = 0; round < own_tiles; round += kTilesAtOnce) {
        const int count = min(kTilesAtOnce, own_tiles - round);
        __syncthreads();
#pragma unroll 4
        for (int half = threadIdx.x / 32; half < 2 * count; half += kWarps) {
            const int tile = split + (round + half / 2) * job.splits;
            const int position = tile * kTile + half % 2 * 32 + static_cast<int>(threadIdx.x % 32);
            bool visible = position < job.length;
            if (visible && job.mask != nullptr)
                visible = job.mask[batch * job.mask_stride + position];
            const unsigned bits = __ballot_sync(0xffffffffU, visible);
            if (threadIdx.x % 32 == 0) shared.seen[half] = bits;
        }
        __syncthreads();
        for (int i = 0; i < count; ++i) {
            const unsigned* seen = &shared.seen[2 * i];
            if ((seen[0] | seen[1]) == 0) continue;
            saw_any = true;
            const int first = (split + (round + i) * job.splits) * kTile;
            uint4 ahead[kPrefetched];
#pragma unroll
            for (int r = 0; r < kPrefetched; ++r) {
                const int row = row_set + r * row_sets;
                const bool wanted =
                    sums_values && row < kTile && ((seen[row / 32] >> (row % 32)) & 1U);
                ahead[r] = load_once(own_values + (first + row) * job.value_strides[2], wanted);
            }
            score_tile<T, kHeads, kChunks>(job, shared, keys, first, seen, num_heads);
            __syncthreads();
            weigh_tile<kHeads>(shared);
            __syncthreads();
            if (sums_values) {
#pragma unroll
                for (int g = 0; g < kHeads; ++g) {
                    const float rescale = shared.rescale[g];
#pragma unroll
                    for (int e = 0; e < kPerChunk; ++e) sums[g][e] *= rescale;
                }
                for (int begin = row_set; begin < kTile; begin += kPrefetched * row_sets) {
                    if (begin != row_set) {
#pragma unroll
                        for (int r = 0; r < kPrefetched; ++r) {
                            const int row = begin + r * row_sets;
                            const bool wanted =
                                row < kTile && ((seen[row / 32] >> (row % 32)) & 1U);
                            ahead[r] = load_once(own_values + (first + row) * job.value_strides[2],
                                                 wanted);
                        }
                    }
#pragma unroll
                    for (int r = 0; r < kPrefetched; ++r) {
                        const int row = begin + r * row_sets;
                        if (row >= kTile) break;
                        float value[kPerChunk];
                        unpack<T>(ahead[r], value);
#pragma unroll
                        for (int g = 0; g < kHeads; ++g) {
                            const float weight = shared.scores[row * kPitch + g];
#pragma unroll
                            for (int e = 0; e < kPerChunk; ++e)
                                sums[g][e] = fmaf(weight, value[e], sums[g][e]);
                        }
                    }
                }
            }
            __syncthreads();
        }
    }

    if (saw_any) {
        if (sums_values) {
#pragma unroll
            for (int g = 0; g < kHeads; ++g) {
                float4* row = reinterpret_cast<float4*>(
                    &sums_of_rows[(row_set * kHeads + g) * job.value_size +
                                  value_chunk * kPerChunk]);
#pragma unroll
                for (int e = 0; e < kPerChunk / 4; ++e)
                    row[e] = make_float4(sums[g][4 * e], sums[g][4 * e + 1], sums[g][4 * e + 2],
                                         sums[g][4 * e + 3]);
            }
        }
        __syncthreads();
        const int quarters = job.value_size / 4;
        const float4* rows = reinterpret_cast<const float4*>(sums_of_rows);
        for (int at = threadIdx.x; at < num_heads * quarters; at += kThreads) {
            float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 4
            for (int set = 0; set < row_sets; ++set) {
                const float4 row = rows[set * kHeads * quarters + at];
                total.x += row.x;
                total.y += row.y;
                total.z += row.z;
                total.w += row.w;
            }
            const int g = at / quarters;
            const std::int64_t part =
                (std::int64_t{batch} * job.heads + head0 + g) * job.splits + split;
            reinterpret_cast<float4*>(job.partial)[part * quarters + at - g * quarters] = total;
        }
    }
    if (threadIdx.x < num_heads) {
        float2* state = reinterpret_cast<float2*>(
            job.partial + std::int64_t{job.batch} * job.heads * job.splits * job.value_size);
        const std::int64_t part =
            (std::int64_t{batch} * job.heads + head0 + threadIdx.x) * job.splits + split;
        state[part] = make_float2(shared.largest[threadIdx.x], shared.sum[threadIdx.x]);
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned* ticket = &job.tickets[batch * gridDim.y + blockIdx.y];
        shared.is_last = atomicAdd(ticket, 1U) == gridDim.x - 1;
        if (shared.is_last) *ticket = 0;
        __threadfence();
    }
    __syncthreads();
    if (shared.is_last) join_parts<T, kHeads>(job, shared, batch, head0, num_heads);
}

template <typename T, int kHeads, int kChunks>
cudaError_t launch(const DecodeAttention& job, cudaStream_t stream) {
    const int blocks = blocks_of_group(job.heads, job.groups);
    const dim3 grid(job.splits, job.groups * blocks, job.batch);
    const int row_sets = kThreads / (job.value_size / kLanes<T>);
    const std::size_t bytes = sizeof(float) * row_sets * kHeads * job.value_size;
    static_assert(sizeof(float) * kThreads * kLanes<T> * kHeads + sizeof(Shared<kHeads>) <=
                  48 * 1024);
    return launch_kernel(attend<T, kHeads, kChunks>, {grid, dim3(kThreads), bytes}, stream, job,
                         blocks);
}

template <typename T, int kHeads>
cudaError_t launch_for_size(const DecodeAttention& job, cudaStream_t stream) {
    constexpr int kStep = sizeof(T) == 4 ? 2 : 1;
    switch ((job.key_size + 63) / 64) {
        case 1:
            return launch<T, kHeads, kStep>(job, stream);
        case 2:
            return launch<T, kHeads, 2 * kStep>(job, stream);
        case 3:
            return launch<T, kHeads, 3 * kStep>(job, stream);
        default:
            return launch<T, kHeads, 4 * kStep>(job, stream);
    }
}

template <typename T>
cudaError_t launch_for_heads(const DecodeAttention& job, cudaStream_t stream) {
    switch (heads_of_block(job.heads, job.groups)) {
        case 1:
            return launch_for_size<T, 1>(job, stream);
        case 4:
            return launch_for_size<T, 4>(job, stream);
        default:
            return launch_for_size<T, 8>(job, stream);
    }
}

}  // namespace

int attention_splits(int batch, int heads, int groups, int length) {
    constexpr int kWantedBlocks = 264;  // two for each multiprocessor of the largest devices
    const int others = batch * groups * blocks_of_group(heads, groups);
    const int tiles = (length + kTile - 1) / kTile;
    return std::clamp(kWantedBlocks / others, 1, std::clamp(tiles, 1, kMostSplits));
}

std::int64_t attention_partial_floats(int batch, int heads, int value_size, int splits) {
    return std::int64_t{batch} * heads * splits * (value_size + 2);
}

int attention_tickets(int batch, int heads, int groups) {
    return batch * groups * blocks_of_group(heads, groups);
}

cudaError_t decode_attention(const DecodeAttention& job, cudaStream_t stream) {
    switch (job.element) {
        case Element::kFloat32:
            return launch_for_heads<float>(job, stream);
        case Element::kBFloat16:
            return launch_for_heads<__nv_bfloat16>(job, stream);
        default:
            return launch_for_heads<__half>(job, stream);
    }
}

}  // namespace moeprof::cuda
