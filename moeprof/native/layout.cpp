#include "layout.hpp"

#include <algorithm>
#include <cstring>

namespace moeprof {
namespace {

template <typename Word>
void copy(const std::uint8_t* from, std::uint8_t* to, Word flip) {
    Word word;
    std::memcpy(&word, from, sizeof word);
    word = static_cast<Word>(word ^ flip);
    std::memcpy(to, &word, sizeof word);
}

// Calls visit(place in the quad, row, place in the stored row, flip) for every word of two or four
// bytes that stays together; flip is what the packed word is XORed with.
template <typename Visit>
void visit_blocks(Format format, std::size_t row_size, Visit visit) {
    const std::size_t num_blocks = row_size / kBlockSize;
    const std::size_t stored_block = block_bytes(format);
    const std::size_t num_words = (stored_block - kScaleBytes) / 4;
    const std::uint32_t flip = format == Format::kQ8_0 ? 0x80808080u : 0u;
    std::size_t at = 0;
    for (std::size_t start = 0; start < num_blocks; start += kGroup) {
        const std::size_t lanes = std::min(kGroup, num_blocks - start);
        for (std::size_t row = 0; row < kQuad; ++row) {
            for (std::size_t lane = 0; lane < lanes; ++lane, at += kScaleBytes) {
                visit(at, row, (start + lane) * stored_block, std::uint16_t{0});
            }
        }
        for (std::size_t word = 0; word < num_words; ++word) {
            for (std::size_t row = 0; row < kQuad; ++row) {
                for (std::size_t lane = 0; lane < lanes; ++lane, at += 4) {
                    visit(at, row, (start + lane) * stored_block + kScaleBytes + word * 4, flip);
                }
            }
        }
    }
}

template <typename Visit>
void visit_bf16(std::size_t row_size, Visit visit) {
    std::size_t at = 0;
    for (std::size_t start = 0; start < row_size; start += 2 * kGroup) {
        for (std::size_t row = 0; row < kQuad; ++row) {
            for (std::size_t lane = 0; lane < kGroup; ++lane, at += 4) {
                visit(at, row, 2 * (start + lane), std::uint16_t{0});
                visit(at + 2, row, 2 * (start + kGroup + lane), std::uint16_t{0});
            }
        }
    }
}

template <typename Visit>
void visit_quad(Format format, std::size_t row_size, Visit visit) {
    if (format == Format::kBf16) {
        visit_bf16(row_size, visit);
    } else {
        visit_blocks(format, row_size, visit);
    }
}

}  // namespace

void pack_rows(Format format, const std::uint8_t* stored, std::size_t num_rows,
               std::size_t row_size, std::uint8_t* packed, std::size_t stride) {
    const std::size_t row_bytes = row_size / kBlockSize * block_bytes(format);
    for (std::size_t first = 0; first < num_rows; first += kQuad, packed += stride) {
        std::memset(packed, 0, quad_bytes(format, row_size));
        const std::size_t rows = std::min(kQuad, num_rows - first);
        visit_quad(format, row_size,
                   [&](std::size_t at, std::size_t row, std::size_t from, auto flip) {
                       if (row < rows) {
                           copy(stored + (first + row) * row_bytes + from, packed + at, flip);
                       } else {
                           std::memcpy(packed + at, &flip, sizeof flip);
                       }
                   });
    }
}

void unpack_rows(Format format, const std::uint8_t* packed, std::size_t num_rows,
                 std::size_t row_size, std::uint8_t* stored) {
    const std::size_t row_bytes = row_size / kBlockSize * block_bytes(format);
    for (std::size_t first = 0; first < num_rows; first += kQuad) {
        const std::size_t rows = std::min(kQuad, num_rows - first);
        visit_quad(format, row_size,
                   [&](std::size_t at, std::size_t row, std::size_t to, auto flip) {
                       if (row >= rows) return;
                       copy(packed + at, stored + (first + row) * row_bytes + to, flip);
                   });
        packed += quad_bytes(format, row_size);
    }
}

}  // namespace moeprof
