// Products of weight matrices with one row: outputs[i] = weights[i] row + biases[i]. Weights are of
// the row's type, or q8_0: integers and, apart from them, a scale for each 32.
//
// Bytes: every weight once; the row is read by every warp, from the caches. Bound: weight bytes
// over the memory bandwidth. A warp keeps its loads of all its rows in flight together, and fetches
// the first of them before the kernel that makes the row has ended. Products of 16-bit values are
// exact in float32; sums are float32 in an order that the shape alone decides. Of q8_0, 16 products
// are summed before their scale is applied.

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

/// Sixteen bytes of weights of the row's own type.
template <typename T>
struct Plain {
    static constexpr int kValues = kLanes<T>;
    uint4 loaded;

    /// The chunk that begins with value `at` of a matrix.
    __device__ void load(const void* weights, const std::uint16_t*, std::int64_t at, bool wanted) {
        loaded = load_weights(static_cast<const T*>(weights) + at, wanted);
    }

    __device__ float add(const float (&x)[kValues], float sum) const {
        float w[kValues];
        unpack<T>(loaded, w);
#pragma unroll
        for (int e = 0; e < kValues; ++e) sum = fmaf(w[e], x[e], sum);
        return sum;
    }
};

/// Half a q8_0 block: 16 integers, each plus 128, and their scale.
struct Quantized {
    static constexpr int kValues = 16;
    uint4 loaded;
    std::uint16_t scale;

    __device__ void load(const void* weights, const std::uint16_t* scales, std::int64_t at,
                         bool wanted) {
        loaded = load_weights(static_cast<const std::uint8_t*>(weights) + at, wanted);
        scale = wanted ? __ldg(scales + at / 32) : std::uint16_t{0};
    }

    __device__ float add(const float (&x)[kValues], float sum) const {
        const std::uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
        float dot = 0.0F;
#pragma unroll
        for (int e = 0; e < kValues; ++e) {
            // A byte as the last bits of 2^23 is that float plus the byte.
            const std::uint32_t bits = __byte_perm(words[e / 4], 0x4B000000U, 0x7540U + e % 4);
            dot = fmaf(__uint_as_float(bits) - 8388736.0F, x[e], dot);
        }
        return fmaf(__half2float(__ushort_as_half(scale)), dot, sum);
    }
};

/// kRows rows to a unit, kShare warps to a unit, kAhead chunks of each row in flight per lane.
template <typename T, typename Weights, int kRows, int kShare, int kAhead>
__global__ void __launch_bounds__(32 * kWarps) multiply(const RowProducts job, const Units units) {
    constexpr int kPerChunk = Weights::kValues;
    constexpr int kStep = 32 * kShare;
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
    const void* weights = job.weights[matrix];
    const std::uint16_t* scales = job.scales[matrix];
    const T* row = static_cast<const T*>(job.row);

    float sums[kRows] = {};
    Weights loaded[kRows][kAhead];
    for (int base = begin; base - begin < chunks; base += kStep * kAhead) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const std::int64_t start = std::int64_t{min(row0 + r, rows - 1)} * job.columns;
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
                const int chunk = base + a * kStep;
                loaded[r][a].load(weights, scales, start + chunk * kPerChunk,
                                  chunk < chunks && row0 < rows);
            }
        }
        if (base == begin) wait_for_previous();
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
            const int chunk = base + a * kStep;
            if (chunk >= chunks) break;
            float x[kPerChunk];
#pragma unroll
            for (int part = 0; part < kPerChunk; part += kLanes<T>) {
                unpack<T>(load(row + chunk * kPerChunk + part),
                          *reinterpret_cast<float (*)[kLanes<T>]>(x + part));
            }
#pragma unroll
            for (int r = 0; r < kRows; ++r) sums[r] = loaded[r][a].add(x, sums[r]);
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

template <typename T, typename Weights, int kRows, int kShare, int kAhead>
cudaError_t launch(const RowProducts& job, cudaStream_t stream) {
    Units units{};
    for (int i = 0; i < job.count; ++i)
        units.first[i + 1] = units.first[i] + (job.rows[i] + kRows - 1) / kRows;
    constexpr int kUnits = kWarps / kShare;
    const int blocks = (units.first[job.count] + kUnits - 1) / kUnits;
    return launch_kernel(multiply<T, Weights, kRows, kShare, kAhead>,
                         {dim3(blocks), dim3(32 * kWarps)}, stream, job, units);
}

/// Few rows: many warps to each, so that every multiprocessor has loads in flight. Many rows:
/// several to each warp, so that the row's own loads count less.
template <typename T>
cudaError_t launch_for_rows(const RowProducts& job, cudaStream_t stream) {
    int rows = 0;
    for (int i = 0; i < job.count; ++i) rows += job.rows[i];
    if (job.scales[0] != nullptr) {
        if (rows <= 1024) return launch<T, Quantized, 1, 4, 2>(job, stream);
        if (rows <= 4096) return launch<T, Quantized, 1, 1, 8>(job, stream);
        if (rows <= 16384) return launch<T, Quantized, 2, 1, 4>(job, stream);
        return launch<T, Quantized, 4, 1, 4>(job, stream);
    }
    if (rows <= 1024) return launch<T, Plain<T>, 1, 8, 2>(job, stream);
    if (rows <= 4096) return launch<T, Plain<T>, 1, 1, 16>(job, stream);
    if (rows <= 16384) return launch<T, Plain<T>, 2, 1, 8>(job, stream);
    return launch<T, Plain<T>, 4, 1, 4>(job, stream);
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
