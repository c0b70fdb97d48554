// A plain router for one token: logits, scores, the largest of them, their weights, in one kernel.
//
// Bytes: the weight once, E times K elements; everything else is small. Bound: the latency of the
// weights, of meeting at the ticket and of top_k rounds of one warp; the last block to finish its
// logit does the choosing, so the result does not depend on which block that is.

#include <cuda_runtime.h>

#include "dense.hpp"
#include "elements.cuh"
#include "launch.cuh"

namespace moeprof::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerStep = 8;

/// Eight consecutive values; `kConstant` where no kernel writes them.
template <typename T, bool kConstant>
__device__ inline void load_eight(const T* address, float (&values)[kPerStep]) {
    constexpr int kPerChunk = kLanes<T>;
#pragma unroll
    for (int i = 0; i < kPerStep / kPerChunk; ++i) {
        float part[kPerChunk];
        unpack<T>(kConstant ? load_weights(address + i * kPerChunk) : load(address + i * kPerChunk),
                  part);
#pragma unroll
        for (int e = 0; e < kPerChunk; ++e) values[i * kPerChunk + e] = part[e];
    }
}

__device__ inline void store(void* base, Element element, int at, float value) {
    switch (element) {
        case Element::kFloat32:
            static_cast<float*>(base)[at] = value;
            return;
        case Element::kBFloat16:
            static_cast<__nv_bfloat16*>(base)[at] = from_float<__nv_bfloat16>(value);
            return;
        default:
            static_cast<__half*>(base)[at] = from_float<__half>(value);
    }
}

/// What another block stored.
__device__ inline float fetch(const void* base, Element element, int at) {
    if (element == Element::kFloat32) return __ldcg(static_cast<const float*>(base) + at);
    const unsigned short bits = __ldcg(static_cast<const unsigned short*>(base) + at);
    return element == Element::kBFloat16 ? to_float(__ushort_as_bfloat16(bits))
                                         : to_float(__ushort_as_half(bits));
}

/// Unsigned integers in the order of the floats; 0 is below all of them.
__device__ inline unsigned ordered(float value) {
    const unsigned bits = __float_as_uint(value);
    return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

/// One warp chooses; a lane holds experts lane, lane + 32, ... below 32 * kPer.
template <int kPer>
__device__ void choose(const Route& job) {
    const int lane = threadIdx.x;
    float scores[kPer];
    unsigned keys[kPer];
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
        const int expert = lane + 32 * i;
        scores[i] = expert < job.experts ? fetch(job.logits, job.logit_element, expert) : -INFINITY;
        largest = fmaxf(largest, scores[i]);
    }
    if (job.score == Score::kSoftmax) {
        largest = warp_max(largest);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kPer; ++i) {
            scores[i] = expf(scores[i] - largest);
            sum += scores[i];
        }
        sum = warp_sum(sum);
#pragma unroll
        for (int i = 0; i < kPer; ++i) scores[i] /= sum;
    } else {
#pragma unroll
        for (int i = 0; i < kPer; ++i) scores[i] = 1 / (1 + expf(-scores[i]));
    }
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
        const int expert = lane + 32 * i;
        const bool exists = expert < job.experts;
        const float correction = exists && job.correction != nullptr ? job.correction[expert] : 0;
        keys[i] = exists ? ordered(scores[i] + correction) : 0;
    }
    float total = 0;
    float own = 0;  // the score of the choice that this lane writes
    int own_id = 0;
    for (int k = 0; k < job.top_k; ++k) {
        unsigned best = 0;
        int place = 0;
#pragma unroll
        for (int i = 0; i < kPer; ++i) {
            if (keys[i] > best) {
                best = keys[i];
                place = i;
            }
        }
        const unsigned top = __reduce_max_sync(0xffffffffU, best);
        const unsigned id = best == top ? static_cast<unsigned>(lane + 32 * place) : ~0U;
        const int winner = static_cast<int>(__reduce_min_sync(0xffffffffU, id));
        float score = 0;
#pragma unroll
        for (int i = 0; i < kPer; ++i) {
            if (i == winner / 32) {
                score = scores[i];
                if (lane == winner % 32) keys[i] = 0;
            }
        }
        score = __shfl_sync(0xffffffffU, score, winner % 32);
        total += score;
        if (lane == k) {
            own = score;
            own_id = winner;
        }
    }
    if (lane >= job.top_k) return;
    if (job.normalized) own /= total + kTiny;
    job.ids[lane] = own_id;
    store(job.weights, job.output_element, lane, own * job.scaling);
}

/// A block for each expert.
template <typename Row, typename Weight>
__global__ void __launch_bounds__(kThreads) route_token(const Route job) {
    __shared__ float parts[kThreads / 32];
    __shared__ bool is_last;
    const int expert = blockIdx.x;
    const Weight* weight =
        static_cast<const Weight*>(job.weight) + std::int64_t{expert} * job.columns;
    const Row* row = static_cast<const Row*>(job.row);
    float sum = 0;
    float w[kPerStep] = {};
    const int first = threadIdx.x * kPerStep;
    if (first < job.columns) load_eight<Weight, true>(weight + first, w);
    wait_for_previous();
    for (int at = first; at < job.columns; at += kThreads * kPerStep) {
        if (at != first) load_eight<Weight, true>(weight + at, w);
        float x[kPerStep];
        load_eight<Row, false>(row + at, x);
#pragma unroll
        for (int e = 0; e < kPerStep; ++e) sum = fmaf(w[e], x[e], sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        sum = 0;
#pragma unroll
        for (int part = 0; part < kThreads / 32; ++part) sum += parts[part];
        if (job.bias != nullptr) sum += to_float(static_cast<const Weight*>(job.bias)[expert]);
        store(job.logits, job.logit_element, expert, sum);
        __threadfence();
        is_last = atomicAdd(job.ticket, 1U) == gridDim.x - 1;
        if (is_last) *job.ticket = 0;
        __threadfence();
    }
    __syncthreads();
    if (!is_last || threadIdx.x >= 32) return;
    if (job.experts <= 128) {
        choose<4>(job);
    } else if (job.experts <= 256) {
        choose<8>(job);
    } else {
        choose<kMostRouted / 32>(job);
    }
}

template <typename Row>
cudaError_t launch(const Route& job, cudaStream_t stream) {
    const LaunchShape shape{dim3(job.experts), dim3(kThreads)};
    switch (job.weight_element) {
        case Element::kFloat32:
            return launch_kernel(route_token<Row, float>, shape, stream, job);
        case Element::kBFloat16:
            return launch_kernel(route_token<Row, __nv_bfloat16>, shape, stream, job);
        default:
            return launch_kernel(route_token<Row, __half>, shape, stream, job);
    }
}

}  // namespace

cudaError_t route(const Route& job, cudaStream_t stream) {
    switch (job.row_element) {
        case Element::kFloat32:
            return launch<float>(job, stream);
        case Element::kBFloat16:
            return launch<__nv_bfloat16>(job, stream);
        default:
            return launch<__half>(job, stream);
    }
}

}  // namespace moeprof::cuda
