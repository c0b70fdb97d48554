// What device code needs beyond the language: copies that run ahead, flags, and the integer and
// bf16 units.
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

// The same, or zeros where `wanted` is false.
__device__ __forceinline__ void copy_later_or_clear(unsigned to, const void* global, bool wanted) {
    const unsigned size = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(size)
                 : "memory");
}

// Four bytes, on a boundary of as many.
__device__ __forceinline__ void copy_word_later(unsigned to, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(global) : "memory");
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

// Shared memory by its own addresses, which fit a register.
using SharedAddress = std::uint32_t;

__device__ __forceinline__ SharedAddress address_of(const void* shared) {
    SharedAddress address;  // the assembler is not to find it anew at every use
    asm volatile("mov.u32 %0, %1;"
                 : "=r"(address)
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))));
    return address;
}

__device__ __forceinline__ std::uint32_t load_acquire(const std::uint32_t* address) {
    std::uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

__device__ __forceinline__ void store_release(std::uint32_t* address, std::uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void pause(unsigned nanoseconds = 64) { __nanosleep(nanoseconds); }

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

__device__ __forceinline__ void store_shared_half(SharedAddress address, std::uint16_t half) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(half) : "memory");
}

__device__ __forceinline__ uint2 load_shared_two(SharedAddress address) {
    uint2 two;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(two.x), "=r"(two.y) : "r"(address));
    return two;
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

__device__ __forceinline__ void store_to_host(std::uint32_t* word, std::uint32_t value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
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
