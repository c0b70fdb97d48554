#pragma once

#include <cuda_runtime.h>

#include <cstddef>

// Launching kernels so that each one's start overlaps the end of the one before (programmatic
// dependent launch, compute capability 9.0 and later; elsewhere launches are ordinary).
//
// A kernel of ours calls `let_next_start` first, then fetches what no kernel writes (weights), then
// calls `wait_for_previous`, and only after that touches anything else.

namespace moeprof::cuda {

__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

inline bool overlaps_launches() {
    int device = 0;
    int major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           major >= 9;
}

template <typename... Arguments>
cudaError_t launch_overlapped(void (*kernel)(Arguments...), dim3 grid, dim3 block,
                              std::size_t shared_bytes, cudaStream_t stream,
                              Arguments... arguments) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = overlaps_launches() ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace moeprof::cuda
