#pragma once

// What a block of decode attention keeps in shared memory, and the join of the parts of a context.
//
// Bytes: Dv + 2 float32 of each part of each head, read by the one block that finishes last. Bound:
// what a single multiprocessor can have in flight, so it asks for many parts at once.

#include <cuda_runtime.h>

#include "dense.hpp"
#include "elements.cuh"

namespace moeprof::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 64;
constexpr int kMostSplits = 64;
constexpr int kTilesAtOnce = 32;  // whose masks are looked at together
constexpr int kFewParts = 8;      // that are joined with fewer loads in flight
constexpr float kLog2E = 1.4426950408889634F;

template <int kHeads>
struct Shared {
    // Rows of scores start on 16 bytes and in different banks.
    static constexpr int kPitch = kHeads == 1 ? 1 : kHeads + 4;
    alignas(16) float scores[kTile * kPitch];
    alignas(16) float query[kHeads * kMostHeadSize];
    float largest[kHeads];
    float sum[kHeads];
    float rescale[kHeads];
    unsigned seen[2 * kTilesAtOnce];
    float share[kHeads * kMostSplits];
    int active[kMostSplits];
    int num_active;
    bool is_last;
};

/// Four columns of a head, twice per thread; kAhead parts of both are in flight together, since one
/// multiprocessor alone waits for them.
template <typename T, int kHeads, int kAhead>
__device__ void join_columns(const DecodeAttention& job, const Shared<kHeads>& shared, int batch,
                             int head0, int num_heads) {
    constexpr int kItems = 2;
    const int quarters = job.value_size / 4;
    const int num_items = num_heads * quarters;
    for (int first = threadIdx.x; first < num_items; first += kItems * kThreads) {
        int head[kItems];
        int column[kItems];
        float4 total[kItems];
#pragma unroll
        for (int u = 0; u < kItems; ++u) {
            const int item = min(first + u * kThreads, num_items - 1);
            head[u] = item / quarters;
            column[u] = 4 * (item - head[u] * quarters);
            total[u] = make_float4(0, 0, 0, 0);
        }
        for (int begin = 0; begin < shared.num_active; begin += kAhead) {
            float4 loaded[kItems][kAhead];
#pragma unroll
            for (int i = 0; i < kAhead; ++i) {
                const int split = shared.active[min(begin + i, shared.num_active - 1)];
#pragma unroll
                for (int u = 0; u < kItems; ++u) {
                    const std::int64_t row =
                        (std::int64_t{batch} * job.heads + head0 + head[u]) * job.splits + split;
                    loaded[u][i] = __ldcg(reinterpret_cast<const float4*>(
                        job.partial + row * job.value_size + column[u]));
                }
            }
#pragma unroll
            for (int i = 0; i < kAhead; ++i) {
                if (begin + i >= shared.num_active) break;
                const int split = shared.active[begin + i];
#pragma unroll
                for (int u = 0; u < kItems; ++u) {
                    const float share = shared.share[head[u] * kMostSplits + split];
                    total[u].x = fmaf(share, loaded[u][i].x, total[u].x);
                    total[u].y = fmaf(share, loaded[u][i].y, total[u].y);
                    total[u].z = fmaf(share, loaded[u][i].z, total[u].z);
                    total[u].w = fmaf(share, loaded[u][i].w, total[u].w);
                }
            }
        }
#pragma unroll
        for (int u = 0; u < kItems; ++u) {
            if (first + u * kThreads >= num_items) break;
            const std::int64_t row = std::int64_t{batch} * job.heads + head0 + head[u];
            T* output = static_cast<T*>(job.output) + row * job.value_size + column[u];
            output[0] = from_float<T>(total[u].x);
            output[1] = from_float<T>(total[u].y);
            output[2] = from_float<T>(total[u].z);
            output[3] = from_float<T>(total[u].w);
        }
    }
}

/// The last part joins all parts of its heads, in ascending order.
template <typename T, int kHeads>
__device__ void join_parts(const DecodeAttention& job, Shared<kHeads>& shared, int batch, int head0,
                           int num_heads) {
    const int lane = threadIdx.x % 32;
    const float2* state = reinterpret_cast<const float2*>(
        job.partial + std::int64_t{job.batch} * job.heads * job.splits * job.value_size);
    for (int g = threadIdx.x / 32; g < num_heads; g += kWarps) {
        const std::int64_t at = (std::int64_t{batch} * job.heads + head0 + g) * job.splits;
        float2 own[kMostSplits / 32];
        float largest = -INFINITY;
#pragma unroll
        for (int i = 0; i < kMostSplits / 32; ++i) {
            const int split = lane + 32 * i;
            own[i] = split < job.splits ? __ldcg(&state[at + split]) : make_float2(-INFINITY, 0);
            largest = fmaxf(largest, own[i].x);
        }
        largest = warp_max(largest);
        float sink = -INFINITY;
        if (job.sinks != nullptr)
            sink = to_float(static_cast<const T*>(job.sinks)[head0 + g]) * kLog2E;
        largest = fmaxf(largest, sink);
        const bool any = largest > -INFINITY;
        float sum = 0;
        float scale[kMostSplits / 32];
#pragma unroll
        for (int i = 0; i < kMostSplits / 32; ++i) {
            scale[i] = any ? exp2f(own[i].x - largest) : 0;
            sum += own[i].y * scale[i];
        }
        sum = warp_sum(sum);
        if (any) sum += exp2f(sink - largest);
#pragma unroll
        for (int i = 0; i < kMostSplits / 32; ++i) {
            const int split = lane + 32 * i;
            if (split < job.splits)
                shared.share[g * kMostSplits + split] = sum > 0 ? scale[i] / sum : 0;
        }
    }
    if (threadIdx.x < 32) {
        // A part that saw something did so for all heads; the others wrote no values.
        const std::int64_t at = (std::int64_t{batch} * job.heads + head0) * job.splits;
        int before = 0;
#pragma unroll
        for (int i = 0; i < kMostSplits / 32; ++i) {
            const int split = lane + 32 * i;
            const bool saw = split < job.splits && __ldcg(&state[at + split]).y > 0;
            const unsigned all = __ballot_sync(0xffffffffU, saw);
            if (saw) shared.active[before + __popc(all & ((1U << lane) - 1))] = split;
            before += __popc(all);
        }
        if (lane == 0) shared.num_active = before;
    }
    __syncthreads();
    if (shared.num_active <= kFewParts) {
        join_columns<T, kHeads, kFewParts>(job, shared, batch, head0, num_heads);
    } else {
        join_columns<T, kHeads, 2 * kFewParts>(job, shared, batch, head0, num_heads);
    }
}

}  // namespace
}  // namespace moeprof::cuda
