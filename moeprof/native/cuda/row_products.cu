// Products of weight matrices with one row: outputs[i] = weights[i] row + biases[i].
//
// Bytes: every weight once; the row is read by every warp, from the caches. Bound: weight bytes
// over the memory bandwidth. A warp keeps its loads of all its rows in flight together, and fetches
// the first of them before the kernel that makes the row has ended. Products of 16-bit values are
// exact in float32; sums are float32 in an order that the shape alone decides.

#include <cuda_runtime.h>

#include "dense.hpp"
#include "elements.cuh"
#include "launch.cuh"

namespace moeprof::cuda {
namespace {

constexpr int kWarps = 8;

/// Which matrix a unit of consecutive rows belongs to.
struct Units {
    int first[RowProducts::kMost + 1];
};

__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffU, value, offset);
    return value;
}

/// kRows rows to a unit, kShare warps to a unit, kAhead chunks of each row in flight per lane.
template <typename T, int kRows, int kShare, int kAhead>
__global__ void __launch_bounds__(32 * kWarps) multiply(const RowProducts job, const Units units) {
    constexpr int kPerChunk = kLanes<T>;
    constexpr int kStep = 32 * kShare;
    let_next_start();
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int unit = (blockIdx.x * kWarps + warp) / kShare;
    int matrix = 0;
#pragma unroll
    for (int i = 1; i < RowProducts::kMost; ++i) matrix += i < job.count && unit >= units.first[i];
    const int rows = job.rows[matrix];
    const int row0 = (unit - units.first[matrix]) * kRows;
    const int chunks = job.columns / kPerChunk;
    const int begin = warp % kShare * 32 + lane;
    const T* weight = static_cast<const T*>(job.weights[matrix]);
    const T* row = static_cast<const T*>(job.row);

    float sums[kRows] = {};
    uint4 loaded[kRows][kAhead];
    for (int base = begin; base - begin < chunks; base += kStep * kAhead) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const T* values = weight + std::int64_t{min(row0 + r, rows - 1)} * job.columns;
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
                const int chunk = base + a * kStep;
                loaded[r][a] =
                    load_weights(values + chunk * kPerChunk, chunk < chunks && row0 < rows);
            }
        }
        if (base == begin) wait_for_previous();
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
            const int chunk = base + a * kStep;
            if (chunk >= chunks) break;
            float x[kPerChunk];
            unpack<T>(load(row + chunk * kPerChunk), x);
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                float w[kPerChunk];
                unpack<T>(loaded[r][a], w);
#pragma unroll
                for (int e = 0; e < kPerChunk; ++e) sums[r] = fmaf(w[e], x[e], sums[r]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r] = warp_sum(sums[r]);
    if constexpr (kShare > 1) {
        __shared__ float parts[kWarps][kRows];
        if (lane == 0) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) parts[warp][r] = sums[r];
        }
        __syncthreads();
        if (warp % kShare != 0) return;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int part = 1; part < kShare; ++part) sums[r] += parts[warp + part][r];
        }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        if (lane != r || row0 + r >= rows) continue;
        float value = sums[r];
        if (job.biases[matrix] != nullptr)
            value += to_float(static_cast<const T*>(job.biases[matrix])[row0 + r]);
        static_cast<T*>(job.outputs[matrix])[row0 + r] = from_float<T>(value);
    }
}

template <typename T, int kRows, int kShare, int kAhead>
cudaError_t launch(const RowProducts& job, cudaStream_t stream) {
    Units units{};
    for (int i = 0; i < job.count; ++i)
        units.first[i + 1] = units.first[i] + (job.rows[i] + kRows - 1) / kRows;
    constexpr int kUnits = kWarps / kShare;
    const int blocks = (units.first[job.count] + kUnits - 1) / kUnits;
    return launch_overlapped(multiply<T, kRows, kShare, kAhead>, dim3(blocks), dim3(32 * kWarps), 0,
                             stream, job, units);
}

/// Few rows: many warps to each, so that every multiprocessor has loads in flight. Many rows:
/// several to each warp, so that the row's own loads count less.
template <typename T>
cudaError_t launch_for_rows(const RowProducts& job, cudaStream_t stream) {
    int rows = 0;
    for (int i = 0; i < job.count; ++i) rows += job.rows[i];
    if (rows <= 1024) return launch<T, 1, 8, 2>(job, stream);
    if (rows <= 4096) return launch<T, 1, 1, 16>(job, stream);
    if (rows <= 16384) return launch<T, 2, 1, 8>(job, stream);
    return launch<T, 4, 1, 4>(job, stream);
}

}  // namespace

cudaError_t row_products(const RowProducts& job, cudaStream_t stream) {
    switch (job.element) {
        case Element::kFloat32:
            return launch_for_rows<float>(job, stream);
        case Element::kBFloat16:
            return launch_for_rows<__nv_bfloat16>(job, stream);
        default:
            return launch_for_rows<__half>(job, stream);
    }
}

}  // namespace moeprof::cuda
