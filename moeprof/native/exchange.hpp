// What the device and the host's answering thread share: one layer's question and its answer, in
// host memory that both see.
//
// All but the header is words of 64 bits that carry 32 bits of data and, above, the number of their
// question. A word is written and read whole, so who sees the number has the data: no flag is
// looked at first, no order between words is kept, and nobody waits for more than the words that he
// needs. One layer is asked at a time, so one buffer is enough.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arithmetic.hpp"
#include "ready_rows.hpp"

namespace moeprof {

constexpr std::size_t kExchangeTokens = 8;  // of one question: those of one decode

// `answered` of an exchange that was given up; nobody waits for words then.
constexpr std::uint64_t kAborted = ~std::uint64_t{0};

// Bits of a word of faults; what they mean in words stands in cuda.py.
enum ExchangeFault : std::uint32_t {
    kFaultNotFinite = 1,       // an activation, given or between the projections
    kFaultUnknownExpert = 2,   // of which neither side has the weights
    kFaultRepeatedExpert = 4,  // twice in a token's slots
    kFaultNoAnswer = 8,        // the answering thread did not answer in time, or was stopped
    kFaultUnknownLayer = 16,   // of which the answering thread has no experts
    kFaultBusy = 32,           // the host's layer or workers served another thread
};

constexpr std::uint32_t kNumFaults = 6;

struct ExchangeHeader {
    // Written by the device: the last question, tagged like every word; 0 before the first.
    alignas(64) std::uint64_t posted;
    // Not 0 for each fault that was met, bit after bit: a device cannot add bits to a host's word.
    alignas(64) std::uint32_t device_faults[kNumFaults];
    // Written by the host: the number of the last question answered, or kAborted; also by a device
    // that gave up.
    alignas(64) std::uint64_t answered;
    alignas(64) std::uint32_t host_fault;
};

namespace {

MOEPROF_SHARED std::uint64_t tagged(std::uint32_t data, std::uint32_t number) {
    return std::uint64_t{number} << 32 | data;
}

MOEPROF_SHARED std::uint32_t number_of(std::uint64_t word) {
    return static_cast<std::uint32_t>(word >> 32);
}

}  // namespace

// What `posted` says.
struct Question {
    std::uint32_t number = 0;  // never 0
    std::uint32_t layer = 0;
    std::uint32_t num_tokens = 0;
    bool wants_sums = false;  // the weighted sums alone: every expert is on the host
    bool is_timed = false;

    MOEPROF_SHARED std::uint64_t word() const {
        return tagged(
            layer | num_tokens << 16 | (wants_sums ? 1u << 30 : 0u) | (is_timed ? 1u << 31 : 0u),
            number);
    }
    MOEPROF_SHARED static Question of(std::uint64_t word) {
        const auto data = static_cast<std::uint32_t>(word);
        return {number_of(word), data & 0xFFFFu, data >> 16 & 0xFFu, (data >> 30 & 1u) != 0,
                data >> 31 != 0};
    }
};

// Where the parts of an exchange begin, in bytes from its header. T = kExchangeTokens; a layer uses
// the beginning of each part, its own sizes as strides.
struct ExchangeLayout {
    std::size_t rows;     // [T, ready_bytes / 4], the question: rows ready for the layer's format
    std::size_t ids;      // [T, top_k]; 65535 where the host has nothing to compute
    std::size_t weights;  // [T, top_k] float32
    std::size_t outputs;  // [T, top_k, hidden_size] float32, the answer, not weighted
    std::size_t sums;     // [T, hidden_size] float32, weighted and added in slot order
    std::size_t num_bytes;
};

constexpr std::size_t exchanged_row_bytes(std::size_t hidden_size) {
    const std::size_t quantized = ready_bytes(Format::kQ8_0, hidden_size);
    const std::size_t rounded = ready_bytes(Format::kBf16, hidden_size);
    return quantized > rounded ? quantized : rounded;
}

constexpr ExchangeLayout exchange_layout(std::size_t hidden_size, std::size_t top_k) {
    constexpr std::size_t kPart = 256;
    const auto after = [](std::size_t start, std::size_t num_words) {
        return (start + num_words * sizeof(std::uint64_t) + kPart - 1) / kPart * kPart;
    };
    constexpr std::size_t kHeaderWords = sizeof(ExchangeHeader) / sizeof(std::uint64_t);
    ExchangeLayout layout{};
    layout.ids = after(0, kHeaderWords);
    layout.weights = after(layout.ids, kExchangeTokens * top_k);
    layout.rows = after(layout.weights, kExchangeTokens * top_k);
    layout.outputs =
        after(layout.rows, kExchangeTokens * exchanged_row_bytes(hidden_size) / sizeof(float));
    layout.sums = after(layout.outputs, kExchangeTokens * top_k * hidden_size);
    layout.num_bytes = after(layout.sums, kExchangeTokens * hidden_size);
    return layout;
}

}  // namespace moeprof
