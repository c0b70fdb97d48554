// Activation rows as the kernels read them, the same on every vector path.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.hpp"

namespace moeprof {

// Eight blocks of one quantised activation row, in the order in which packed weights are read. Of a
// last group that is not full, the lanes without a block hold anything, and nobody uses them.
struct alignas(kLine) ActivationGroup {
    std::int8_t words[8][kGroup][4];  // word k of block j: values 4 k to 4 k + 3
    float scales[kGroup];
    std::int32_t minus_8_sums[kGroup];  // takes back the offset of unsigned weights
};

// Bytes of one activation row made ready for a format: groups, or floats rounded to bf16.
constexpr std::size_t ready_bytes(Format format, std::size_t row_size) {
    if (format == Format::kBf16) return padded(row_size * sizeof(float));
    return (row_size / kBlockSize + kGroup - 1) / kGroup * sizeof(ActivationGroup);
}

}  // namespace moeprof
