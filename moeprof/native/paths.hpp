// The vector paths: the same operations compiled for each instruction set, chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arithmetic.hpp"
#include "layout.hpp"
#include "ready_rows.hpp"

namespace moeprof {

constexpr std::size_t kTile = 64;        // most tokens of one ManyTokens::project
constexpr std::size_t kRowsBehind = 16;  // activation rows that it may read without using them

enum class WeightFault { kNone, kNotFinite, kScaleOverflow, kValueOverflow };

// What many tokens need; rows may stand in an order of their own.
struct ManyTokens {
    // Bytes of one activation row made ready, a multiple of 32.
    std::size_t (*row_bytes)(Format format, std::size_t row_size);

    // As Path::ready_block, for a row of `num_blocks`.
    bool (*ready_block[3])(const float* values, std::size_t block, std::size_t num_blocks,
                           std::uint8_t* ready);

    // Bytes that `project` works in, on a cache line.
    std::size_t (*scratch_bytes)(Format format, std::size_t row_size);

    // Rows of one or two matrices whose quads alternate (gate and up; down): sums[m][t][r] = row r
    // of the next 32 of matrix m times activation row t. The activation rows, 1 to kTile, lie
    // row_bytes apart, and as many as kRowsBehind behind the last may be read. Reads the 8 *
    // num_matrices quads once from memory. Indexed by Format.
    void (*project[3])(const std::uint8_t* quads, std::size_t num_matrices, std::size_t row_size,
                       const std::uint8_t* ready, std::size_t num_tokens,
                       float (*sums)[kTile][kBlockSize], std::uint8_t* scratch);
};

struct Path {
    const char* name;

    // Makes 32 values ready as block `block` of the row at `ready`; false if one is not finite.
    bool (*ready_block[3])(const float* values, std::size_t block, std::uint8_t* ready);

    // 32 values of a gated unit.
    void (*unit_block)(const GatedUnit& unit, const float* gate, const float* up, float* values);

    // sums[t * 4 + r] = row r of the quad times activation row t. Reads quad_bytes once from memory
    // and ready_bytes per token from the first-level cache; bound by memory. Indexed by Format.
    void (*dot_quad[3])(const std::uint8_t* quad, std::size_t row_size,
                        const std::uint8_t* const* ready, std::size_t num_tokens, float* sums);

    ManyTokens many;

    // Numbers to and from float32; the second rounds half to even.
    void (*widen)(FloatType type, const void* from, std::size_t size, float* to);
    void (*narrow)(FloatType type, const float* from, std::size_t size, void* to);

    // A stored block of 32 weights. Indexed by Format.
    WeightFault (*quantize_weights[3])(const float* values, std::uint8_t* stored);

    // XOR of 64-bit words, a last one filled up with zeros: a plain read of memory.
    std::uint64_t (*xor_words)(const std::uint8_t* bytes, std::size_t size);
};

extern const Path kScalarPath;
#if defined(__x86_64__)
extern const Path kAvx2Path;
extern const Path kAvx512Path;

// AVX-512 with the matrix unit for many tokens. `has_amx` asks the system for its registers.
bool has_amx();
const Path& amx_path();
#elif defined(__aarch64__)
extern const Path kNeonPath;

// Whether the processor has the dot products that the path is made of.
bool has_neon_dots();
#endif

// Calls visit(path) for every path this machine can run, the slowest first.
template <typename Visit>
void visit_paths(Visit visit) {
    visit(kScalarPath);
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) visit(kAvx2Path);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
        visit(kAvx512Path);
        if (has_amx()) visit(amx_path());
    }
#elif defined(__aarch64__)
    if (has_neon_dots()) visit(kNeonPath);
#endif
}

}  // namespace moeprof
