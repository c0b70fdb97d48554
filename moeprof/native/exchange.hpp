// What the device and the host's answering thread share: one layer's question and its answer, in
// host memory that both see.
//
// The device writes a question and then `posted`; the host answers and then writes the same number
// into `answered`. Who waits sees the other's writes that came before the number. One layer is
// asked at a time, so one buffer is enough.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moeprof {

constexpr std::size_t kExchangeTokens = 8;  // of one question: those of one decode

// `answered` of an exchange that was given up: larger than any number, so that nobody waits.
constexpr std::uint64_t kAborted = ~std::uint64_t{0};

// Bits of the two words of faults; what they mean in words stands in cuda.py.
enum ExchangeFault : std::uint32_t {
    kFaultNotFinite = 1,       // an activation, given or between the projections
    kFaultUnknownExpert = 2,   // of which neither side has the weights
    kFaultRepeatedExpert = 4,  // twice in a token's slots
    kFaultNoAnswer = 8,        // the answering thread did not answer in time, or was stopped
    kFaultUnknownLayer = 16,   // of which the answering thread has no experts
    kFaultBusy = 32,           // the host's layer or workers served another thread
};

struct ExchangeHeader {
    // Written by the device.
    alignas(64) std::uint64_t posted;
    std::uint32_t layer;
    std::uint32_t num_tokens;
    std::uint32_t is_timed;  // whether the host adds up how long its answer takes
    alignas(64) std::uint32_t device_fault;
    // Written by the host (`answered` also by a device that gave up).
    alignas(64) std::uint64_t answered;
    alignas(64) std::uint32_t host_fault;
};

// Where the parts of an exchange begin, in bytes from its header. T = kExchangeTokens; a layer uses
// the beginning of each part, its own sizes as strides.
struct ExchangeLayout {
    std::size_t rows;     // [T, hidden_size] float32, the question
    std::size_t ids;      // [T, top_k] uint16; 65535 where the host has nothing to compute
    std::size_t weights;  // [T, top_k] float32
    std::size_t outputs;  // [T, top_k, hidden_size] float32, the answer, not weighted
    std::size_t sums;     // [T, hidden_size] float32, weighted and added in slot order
    std::size_t num_bytes;
};

constexpr ExchangeLayout exchange_layout(std::size_t hidden_size, std::size_t top_k) {
    constexpr std::size_t kPart = 256;
    const auto after = [](std::size_t start, std::size_t num_bytes) {
        return (start + num_bytes + kPart - 1) / kPart * kPart;
    };
    ExchangeLayout layout{};
    layout.rows = after(0, sizeof(ExchangeHeader));
    layout.ids = after(layout.rows, kExchangeTokens * hidden_size * sizeof(float));
    layout.weights = after(layout.ids, kExchangeTokens * top_k * sizeof(std::uint16_t));
    layout.outputs = after(layout.weights, kExchangeTokens * top_k * sizeof(float));
    layout.sums = after(layout.outputs, kExchangeTokens * top_k * hidden_size * sizeof(float));
    layout.num_bytes = after(layout.sums, kExchangeTokens * hidden_size * sizeof(float));
    return layout;
}

}  // namespace moeprof
