// The products of one stage: a warp multiplies 16 rows of each of two matrices (or of two halves of
// a panel) with 8 tokens (bf16: 16).
//
// Block formats: a block is one step of the unit for matrices, so each of its results is the exact
// product of a block, which becomes a float32, is multiplied with the product of both scales and
// added into accumulator `block mod 8`: 4 float32 operations for each, which is what bounds them.
#pragma once

#include "prefill_load.cuh"

namespace moeprof {
namespace {

// What a lane computes: rows g and g + 8 of two times 16, columns 2 t and 2 t + 1 of 8 tokens.
template <Format kFormat, Projection kProjection>
struct LanePlace {
    std::uint32_t g = threadIdx.x % kWarp / 4;
    std::uint32_t t = threadIdx.x % 4;
    std::uint32_t half = threadIdx.x / kWarp % 2;    // of a panel's rows: 16 of each matrix
    std::uint32_t tokens = threadIdx.x / kWarp / 2;  // a quarter of the tile's

    // The quad of this lane's rows g + 8 * upper of a matrix.
    __device__ std::uint32_t quad(std::uint32_t matrix, std::uint32_t upper) const {
        const std::uint32_t quad = half * 4 + upper * 2 + g / 4;
        return kProjection == Projection::kGateUp ? quad * 2 + matrix : matrix * 8 + quad;
    }
    __device__ std::uint32_t first_token() const { return tokens * (TileOf<kFormat>::kTokens / 4); }
};

template <Format kFormat>
struct Sums {
    float lanes[8][2][4];  // [accumulator][matrix][row and column]

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int i = 0; i < 8; ++i) lanes[j][i / 4][i % 4] = 0.0f;
        }
    }
    __device__ __forceinline__ float total(int matrix, int, int i) const {
        float values[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) values[j] = lanes[j][matrix][i];
        return tree_sum(values);
    }
    static constexpr int kColumns = 1;  // of 8 tokens
};

template <>
struct Sums<Format::kBf16> {
    float lanes[2][2][4];  // [matrix][tokens / 8][row and column]

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 16; ++i) lanes[i / 8][i / 4 % 2][i % 4] = 0.0f;
    }
    __device__ __forceinline__ float total(int matrix, int column, int i) const {
        return lanes[matrix][column][i];
    }
    static constexpr int kColumns = 2;
};

// Adds one block's term of one sum.
__device__ __forceinline__ void add_term(float& sum, int counted, float from, float weight_scale,
                                         float token_scale) {
    const float dot = float_of(static_cast<std::uint32_t>(counted)) - from;
    sum += dot * (weight_scale * token_scale);
}

// Block `i` of four of a lane's rows of a matrix as signed bytes; q4_0: 16 times the weights.
template <Format kFormat>
__device__ __forceinline__ uint4 block_of(const std::uint32_t (&low)[2][4],
                                          const std::uint32_t (&high)[2][4], int i) {
    if constexpr (kFormat == Format::kQ8_0) {
        constexpr std::uint32_t kSigns = 0x80808080u;
        return make_uint4(low[0][i] ^ kSigns, low[1][i] ^ kSigns, high[0][i] ^ kSigns,
                          high[1][i] ^ kSigns);
    } else {
        return make_uint4(nibbles_of(low[0][i] << 4), nibbles_of(low[1][i] << 4),
                          nibbles_of(low[0][i]), nibbles_of(low[1][i]));
    }
}

__device__ __forceinline__ void load_words(std::uint32_t (&words)[4], SharedAddress from) {
    const uint4 loaded = load_shared_four(from);
    words[0] = loaded.x;
    words[1] = loaded.y;
    words[2] = loaded.z;
    words[3] = loaded.w;
}

// Blocks 4 kHalf to 4 kHalf + 3 of a stage's eight.
template <Format kFormat, Projection kProjection, int kHalf>
__device__ __forceinline__ void multiply_half(SharedAddress stage,
                                              const LanePlace<kFormat, kProjection>& lane,
                                              Sums<kFormat>& sums) {
    using Stage = StageOf<kFormat>;
    using Ready = ReadyOf<kFormat>;
    constexpr bool kIsBytes = kFormat == Format::kQ8_0;
    constexpr float kFrom = kIsBytes ? kCountFrom : kCountSixteenths;
    constexpr int kFromBits = kIsBytes ? kCountFromBits : kCountSixteenthsBits;
    constexpr std::uint32_t kWordsAt = kQuad * kBlocksAbreast * kScaleBytes;
    const std::uint32_t token = lane.first_token() + lane.g;
    const SharedAddress row = stage + Stage::kRows + token * Ready::kRowBytes;
    const SharedAddress scales =
        stage + Stage::kScales +
        (kHalf * 4 * Stage::kTokens + lane.first_token() + 2 * lane.t) * Ready::kScaleBytes;
#pragma unroll
    for (int matrix = 0; matrix < 2; ++matrix) {
        std::uint32_t low[2][4], high[2][4];
        uint2 weight_scales[2];
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
            const SharedAddress quad = stage + lane.quad(matrix, upper) * Stage::kQuadBytes;
            load_words(low[upper], quad + kWordsAt + word_piece(lane.t, lane.g % 4, kHalf) * 16);
            if constexpr (kIsBytes) {
                load_words(high[upper],
                           quad + kWordsAt + word_piece(lane.t + 4, lane.g % 4, kHalf) * 16);
            }
            weight_scales[upper] = load_shared_two(quad + lane.g % 4 * 16 + kHalf * 8);
        }
        uint4 columns;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i % 2 == 0) {
                const std::uint32_t piece = (kHalf * 2 + i / 2) * 4 + lane.t;
                columns = load_shared_four(row + row_piece<kFormat>(token, piece) * 16);
            }
            const uint2 token_scales =
                load_shared_two(scales + i * Stage::kTokens * Ready::kScaleBytes);
            const int4 counted = multiply_signed(
                block_of<kFormat>(low, high, i),
                i % 2 == 0 ? make_uint2(columns.x, columns.y) : make_uint2(columns.z, columns.w),
                make_int4(kFromBits, kFromBits, kFromBits, kFromBits));
            float row_scales[2];
#pragma unroll
            for (int upper = 0; upper < 2; ++upper) {
                const std::uint32_t word = i < 2 ? weight_scales[upper].x : weight_scales[upper].y;
                row_scales[upper] =
                    half_to_float(static_cast<std::uint16_t>(i % 2 == 0 ? word : word >> 16));
            }
            float (&sum)[4] = sums.lanes[kHalf * 4 + i][matrix];
            add_term(sum[0], counted.x, kFrom, row_scales[0], float_of(token_scales.x));
            add_term(sum[1], counted.y, kFrom, row_scales[0], float_of(token_scales.y));
            add_term(sum[2], counted.z, kFrom, row_scales[1], float_of(token_scales.x));
            add_term(sum[3], counted.w, kFrom, row_scales[1], float_of(token_scales.y));
        }
    }
}

template <Projection kProjection>
__device__ __forceinline__ void multiply_runs(SharedAddress stage,
                                              const LanePlace<Format::kBf16, kProjection>& lane,
                                              Sums<Format::kBf16>& sums) {
    using Stage = StageOf<Format::kBf16>;
    constexpr std::uint32_t kRowBytes = ReadyOf<Format::kBf16>::kRowBytes;
#pragma unroll
    for (std::uint32_t run = 0; run < 8; ++run) {
        uint4 rows[2];
        uint2 columns[2];
#pragma unroll
        for (int matrix = 0; matrix < 2; ++matrix) {
            const auto at = [&](std::uint32_t upper) {
                return load_shared_two(stage + lane.quad(matrix, upper) * Stage::kQuadBytes +
                                       run * 128 + lane.g % 4 * 32 + lane.t * 8);
            };
            const uint2 lower_rows = at(0), upper_rows = at(1);
            rows[matrix] = make_uint4(lower_rows.x, upper_rows.x, lower_rows.y, upper_rows.y);
        }
#pragma unroll
        for (std::uint32_t column = 0; column < 2; ++column) {
            const std::uint32_t token = lane.first_token() + column * 8 + lane.g;
            const std::uint32_t piece = row_piece<Format::kBf16>(token, run * 2 + lane.t / 2);
            columns[column] = load_shared_two(stage + Stage::kRows + token * kRowBytes +
                                              piece * 16 + lane.t % 2 * 8);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            multiply_bf16(sums.lanes[i / 2][i % 2], rows[i / 2], columns[i % 2]);
        }
    }
}

template <Format kFormat, Projection kProjection>
__device__ __forceinline__ void multiply(SharedAddress stage,
                                         const LanePlace<kFormat, kProjection>& lane,
                                         Sums<kFormat>& sums) {
    if constexpr (kFormat == Format::kBf16) {
        multiply_runs<kProjection>(stage, lane, sums);
    } else {
        multiply_half<kFormat, kProjection, 0>(stage, lane, sums);
        multiply_half<kFormat, kProjection, 1>(stage, lane, sums);
    }
}

}  // namespace
}  // namespace moeprof
