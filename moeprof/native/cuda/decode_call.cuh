// What a decode kernel is given, and how its work is dealt to blocks and warps.
//
// An item is two quads that lie side by side: four rows of gate and the same of up, or eight rows
// of down. Items of gate and up are dealt to the warps of all blocks in turn, job after job; each
// block has its own items of down, of every job, so that it can add up its rows' slots.
#pragma once

#include "choices.cuh"

namespace moeprof {
namespace {

// n / divisor without a division: exact while n * divisor stays below 2^32.
struct Divider {
    std::uint64_t inverse = 0;

    Divider() = default;
    explicit Divider(std::uint32_t divisor) : inverse(0xFFFFFFFFu / divisor + std::uint64_t{1}) {}
    __device__ std::uint32_t divide(std::uint32_t n) const {
        return static_cast<std::uint32_t>(n * inverse >> 32);
    }
};

// One of a layer's two projections: gate and up, or down.
struct Projection {
    std::uint32_t row_size;
    std::uint32_t num_items;      // of an expert
    std::uint32_t quad_bytes;     // with the padding
    std::uint32_t payload_bytes;  // without, up to the next multiple of 16
    std::uint64_t offset;         // from an expert's beginning
    Divider blocks;               // of a row
};

// Dynamic shared memory; the rings come first, and each part begins on a 16-byte boundary.
struct DecodeMemory {
    std::uint32_t ready;    // rows while gate and up are computed, then what lies between
    std::uint32_t results;  // [pairs here, rows of a block] float32
    std::uint32_t num_bytes;
};

struct DecodeCall {
    DeviceLayer layer;
    LayerInput input;  // of this launch
    void* output;
    Counts counts;
    LayerInput counted;  // of the whole call; no tokens if this launch does not count
    ExchangeView exchange;
    DecodeState* state;
    std::uint32_t* between;  // see ready_rows.cuh
    DecodeMemory memory;
    Projection projections[2];
    Divider gate_up_items;
    Divider grid;
    std::uint32_t least_share;  // of items of down; some blocks have one more
    Divider share_rows[2];      // rows of the smaller and of the larger share
};

// Items of down that belong to a block.
struct Share {
    std::uint32_t first;
    std::uint32_t size;
    const Divider& rows;

    __device__ explicit Share(const DecodeCall& call)
        : first(call.grid.divide(call.projections[1].num_items * blockIdx.x)),
          size(call.grid.divide(call.projections[1].num_items * (blockIdx.x + 1)) - first),
          rows(call.share_rows[size - call.least_share]) {}
    __device__ std::uint32_t first_row() const { return first * 2 * kQuad; }
    __device__ std::uint32_t num_rows() const { return size * 2 * kQuad; }
};

// The items of a projection that one warp takes, in order.
class Items {
  public:
    __device__ Items(const DecodeCall& call, const Share& share, bool is_down) {
        const std::uint32_t warp = threadIdx.x / kWarp;
        const std::uint32_t num_warps = blockDim.x / kWarp;
        if (is_down) {
            per_job_ = share.size;
            step_ = num_warps;
            place_ = warp;
            job_ = per_job_ == 0 ? kMaxDecodePairs : 0;  // beyond any job
            settle();
        } else {
            per_job_ = call.projections[0].num_items;
            step_ = gridDim.x * num_warps;
            const std::uint32_t first = blockIdx.x + gridDim.x * warp;
            job_ = call.gate_up_items.divide(first);
            place_ = first - job_ * per_job_;
        }
    }
    __device__ bool is_done(std::uint32_t num_jobs) const { return job_ >= num_jobs; }
    __device__ std::uint32_t job() const { return job_; }
    __device__ std::uint32_t place() const { return place_; }  // among those of the job
    __device__ void next() {
        place_ += step_;
        settle();
    }

  private:
    __device__ void settle() {
        while (job_ < kMaxDecodePairs && place_ >= per_job_) {
            place_ -= per_job_;
            ++job_;
        }
    }

    std::uint32_t per_job_;
    std::uint32_t step_;
    std::uint32_t job_;
    std::uint32_t place_;
};

}  // namespace
}  // namespace moeprof
