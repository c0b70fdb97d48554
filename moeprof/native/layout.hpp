// Sizes and order of packed weights; the definition is reference/layout.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moeprof {

enum class Format { kQ8_0, kQ4_0, kBf16 };

constexpr std::size_t kBlockSize = 32;
constexpr std::size_t kGroup = 8;  // blocks side by side, and accumulators of a row
constexpr std::size_t kQuad = 4;   // rows of one stream
constexpr std::size_t kLine = 64;
constexpr std::size_t kScaleBytes = 2;

constexpr std::size_t block_bytes(Format format) {
    return format == Format::kQ8_0 ? 34 : format == Format::kQ4_0 ? 18 : 64;
}

constexpr std::size_t padded(std::size_t num_bytes) {
    return (num_bytes + kLine - 1) / kLine * kLine;
}

constexpr std::size_t num_quads(std::size_t num_rows) { return (num_rows + kQuad - 1) / kQuad; }

constexpr std::size_t quad_bytes(Format format, std::size_t row_size) {
    return padded(kQuad * (row_size / kBlockSize) * block_bytes(format));
}

// Bytes of one packed expert: gate and up quads alternating, down, biases.
constexpr std::size_t expert_bytes(Format format, std::size_t hidden_size, std::size_t width,
                                   bool has_biases) {
    return 2 * num_quads(width) * quad_bytes(format, hidden_size) +
           num_quads(hidden_size) * quad_bytes(format, width) +
           (has_biases ? padded(sizeof(float) * (2 * width + hidden_size)) : 0);
}

// Packs rows as stored [num_rows, row_size / 32 * block_bytes] into quads that lie `stride` bytes
// apart; `unpack_rows` is the inverse. Copies each byte once; bound by memory.
void pack_rows(Format format, const std::uint8_t* stored, std::size_t num_rows,
               std::size_t row_size, std::uint8_t* packed, std::size_t stride);
void unpack_rows(Format format, const std::uint8_t* packed, std::size_t num_rows,
                 std::size_t row_size, std::uint8_t* stored);

}  // namespace moeprof
