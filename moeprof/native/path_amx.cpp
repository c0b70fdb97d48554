// AMX, the matrix unit, for many tokens; few take the functions of the AVX-512 path.
//
// A unit of work is 16 rows of weights, 4 quads. They are laid out anew as tiles once, in
// the second-level cache, and all tokens pass, 16 at a time. Block formats: a tile product of one
// block gives 16 x 16 exact int32, which become float32 terms in vector registers: one accumulator
// of all 256 sums after the other, so the bits are those of the definition. Bound by that (4 vector
// operations for each 16 terms) for many tokens, by memory for few. `bf16`: the products are summed
// in the tile, in an order and rounding of the processor's own, subnormal numbers as 0.
#include <cpuid.h>
#include <immintrin.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>

#include "avx512_groups.hpp"
#include "elementwise.hpp"

namespace moeprof {
namespace {

constexpr std::size_t kRows = 16;  // of a tile: tokens, or columns: rows of weights
constexpr std::size_t kBlockTile = kBlockSize * kRows;  // bytes of one block of 16 rows
// A tile product goes to vector registers through memory, where it waits until the store is done.
constexpr std::size_t kDelay = 4;  // in products
constexpr std::size_t kRing = 8;

struct alignas(kLine) TileConfig {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
};

// Tiles 0 to 3: products; 4 and 5: tokens; 6 and 7: weights.
TileConfig tile_config(std::size_t token_bytes) {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
        config.rows[tile] = kRows;
        config.row_bytes[tile] = kLine;
    }
    config.row_bytes[4] = config.row_bytes[5] = static_cast<std::uint16_t>(token_bytes);
    config.rows[6] = config.rows[7] = static_cast<std::uint8_t>(token_bytes / 4);
    return config;
}

// Blocks of accumulator `lane`.
std::size_t blocks_of(std::size_t lane, std::size_t num_blocks) {
    return (num_blocks + kGroup - 1 - lane) / kGroup;
}

// The place of a block in rows and units of this path: all blocks of accumulator 0 in increasing
// order, then those of 1, and so on.
std::size_t place_of(std::size_t block, std::size_t num_blocks) {
    const std::size_t lane = block % kGroup;
    const std::size_t longer = num_blocks % kGroup;
    return lane * (num_blocks / kGroup) + (lane < longer ? lane : longer) + block / kGroup;
}

// A row: its blocks, by place; their float32 scales; for bf16 its values, two of every 16 that are
// 8 apart together, as in packed words, and a line more, lest rows begin 4096 bytes apart.
std::size_t row_bytes(Format format, std::size_t row_size) {
    if (format == Format::kBf16) return padded(2 * row_size) + kLine;
    return padded(row_size + row_size / kBlockSize * sizeof(float));
}

bool quantize_row_block(const float* values, std::size_t block, std::size_t num_blocks,
                        std::uint8_t* row) {
    QuantizedBlock quantized;
    if (!quantize(values, &quantized)) return false;
    const std::size_t place = place_of(block, num_blocks);
    std::memcpy(row + place * kBlockSize, quantized.quants, kBlockSize);
    std::memcpy(row + num_blocks * kBlockSize + place * sizeof(float), &quantized.scale,
                sizeof(float));
    return true;
}

bool round_row_block(const float* values, std::size_t block, std::size_t, std::uint8_t* row) {
    float rounded[kBlockSize];
    if (!round_block(values, 0, reinterpret_cast<std::uint8_t*>(rounded))) return false;
    std::uint16_t halves[kBlockSize];
    for (std::size_t i = 0; i < kBlockSize; ++i) {
        const std::size_t from = i / 16 * 16 + i % 16 / 2 + i % 2 * kGroup;
        halves[i] = static_cast<std::uint16_t>(bits_of(rounded[from]) >> 16);
    }
    std::memcpy(row + block * sizeof halves, halves, sizeof halves);
    return true;
}

struct Scratch {
    std::uint8_t* unit;   // [num_blocks][8][16 rows][4 bytes]; bf16: twice that
    float* scales;        // [num_blocks][16 rows]
    std::int32_t* ring;   // [kRing][16 tokens][16 rows]
    float* accumulators;  // [kTile][8][16 rows]
    std::uint8_t* end;
    Scratch(std::uint8_t* memory, Format format, std::size_t row_size) {
        const std::size_t num_blocks = row_size / kBlockSize;
        unit = memory;
        memory += format == Format::kBf16 ? kRing * 2 * kBlockTile : num_blocks * kBlockTile;
        scales = reinterpret_cast<float*>(memory);
        ring = reinterpret_cast<std::int32_t*>(scales + num_blocks * kRows);
        accumulators = reinterpret_cast<float*>(ring + kRing * kRows * kRows);
        end = reinterpret_cast<std::uint8_t*>(accumulators + kTile * kGroup * kRows);
    }
};

std::size_t scratch_bytes(Format format, std::size_t row_size) {
    return static_cast<std::size_t>(Scratch(nullptr, format, row_size).end -
                                    static_cast<std::uint8_t*>(nullptr));
}

// Asks for the packed bytes of the next unit while this one is computed.
class Prefetch {
  public:
    Prefetch(const std::uint8_t* first, std::size_t quad_stride, std::size_t quad_size,
             std::size_t num_steps)
        : quad_(first), quad_stride_(quad_stride), quad_size_(quad_size) {
        const std::size_t lines = quad_size / kLine * kQuad;
        lines_per_step_ = (lines + num_steps - 1) / num_steps;
    }
    void step() {
        for (std::size_t i = 0; i < lines_per_step_ && quads_ < kQuad; ++i) {
            _mm_prefetch(reinterpret_cast<const char*>(quad_ + at_), _MM_HINT_T1);
            at_ += kLine;
            if (at_ < quad_size_) continue;
            at_ = 0;
            quad_ += quad_stride_;
            ++quads_;
        }
    }

  private:
    const std::uint8_t* quad_;
    const std::size_t quad_stride_;
    const std::size_t quad_size_;
    std::size_t lines_per_step_;
    std::size_t at_ = 0;
    std::size_t quads_ = 0;
};

// in[quad * 2 + pair] holds 8 lanes of rows 2 pair and 2 pair + 1 of a quad; out[lane] becomes that
// lane of rows 0, 4, 8, 12, 1, 5, 9, 13, and so on.
MOEPROF_SHARED void transpose(const __m512i* in, __m512i* out) {
    __m512i quads[kPairs][4];  // [pair][lane % 4]: in each 128 bits one lane of the four quads
    for (std::size_t p = 0; p < kPairs; ++p) {
        const __m512i low01 = _mm512_unpacklo_epi32(in[p], in[2 + p]);
        const __m512i high01 = _mm512_unpackhi_epi32(in[p], in[2 + p]);
        const __m512i low23 = _mm512_unpacklo_epi32(in[4 + p], in[6 + p]);
        const __m512i high23 = _mm512_unpackhi_epi32(in[4 + p], in[6 + p]);
        quads[p][0] = _mm512_unpacklo_epi64(low01, low23);
        quads[p][1] = _mm512_unpackhi_epi64(low01, low23);
        quads[p][2] = _mm512_unpacklo_epi64(high01, high23);
        quads[p][3] = _mm512_unpackhi_epi64(high01, high23);
    }
    for (std::size_t lane = 0; lane < 4; ++lane) {
        out[lane] = _mm512_shuffle_i32x4(quads[0][lane], quads[1][lane], 0x88);
        out[4 + lane] = _mm512_shuffle_i32x4(quads[0][lane], quads[1][lane], 0xDD);
    }
}

// From the order of `transpose` to increasing rows.
__m512 in_order(__m512 rows) {
    const __m512i from = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(from, rows);
}

// One group of blocks of 4 quads, `stride` bytes apart, as signed bytes and float32 scales.
template <Format kFormat, typename Group>
void unpack_group(const Group& group, const std::uint8_t* quads, std::size_t stride,
                  std::size_t first_block, std::size_t num_blocks, const Scratch& scratch) {
    constexpr std::size_t kWords = kFormat == Format::kQ8_0 ? 8 : 4;
    const std::size_t pair_words = 2 * group.lanes * 4;
    const std::size_t words_at = kQuad * group.lanes * kScaleBytes;
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i offset = _mm512_set1_epi8(kFormat == Format::kQ8_0 ? char(0x80) : char(8));
    std::uint8_t* blocks[kGroup];
    __m512i in[kQuad * kPairs];
    __m512i out[kGroup];
    for (std::size_t q = 0; q < kQuad; ++q) {
        for (std::size_t p = 0; p < kPairs; ++p) {
            const std::uint8_t* scales = quads + q * stride + p * 2 * group.lanes * kScaleBytes;
            in[q * kPairs + p] = _mm512_castps_si512(group.scales(scales));
        }
    }
    transpose(in, out);
    for (std::size_t lane = 0; lane < group.lanes; ++lane) {
        const std::size_t place = place_of(first_block + lane, num_blocks);
        _mm512_store_si512(scratch.scales + place * kRows, out[lane]);
        blocks[lane] = scratch.unit + place * kBlockTile;
    }
    for (std::size_t k = 0; k < kWords; ++k) {
        for (std::size_t q = 0; q < kQuad; ++q) {
            for (std::size_t p = 0; p < kPairs; ++p) {
                in[q * kPairs + p] =
                    group.words(quads + q * stride + words_at + (k * kPairs + p) * pair_words);
            }
        }
        transpose(in, out);
        for (std::size_t lane = 0; lane < group.lanes; ++lane) {
            std::uint8_t* row = blocks[lane] + k * kLine;
            if (kFormat == Format::kQ8_0) {
                _mm512_store_si512(row, _mm512_xor_si512(out[lane], offset));
            } else {
                const __m512i low = _mm512_and_si512(out[lane], nibble);
                const __m512i high = _mm512_and_si512(_mm512_srli_epi16(out[lane], 4), nibble);
                _mm512_store_si512(row, _mm512_sub_epi8(low, offset));
                _mm512_store_si512(row + kWords * kLine, _mm512_sub_epi8(high, offset));
            }
        }
    }
}

template <Format kFormat>
void unpack_unit(const std::uint8_t* quads, std::size_t stride, std::size_t num_blocks,
                 const Scratch& scratch) {
    constexpr std::size_t kGroupBytes = kQuad * kGroup * block_bytes(kFormat);
    const std::size_t full = num_blocks / kGroup * kGroup;
    for (std::size_t block = 0; block < full; block += kGroup, quads += kGroupBytes) {
        unpack_group<kFormat>(Full{}, quads, stride, block, num_blocks, scratch);
    }
    if (full < num_blocks) {
        unpack_group<kFormat>(Tail{num_blocks - full}, quads, stride, full, num_blocks, scratch);
    }
}

// Two sets of tiles take turns; the compiler wants their numbers as literals.
void multiply(bool odd, const std::uint8_t* tokens, std::size_t stride, const std::uint8_t* weights,
              std::int32_t* product) {
    if (odd) {
        _tile_zero(1);
        _tile_loadd(5, tokens, stride);
        _tile_loadd(7, weights, kLine);
        _tile_dpbssd(1, 5, 7);
        _tile_stored(1, product, kLine);
    } else {
        _tile_zero(0);
        _tile_loadd(4, tokens, stride);
        _tile_loadd(6, weights, kLine);
        _tile_dpbssd(0, 4, 6);
        _tile_stored(0, product, kLine);
    }
}

// The tile products of a unit, in the order in which they are used: accumulator by accumulator, all
// tokens for each, 16 at a time, block after block.
class Products {
  public:
    Products(const std::uint8_t* ready, std::size_t row_bytes, std::size_t num_tokens,
             std::size_t num_blocks, const Scratch& scratch, const Prefetch& ahead)
        : ready_(ready),
          row_bytes_(row_bytes),
          num_tokens_(num_tokens),
          num_blocks_(num_blocks),
          scratch_(scratch),
          ahead_(ahead),
          end_(blocks_of(0, num_blocks)) {
        for (std::size_t i = 0; i < kDelay; ++i) start();
    }

    // The next product; one further ahead is started.
    const std::int32_t* next() {
        start();
        return scratch_.ring + used_++ % kRing * kRows * kRows;
    }

  private:
    void start() {
        if (first_ == num_blocks_) return;
        ahead_.step();
        const std::uint8_t* tokens = ready_ + token_ * row_bytes_ + place_ * kBlockSize;
        const std::uint8_t* weights = scratch_.unit + place_ * kBlockTile;
        std::int32_t* product = scratch_.ring + started_ % kRing * kRows * kRows;
        multiply(started_ % 2 != 0, tokens, row_bytes_, weights, product);
        ++started_;
        if (++place_ < end_) return;
        place_ = first_;
        token_ += kRows;
        if (token_ < num_tokens_) return;
        token_ = 0;
        place_ = first_ = end_;
        end_ += blocks_of(++lane_, num_blocks_);
    }

    const std::uint8_t* const ready_;
    const std::size_t row_bytes_;
    const std::size_t num_tokens_;
    const std::size_t num_blocks_;
    const Scratch& scratch_;
    Prefetch ahead_;
    std::size_t started_ = 0;
    std::size_t used_ = 0;
    std::size_t lane_ = 0;
    std::size_t token_ = 0;
    std::size_t first_ = 0;  // place of the accumulator's first block
    std::size_t place_ = 0;
    std::size_t end_;
};

// Blocks [first, end) by place, which belong to one accumulator of each sum, for kTokens tokens.
template <int kTokens>
void accumulate(std::size_t first, std::size_t end, const std::uint8_t* token_scales,
                std::size_t row_bytes, const float* weight_scales, Products& products,
                float* accumulators) {
    // Unrolled, or the compiler would keep the sums in memory.
    __m512 sums[kTokens];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) sums[t] = _mm512_setzero_ps();
    for (std::size_t place = first; place < end; ++place) {
        const std::int32_t* product = products.next();
        const __m512 weights = _mm512_load_ps(weight_scales + place * kRows);
        const std::uint8_t* scales = token_scales + place * sizeof(float);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t, scales += row_bytes) {
            float token_scale;
            std::memcpy(&token_scale, scales, sizeof token_scale);
            const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(product + t * kRows));
            const __m512 scale = _mm512_mul_ps(weights, _mm512_set1_ps(token_scale));
            sums[t] = _mm512_add_ps(sums[t], _mm512_mul_ps(dot, scale));
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t, accumulators += kGroup * kRows) {
        _mm512_store_ps(accumulators, sums[t]);
    }
}

// The sums of 16 rows in the order of tree_sum.
__m512 sum_of(const float* accumulators) {
    __m512 a[kGroup];
    for (std::size_t i = 0; i < kGroup; ++i) a[i] = _mm512_load_ps(accumulators + i * kRows);
    const __m512 even = _mm512_add_ps(_mm512_add_ps(a[0], a[4]), _mm512_add_ps(a[2], a[6]));
    const __m512 odd = _mm512_add_ps(_mm512_add_ps(a[1], a[5]), _mm512_add_ps(a[3], a[7]));
    return _mm512_add_ps(even, odd);
}

void multiply_unit(std::size_t num_blocks, const std::uint8_t* ready, std::size_t row_bytes,
                   std::size_t num_tokens, const Scratch& scratch, const Prefetch& ahead,
                   float (*sums)[kBlockSize], std::size_t column) {
    constexpr decltype(&accumulate<4>) kAccumulate[] = {accumulate<4>, accumulate<8>,
                                                        accumulate<12>, accumulate<16>};
    Products products(ready, row_bytes, num_tokens, num_blocks, scratch, ahead);
    std::size_t first = 0;
    for (std::size_t lane = 0; lane < kGroup; ++lane) {
        const std::size_t end = first + blocks_of(lane, num_blocks);
        for (std::size_t t = 0; t < num_tokens; t += kRows) {
            const std::size_t quarters = (std::min(kRows, num_tokens - t) + 3) / 4;
            kAccumulate[quarters - 1](first, end, ready + t * row_bytes + num_blocks * kBlockSize,
                                      row_bytes, scratch.scales, products,
                                      scratch.accumulators + (t * kGroup + lane) * kRows);
        }
        first = end;
    }
    for (std::size_t t = 0; t < num_tokens; ++t) {
        const __m512 rows = sum_of(scratch.accumulators + t * kGroup * kRows);
        _mm512_storeu_ps(sums[t] + column, in_order(rows));
    }
}

// Adds 32 values of up to 64 tokens times those of 16 rows to the products.
void multiply_bf16(const std::uint8_t* tokens, std::size_t stride, std::size_t num_tokens,
                   const std::uint8_t* weights) {
    const std::size_t tile = kRows * stride;
    _tile_loadd(6, weights, kLine);
    _tile_loadd(4, tokens, stride);
    _tile_dpbf16ps(0, 4, 6);
    if (num_tokens <= kRows) return;
    _tile_loadd(5, tokens + tile, stride);
    _tile_dpbf16ps(1, 5, 6);
    if (num_tokens <= 2 * kRows) return;
    _tile_loadd(4, tokens + 2 * tile, stride);
    _tile_dpbf16ps(2, 4, 6);
    if (num_tokens <= 3 * kRows) return;
    _tile_loadd(5, tokens + 3 * tile, stride);
    _tile_dpbf16ps(3, 5, 6);
}

// 32 values of 4 quads, `stride` bytes apart, as a tile.
void unpack_bf16(const std::uint8_t* quads, std::size_t stride, std::uint8_t* unit) {
    constexpr std::size_t kChunk = kQuad * kGroup * 4;  // bytes of 16 values of a quad
    for (std::size_t half = 0; half < 2; ++half, quads += kChunk, unit += kGroup * kLine) {
        __m512i in[kQuad * kPairs];
        __m512i out[kGroup];
        for (std::size_t i = 0; i < kQuad * kPairs; ++i) {
            in[i] = _mm512_loadu_si512(quads + i / kPairs * stride + i % kPairs * kLine);
        }
        transpose(in, out);
        for (std::size_t lane = 0; lane < kGroup; ++lane) {
            _mm512_store_si512(unit + lane * kLine, out[lane]);
        }
    }
}

void multiply_unit_bf16(const std::uint8_t* quads, std::size_t stride, std::size_t row_size,
                        const std::uint8_t* ready, std::size_t num_tokens, const Scratch& scratch,
                        Prefetch ahead, float (*sums)[kBlockSize], std::size_t column) {
    constexpr std::size_t kQuadBlock = kQuad * kBlockSize * 2;
    constexpr std::size_t kUnitBlock = 2 * kBlockTile;
    const std::size_t num_blocks = row_size / kBlockSize;
    const std::size_t token_bytes = row_bytes(Format::kBf16, row_size);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::size_t step = 0; step < num_blocks + kDelay; ++step) {
        if (step < num_blocks) {
            unpack_bf16(quads + step * kQuadBlock, stride,
                        scratch.unit + step % kRing * kUnitBlock);
            ahead.step();
        }
        if (step < kDelay) continue;
        const std::size_t block = step - kDelay;
        multiply_bf16(ready + block * kBlockSize * 2, token_bytes, num_tokens,
                      scratch.unit + block % kRing * kUnitBlock);
    }
    const std::int32_t* products = scratch.ring;
    _tile_stored(0, scratch.ring, kLine);
    _tile_stored(1, scratch.ring + kRows * kRows, kLine);
    _tile_stored(2, scratch.ring + 2 * kRows * kRows, kLine);
    _tile_stored(3, scratch.ring + 3 * kRows * kRows, kLine);
    for (std::size_t t = 0; t < num_tokens; ++t) {
        _mm512_storeu_ps(sums[t] + column, in_order(_mm512_load_ps(products + t * kRows)));
    }
}

template <Format kFormat>
void project(const std::uint8_t* quads, std::size_t num_matrices, std::size_t row_size,
             const std::uint8_t* ready, std::size_t num_tokens, float (*sums)[kTile][kBlockSize],
             std::uint8_t* memory) {
    const Scratch scratch(memory, kFormat, row_size);
    const std::size_t num_blocks = row_size / kBlockSize;
    const std::size_t quad_size = quad_bytes(kFormat, row_size);
    const std::size_t stride = num_matrices * quad_size;
    const std::size_t num_tiles = (num_tokens + kRows - 1) / kRows;
    const TileConfig config = tile_config(kFormat == Format::kBf16 ? kLine : kBlockSize);
    _tile_loadconfig(&config);
    for (std::size_t unit = 0; unit < 2 * num_matrices; ++unit) {
        const std::size_t matrix = unit % num_matrices;
        const std::size_t column = unit / num_matrices * kRows;
        const auto unit_at = [&](std::size_t u) {
            return quads + u / num_matrices * kQuad * stride + u % num_matrices * quad_size;
        };
        const Prefetch ahead(unit_at(unit + 1), stride, quad_size,
                             kFormat == Format::kBf16 ? num_blocks : num_blocks * num_tiles);
        if constexpr (kFormat == Format::kBf16) {
            multiply_unit_bf16(unit_at(unit), stride, row_size, ready, num_tokens, scratch, ahead,
                               sums[matrix], column);
        } else {
            unpack_unit<kFormat>(unit_at(unit), stride, num_blocks, scratch);
            multiply_unit(num_blocks, ready, row_bytes(kFormat, row_size), num_tokens, scratch,
                          ahead, sums[matrix], column);
        }
    }
    _tile_release();
}

}  // namespace

bool has_amx() {
#if defined(__linux__)
    // CPUID 7.0 EDX: AMX-BF16, AMX-TILE, AMX-INT8 (Intel 64 and IA-32 manual, volume 2, CPUID).
    constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;
    // Asks for the tile registers (Linux, Documentation/arch/x86/xstate.rst).
    constexpr int kRequestPermission = 0x1023;
    constexpr int kTileData = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    static const bool has = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 &&
                            (d & kNeeded) == kNeeded &&
                            syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return has;
#else
    return false;
#endif
}

const Path& amx_path() {
    static const Path path = [] {
        Path amx = kAvx512Path;
        amx.name = "amx";
        amx.many = {
            row_bytes,
            {quantize_row_block, quantize_row_block, round_row_block},
            scratch_bytes,
            {project<Format::kQ8_0>, project<Format::kQ4_0>, project<Format::kBf16>},
        };
        return amx;
    }();
    return path;
}

}  // namespace moeprof
