// What a layer of experts is, what it is asked, and how it can fail.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arithmetic.hpp"
#include "layout.hpp"

namespace moeprof {

struct LayerShape {
    std::size_t hidden_size = 0;  // both sizes are multiples of 32
    std::size_t width = 0;
    std::size_t num_experts = 0;
    std::size_t top_k = 0;
    Format format = Format::kQ8_0;
    bool has_biases = false;
    GatedUnit unit;
};

// Activations and routing of some tokens: rows [num_tokens, hidden_size] of `type`, ids (kNoExpert:
// none) and weights [num_tokens, top_k]; weights matter to sums only.
struct Tokens {
    const void* rows = nullptr;
    FloatType type = FloatType::kFloat32;
    const std::uint16_t* ids = nullptr;
    const float* weights = nullptr;
    std::size_t num_tokens = 0;
};

// outputs [num_tokens, top_k, hidden_size] before weighting, sums [num_tokens, hidden_size] of
// `type`, rounded half to even from float32.
struct Results {
    float* outputs = nullptr;
    void* sums = nullptr;
    FloatType type = FloatType::kFloat32;
};

enum class DecodeFault { kNone, kUnknownExpert, kRepeatedExpert, kNotFinite, kBusy };

}  // namespace moeprof
