// One packed matrix times activation rows; the definition is project in reference/dots.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arithmetic.hpp"
#include "layer_shape.hpp"
#include "paths.hpp"
#include "workers.hpp"

namespace moeprof {

struct PackedMatrix {
    Format format = Format::kQ8_0;
    std::size_t num_rows = 0;  // both sizes are multiples of 32
    std::size_t row_size = 0;
    const std::uint8_t* packed = nullptr;  // as pack_rows leaves it, on a cache line
    const float* bias = nullptr;           // [num_rows], or null; added to the sums in float32
};

// rows [num_tokens, row_size] and output [num_tokens, num_rows] of `type`, the latter rounded half
// to even. Reads the packed bytes once for up to kMaxTokens tokens, by row streams bound by memory;
// once for every kTile tokens beyond, bound by integer arithmetic. The pool must be the caller's.
DecodeFault multiply(const PackedMatrix& matrix, const Path& path, Workers& workers,
                     const void* rows, FloatType type, std::size_t num_tokens, void* output);

}  // namespace moeprof
