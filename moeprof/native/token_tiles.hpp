// Few tokens at a time through one quad, for paths whose tokens share what is done with a weight.
#pragma once

#include "elementwise.hpp"

namespace moeprof {
namespace {

// Calls dots.template of<n>(quad, row_size, ready, ahead, sums) for tiles of n <= kMost tokens, as
// even as they can be; the first tile finds the quad in memory, and each asks for its share of the
// next.
template <Format kFormat, int kMost, typename Dots>
struct TokenTiles {
    template <int kTokens, typename Ahead>
    static void some(const std::uint8_t* quad, std::size_t row_size,
                     const std::uint8_t* const* ready, std::size_t num_tokens, const Ahead& ahead,
                     float* sums) {
        if constexpr (kTokens > 1) {
            if (num_tokens < kTokens) {
                some<kTokens - 1>(quad, row_size, ready, num_tokens, ahead, sums);
                return;
            }
        }
        Dots::template of<kTokens>(quad, row_size, ready, ahead, sums);
    }

    static void dot_quad(const std::uint8_t* quad, std::size_t row_size,
                         const std::uint8_t* const* ready, std::size_t num_tokens, float* sums) {
        if (num_tokens <= kMost) {
            some<kMost>(quad, row_size, ready, num_tokens, Alone{}, sums);
            return;
        }
        const std::size_t num_tiles = (num_tokens + kMost - 1) / kMost;
        Sharing ahead{quad_bytes(kFormat, row_size), 0, num_tiles * kLine};
        for (std::size_t tile = 0; tile < num_tiles; ++tile, ahead.first += kLine) {
            const std::size_t first = tile * num_tokens / num_tiles;
            const std::size_t end = (tile + 1) * num_tokens / num_tiles;
            some<kMost>(quad, row_size, ready + first, end - first, ahead, sums + first * kQuad);
        }
    }
};

}  // namespace
}  // namespace moeprof
