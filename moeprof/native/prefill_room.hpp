// What a device's stream and the host share while many tokens go through a layer some of whose
// experts the host computes: one question and its answer, in host memory that both see.
//
// The device writes a question; the stream then calls `answer`, which returns when the outputs are
// there. One layer is asked at a time, so one room is enough.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arithmetic.hpp"

namespace moeprof {

struct PrefillRoom {
    // Who answers: `answer` is called with the room.
    void (*answer)(void* room);
    void* answerer;
    // The question, for `num_tokens` tokens.
    std::uint32_t layer;
    std::uint32_t num_tokens;
    std::uint32_t num_slots;  // that the host is to compute; 0: there is nothing to do
    FloatType hidden_type;
    // Where the parts are, as the host sees them.
    const void* rows;          // [num_tokens, hidden_size] of the hidden type
    const std::uint16_t* ids;  // [num_tokens, top_k]; 65535 where the host has nothing to compute
    float* outputs;            // [num_tokens, top_k, hidden_size], the answer, not weighted
};

// Where the parts of a room begin, in bytes from the room itself.
struct PrefillRoomLayout {
    std::size_t rows;
    std::size_t ids;
    std::size_t outputs;
    std::size_t num_bytes;
};

constexpr PrefillRoomLayout prefill_room_layout(std::size_t hidden_size, std::size_t top_k,
                                                std::size_t num_tokens) {
    constexpr std::size_t kPart = 256;
    const auto after = [](std::size_t start, std::size_t num_bytes) {
        return (start + num_bytes + kPart - 1) / kPart * kPart;
    };
    PrefillRoomLayout layout{};
    layout.rows = after(0, sizeof(PrefillRoom));
    layout.ids = after(layout.rows, num_tokens * hidden_size * sizeof(float));
    layout.outputs = after(layout.ids, num_tokens * top_k * sizeof(std::uint16_t));
    layout.num_bytes = after(layout.outputs, num_tokens * top_k * hidden_size * sizeof(float));
    return layout;
}

}  // namespace moeprof
