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
__device__ __forceinline__ void copy_later(unsigned to, const void* global) {
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

// Shared memory by its own addresses, which fit a register.
using SharedAddress = std::uint32_t;

__device__ __forceinline__ SharedAddress address_of(const void* shared) {
    SharedAddress address;  // the assembler is not to find it anew at every use
    asm volatile("mov.u32 %0, %1;"
                 : "=r"(address)
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))));
    return address;
}

__device__ __forceinline__ std::uint32_t load_shared(SharedAddress address) {
    std::uint32_t word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address));
    return word;
}

__device__ __forceinline__ std::uint16_t load_shared_half(SharedAddress address) {
    std::uint16_t half;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(half) : "r"(address));
    return half;
}

__device__ __forceinline__ uint4 load_shared_four(SharedAddress address) {
    uint4 four;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
                 : "r"(address));
    return four;
}

// Copies in bulk (compute capability 9.0 and later) are counted by a barrier of 8 bytes in shared
// memory, on which one thread announces their bytes; its phase, at first 0, changes when all have
// come.
constexpr std::uint32_t kByteBarrier = 8;

__device__ __forceinline__ void open_byte_barrier(SharedAddress barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
#endif
}

// Makes opened barriers known to the unit that copies.
__device__ __forceinline__ void publish_byte_barriers() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ void expect_bytes(SharedAddress barrier, unsigned num_bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                 "r"(num_bytes)
                 : "memory");
#endif
}

// A multiple of 16 bytes, both sides on a 16-byte boundary.
__device__ __forceinline__ void copy_bulk_later(SharedAddress to, const void* global,
                                                unsigned num_bytes, SharedAddress barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(to),
        "l"(global), "r"(num_bytes), "r"(barrier)
        : "memory");
#endif
}

__device__ __forceinline__ void wait_for_bytes(SharedAddress barrier, unsigned phase) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(barrier),
        "r"(phase)
        : "memory");
#endif
}

// Words that blocks of one launch pass on, each whole.
__device__ __forceinline__ uint4 load_four_passed(const std::uint32_t* words) {
    uint4 four;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
                 : "l"(words)
                 : "memory");
    return four;
}

__device__ __forceinline__ void pass_on(std::uint32_t* word, std::uint32_t value) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

// Words that the device and the host pass to each other, each whole.
__device__ __forceinline__ std::uint64_t load_from_host(const std::uint64_t* word) {
    std::uint64_t value;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

__device__ __forceinline__ void store_to_host(std::uint64_t* word, std::uint64_t value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
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
