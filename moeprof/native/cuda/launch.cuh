#pragma once

#include <cuda_runtime.h>

#include <cstddef>

// Launching kernels so that each one's start overlaps the end of the one before (programmatic
// dependent launch, compute capability 9.0 and later; elsewhere launches are ordinary).
//
// A kernel of ours first fetches what no kernel writes (weights), then calls `wait_for_previous`,
// and only after that touches anything else.

namespace moeprof {

// Waits for all that earlier kernels write, and lets the next kernel take its place. In this order:
// a kernel that has begun may then rely on all kernels but the one before it having ended, which
// the kernels that torch compiles do.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
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

struct LaunchShape {
    dim3 grid;
    dim3 block;
    std::size_t shared_bytes = 0;
    bool overlaps = true;
};

template <typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Arguments...), const LaunchShape& shape,
                          cudaStream_t stream, Arguments... arguments) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = shape.overlaps && overlaps_launches() ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace moeprof
