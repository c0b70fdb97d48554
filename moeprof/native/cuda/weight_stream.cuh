// The packed weights that a warp multiplies, copied ahead into a ring of its own in shared memory.
#pragma once

#include "decode_call.cuh"

namespace moeprof {
namespace {

// A stage is some groups of each quad of an item: copies of a few kilobytes, of which many are
// under way.
template <Format kFormat>
struct RingOf {
    static constexpr std::uint32_t kGroups = kFormat == Format::kQ4_0 ? 4 : 2;
    static constexpr std::uint32_t kQuadBytes = kGroups * GroupOf<kFormat>::kBytes;
    static constexpr std::uint32_t kStageBytes = 2 * kQuadBytes;
    static constexpr std::uint32_t kStages = 2;
    static constexpr std::uint32_t kBytes = kStageBytes * kStages;
    static constexpr std::uint32_t kBarrierBytes = kByteBarrier * kStages;
};

// All that a warp will read, in the order in which it will use it: copying goes on, item after item
// and from gate and up to down, as far as the ring is long. A warp without an item of gate and up
// leaves the way to those that have one, and begins with down when they are done: so much is under
// way that what is asked for late comes late.
template <Format kFormat, typename Jobs>
class Stream {
  public:
    using Ring = RingOf<kFormat>;

    // What can be known before the jobs are.
    __device__ Stream(const DecodeCall& call, const Share& share, SharedAddress ring,
                      SharedAddress barriers)
        : call_(call),
          share_(share),
          items_(call, share, false),
          stage_(ring),
          barrier_(barriers),
          ring_end_(ring + Ring::kBytes) {
        const std::uint32_t lane = threadIdx.x % kWarp;
        if (lane < Ring::kStages) open_byte_barrier(barriers + lane * kByteBarrier);
        publish_byte_barriers();
        __syncwarp();
    }

    __device__ void start_gate_up(const Jobs& jobs) {
        is_late_ = items_.is_done(jobs.num_jobs());
        if (!is_late_) fill(jobs);
    }

    // With gate and up done.
    __device__ void start_down(const Jobs& jobs) {
        if (is_late_) fill(jobs);
    }

    // The oldest stage, once its bytes are there.
    __device__ __forceinline__ SharedAddress front() {
#if __CUDA_ARCH__ >= 900
        wait_for_bytes(barrier_, phase_);
#else
        wait_for_batches<Ring::kStages - 1>();
        __syncwarp();
#endif
        return stage_;
    }

    // Gives the oldest stage's place to the next one to be copied.
    __device__ __forceinline__ void pop(const Jobs& jobs) {
        __syncwarp();
        request(jobs, stage_, barrier_);
        stage_ += Ring::kStageBytes;
        barrier_ += kByteBarrier;
        if (stage_ != ring_end_) return;
        stage_ -= Ring::kBytes;
        barrier_ -= Ring::kBarrierBytes;
        phase_ ^= 1;
    }

  private:
    __device__ void fill(const Jobs& jobs) {
        open(jobs);
#pragma unroll 1
        for (std::uint32_t stage = 0; stage < Ring::kStages; ++stage) {
            request(jobs, stage_ + stage * Ring::kStageBytes, barrier_ + stage * kByteBarrier);
        }
    }

    // Goes to the first bytes of the item at hand, or on to down after the last of gate and up.
    __device__ void open(const Jobs& jobs) {
        left_ = 0;
        if (items_.is_done(jobs.num_jobs()) && !is_down_) {
            is_down_ = true;
            items_ = Items(call_, share_, true);
        }
        if (items_.is_done(jobs.num_jobs())) return;
        const Projection& projection = call_.projections[is_down_];
        const std::uint32_t item = items_.place() + (is_down_ ? share_.first : 0);
        left_ = projection.payload_bytes;
        second_ = projection.quad_bytes;
        source_ = jobs.packed(items_.job()) + projection.offset + std::size_t{2} * item * second_;
    }

    __device__ __forceinline__ void request(const Jobs& jobs, SharedAddress to,
                                            SharedAddress barrier) {
        if (left_ != 0) {
            const std::uint32_t size = left_ < Ring::kQuadBytes ? left_ : Ring::kQuadBytes;
            copy(to, size, barrier);
            source_ += size;
            left_ -= size;
            if (left_ == 0) {
                items_.next();
                open(jobs);
            }
        }
#if __CUDA_ARCH__ < 900
        close_batch();
#endif
    }

    // `size` bytes of both quads.
    __device__ __forceinline__ void copy(SharedAddress to, std::uint32_t size,
                                         SharedAddress barrier) const {
#if __CUDA_ARCH__ >= 900
        if (threadIdx.x % kWarp != 0) return;
        expect_bytes(barrier, 2 * size);
        copy_bulk_later(to, source_, size, barrier);
        copy_bulk_later(to + Ring::kQuadBytes, source_ + second_, size, barrier);
#else
        for (std::uint32_t at = threadIdx.x % kWarp * 16; at < size; at += 16 * kWarp) {
            copy_later(to + at, source_ + at);
            copy_later(to + Ring::kQuadBytes + at, source_ + second_ + at);
        }
#endif
    }

    const DecodeCall& call_;
    const Share share_;
    Items items_;
    bool is_down_ = false;
    bool is_late_ = false;
    SharedAddress stage_;  // the oldest, and its barrier
    SharedAddress barrier_;
    const SharedAddress ring_end_;
    std::uint32_t phase_ = 0;
    const std::uint8_t* source_ = nullptr;
    std::uint32_t left_ = 0;    // bytes of each quad of the item at hand
    std::uint32_t second_ = 0;  // from an item's first quad to its second
};

}  // namespace
}  // namespace moeprof
