// A plain read of device memory, against which kernels are measured.
#include <cuda_runtime.h>

#include "device.cuh"
#include "layer.hpp"

namespace moeprof {
namespace {

constexpr unsigned kThreads = 512;
constexpr int kAhead = 8;  // loads under way for each thread

__global__ void __launch_bounds__(kThreads)
    read_kernel(const ulonglong2* words, std::size_t size, unsigned long long* result) {
    unsigned long long sum = 0;
    const std::size_t step = std::size_t{gridDim.x} * kThreads;
    std::size_t at = std::size_t{blockIdx.x} * kThreads + threadIdx.x;
    for (; at + (kAhead - 1) * step < size; at += kAhead * step) {
        ulonglong2 loaded[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) loaded[i] = __ldcs(words + at + i * step);
#pragma unroll
        for (int i = 0; i < kAhead; ++i) sum ^= loaded[i].x ^ loaded[i].y;
    }
    for (; at < size; at += step) sum ^= words[at].x ^ words[at].y;
    for (unsigned far = kWarp / 2; far > 0; far /= 2) sum ^= __shfl_xor_sync(kAllLanes, sum, far);
    if (threadIdx.x % kWarp == 0) atomicXor(result, sum);
}

}  // namespace

int xor_words(const void* bytes, std::size_t num_bytes, std::uint64_t* result, void* stream) {
    int device = 0, multiprocessors = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return error;
    read_kernel<<<static_cast<unsigned>(multiprocessors) * 4, kThreads, 0,
                  static_cast<cudaStream_t>(stream)>>>(
        static_cast<const ulonglong2*>(bytes), num_bytes / sizeof(ulonglong2),
        reinterpret_cast<unsigned long long*>(result));
    return cudaGetLastError();
}

}  // namespace moeprof
