// Rows of activations made ready in shared memory: those given, and what lies between the
// projections, which blocks pass on to each other.
//
// Between: a word is the bits of a float32, all inverted, so that zero memory is empty: a NaN of
// those bits is passed on as another one. Who needs a word waits until it is not empty; no flag, no
// fence and no barrier of blocks stands between. Two buffers take turns, and each launch empties
// the one that the last launch filled.
#pragma once

#include "decode_call.cuh"

namespace moeprof {
namespace {

__device__ __forceinline__ std::uint32_t passed_word(float value) {
    const std::uint32_t word = ~bits_of(value);
    return word == 0 ? ~0x7FC00000u : word;
}

// From the beginning of a buffer to its word `at`.
__device__ __forceinline__ std::uint32_t passed_place(std::uint32_t at) {
    return at + (at & ~(kBlock - 1));
}

__device__ __forceinline__ std::uint32_t* passed_buffer(const DecodeCall& call,
                                                        std::uint32_t launch) {
    return call.between + launch % 2 * kBlock;
}

// Empties its block's part of a buffer's first `num_words`.
__device__ inline void empty(std::uint32_t* buffer, std::uint32_t num_words) {
#pragma unroll 1
    for (std::uint32_t at = 4 * (blockIdx.x * blockDim.x + threadIdx.x); at < num_words;
         at += 4 * gridDim.x * blockDim.x) {
        *reinterpret_cast<uint4*>(buffer + passed_place(at)) = make_uint4(0, 0, 0, 0);
    }
}

// Sources of rows. `block` counts the blocks of 32 values of all rows, `part` the four values of a
// lane in it.
struct GivenRows {
    const LayerInput& input;

    __device__ uint4 load(std::uint32_t block, std::uint32_t part) const {
        return load_four_bits(input.hidden, input.hidden_type,
                              std::size_t{block} * kBlock + part * 4);
    }
    __device__ float4 settle(const uint4& words, std::uint32_t, std::uint32_t) const {
        return four_widened(words, input.hidden_type);
    }
};

struct PassedRows {
    const std::uint32_t* buffer;

    __device__ uint4 load(std::uint32_t block, std::uint32_t part) const {
        return load_four_passed(buffer + passed_place(block * kBlock) + part * 4);
    }
    __device__ float4 settle(uint4 words, std::uint32_t block, std::uint32_t part) const {
        while (words.x == 0 || words.y == 0 || words.z == 0 || words.w == 0) {
            words = load(block, part);
        }
        return make_float4(float_of(~words.x), float_of(~words.y), float_of(~words.z),
                           float_of(~words.w));
    }
};

// Makes rows ready, eight lanes for each block; its first loads are begun apart from the rest.
template <Format kFormat, typename Rows, std::uint32_t kAhead>
class RowMaker {
  public:
    __device__ RowMaker(const Rows& rows, std::uint32_t num_rows, const Projection& shape)
        : rows_(rows),
          shape_(shape),
          num_blocks_(num_rows * (shape.row_size / kBlock)),
          block_(threadIdx.x / 8) {
        load();
    }

    // False in threads that saw a value that is not finite.
    __device__ bool make(std::uint8_t* ready) {
        const std::uint32_t blocks = shape_.row_size / kBlock;
        const std::uint32_t before = threadIdx.x % kWarp / 8;  // in the warp
        bool is_finite = true;
#pragma unroll 1
        while (block_ - before < num_blocks_) {
#pragma unroll
            for (std::uint32_t i = 0; i < kAhead; ++i) {
                const std::uint32_t at = block_ + i * abreast();
                if (at - before >= num_blocks_) break;  // the same for the whole warp
                const bool writes = at < num_blocks_;
                const std::uint32_t row = writes ? shape_.blocks.divide(at) : 0;
                float4 values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (writes) values = rows_.settle(loaded_[i], at, part());
                __syncwarp();
                is_finite &= make_ready<kFormat>(
                    values, part(), ready + row * ready_row_bytes<kFormat>(shape_.row_size),
                    at - row * blocks, writes);
            }
            block_ += kAhead * abreast();
            load();
        }
        return is_finite;
    }

  private:
    __device__ static std::uint32_t part() { return threadIdx.x % 8; }
    __device__ static std::uint32_t abreast() { return blockDim.x / 8; }

    __device__ void load() {
#pragma unroll
        for (std::uint32_t i = 0; i < kAhead; ++i) {
            const std::uint32_t at = block_ + i * abreast();
            if (at < num_blocks_) loaded_[i] = rows_.load(at, part());
        }
    }

    const Rows rows_;
    const Projection& shape_;
    const std::uint32_t num_blocks_;
    std::uint32_t block_;
    uint4 loaded_[kAhead] = {};
};

}  // namespace
}  // namespace moeprof
