// What device code needs beyond the language: copies that run ahead, launches that overlap, flags,
// and the integer and bf16 units.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace moeprof {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// 16 bytes from global to shared memory, both on a 16-byte boundary, done some time later.
__device__ __forceinline__ void copy_later(void* shared, const void* global) {
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(global)
                 : "memory");
}

// Closes this thread's batch of copies, which may be empty.
__device__ __forceinline__ void close_batch() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `kPending` of this thread's closed batches are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_batches() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Launches that overlap (compute capability 9.0 and later; elsewhere the stream orders them): the
// next kernel may take its place now, and waits itself for all that this one writes.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void prefetch_to_l2(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

__device__ __forceinline__ std::uint64_t load_acquire(const std::uint64_t* address) {
    std::uint64_t value;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
    return value;
}

__device__ __forceinline__ void store_release(std::uint64_t* address, std::uint64_t value) {
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

__device__ __forceinline__ std::uint64_t load_acquire_from_host(const std::uint64_t* address) {
    std::uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
    return value;
}

__device__ __forceinline__ void store_release_to_host(std::uint64_t* address, std::uint64_t value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

__device__ __forceinline__ std::uint64_t nanoseconds() {
    std::uint64_t time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
}

// sum + four products of unsigned bytes of `weights` with signed bytes of `values`.
__device__ __forceinline__ int dot_bytes(std::uint32_t weights, int values, int sum) {
    int result;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(weights), "r"(values), "r"(sum));
    return result;
}

__device__ __forceinline__ float half_to_float(std::uint16_t half) {
    return __half2float(__ushort_as_half(half));
}

}  // namespace
}  // namespace moeprof
