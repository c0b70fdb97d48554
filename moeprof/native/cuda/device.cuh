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

// The same, or zeros where `wanted` is false.
__device__ __forceinline__ void copy_later_or_clear(void* shared, const void* global, bool wanted) {
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const unsigned size = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(size)
                 : "memory");
}

// kBytes, 4 or 8, on a boundary of as many.
template <int kBytes>
__device__ __forceinline__ void copy_few_later(void* shared, const void* global) {
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes)
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

__device__ __forceinline__ std::uint32_t load_acquire(const std::uint32_t* address) {
    std::uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

__device__ __forceinline__ void store_release(std::uint32_t* address, std::uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void pause() { __nanosleep(64); }

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

// Matrix products of a warp, d = a b + c with a [16, k], b [k, 8] (PTX ISA, mma.m16n8k32 and
// mma.m16n8k16). Lane 4 g + t holds of a: rows g and g + 8, of b: column g, of c and d: columns 2 t
// and 2 t + 1 of rows g and g + 8. k = 32 bytes, exact.
__device__ __forceinline__ int4 multiply_signed(const uint4& a, const uint2& b, const int4& c) {
    int4 d;
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %11, %12, %13};"
        : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(c.x), "r"(c.y), "r"(c.z),
          "r"(c.w));
    return d;
}

// k = 16 values in bf16, summed in an order of the device's own.
__device__ __forceinline__ void multiply_bf16(float (&d)[4], const uint4& a, const uint2& b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

// The upper nibbles of four bytes, their highest bits flipped.
__device__ __forceinline__ std::uint32_t nibbles_of(std::uint32_t bytes) {
    std::uint32_t nibbles;  // 0x6A: (a & b) ^ c
    asm("lop3.b32 %0, %1, %2, %3, 0x6A;"
        : "=r"(nibbles)
        : "r"(bytes), "r"(0xF0F0F0F0u), "r"(0x80808080u));
    return nibbles;
}

// The launch's dynamic shared memory.
__device__ __forceinline__ std::uint8_t* dynamic_memory() {
    extern __shared__ uint4 shared_memory[];
    return reinterpret_cast<std::uint8_t*>(shared_memory);
}

__device__ __forceinline__ float half_to_float(std::uint16_t half) {
    return __half2float(__ushort_as_half(half));
}

}  // namespace
}  // namespace moeprof
