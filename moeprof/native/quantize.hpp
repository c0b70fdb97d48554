// One expert's weights from a checkpoint's numbers to packed bytes; the definitions are quantize in
// reference/formats.py and pack_expert in reference/layout.py.
#pragma once

#include <cstdint>

#include "layer_shape.hpp"
#include "paths.hpp"
#include "workers.hpp"

namespace moeprof {

// Row-major numbers of one type: gate and up [width, hidden_size], down [hidden_size, width]; with
// biases [width], [width], [hidden_size], or null.
struct ExpertValues {
    const void* gate;
    const void* up;
    const void* down;
    FloatType type;
    const void* gate_bias = nullptr;
    const void* up_bias = nullptr;
    const void* down_bias = nullptr;
};

// Fills the expert_bytes at `packed`, four rows at a time by whichever worker is free. After a
// fault they hold nothing of use. Reads each number once and writes each byte once; bound by
// arithmetic. The pool must be the caller's.
WeightFault quantize_expert(const LayerShape& shape, const Path& path, const ExpertValues& values,
                            Workers& workers, std::uint8_t* packed);

// The same for one matrix [num_rows, row_size]: fills num_quads(num_rows) quads at `packed`.
WeightFault quantize_matrix(Format format, const Path& path, const void* values, FloatType type,
                            std::size_t num_rows, std::size_t row_size, Workers& workers,
                            std::uint8_t* packed);

}  // namespace moeprof
