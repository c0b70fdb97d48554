// Many tokens through one layer of experts on a device: plain arguments, and the functions that
// launch it. The definition is decode_layer in reference/experts.py; block formats equal it bit for
// bit, wherever an expert lies and whoever computes it, `bf16` up to the order of additions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../prefill_room.hpp"
#include "layer.hpp"

namespace moeprof {

constexpr std::uint32_t kPrefillExperts = 1024;  // most experts of a layer

// How experts in host memory are computed: their bytes are copied to the device, or, in block
// formats, the host computes some of them meanwhile. The busiest are copied, as many as let both
// end at about the same time by these measured times.
struct HostTier {
    const std::uint64_t* address_of;  // [num_experts] packed bytes as the device sees them, or 0;
                                      // null: it sees none
    PrefillRoom* room;                // as the device sees it; null: the host computes none
    std::uint16_t* ids;               // of the room, as the device sees them
    const float* outputs;             // likewise
    float copy_ns;                    // of one expert over the bus
    float host_ns;                    // of one expert by the host's workers
    float host_token_ns;              // of each of its tokens, besides
};

// Most tokens of one pass over the weights.
std::uint32_t prefill_pass_tokens(const DeviceLayer& layer);

// Bytes of device memory for `num_tokens` tokens, whatever they hold, on a 256-byte boundary. With
// `copies`, experts may come from host memory.
std::size_t prefill_workspace_bytes(const DeviceLayer& layer, std::uint32_t num_tokens,
                                    bool copies);

// How a layer's products are launched.
struct PrefillLaunch {
    std::uint32_t blocks[2];  // of each, as many as the device runs at once
    std::uint32_t stages;
};

// Loads the kernels; null, or what the device lacks for this layer.
const char* prepare_prefill(const DeviceLayer& layer, PrefillLaunch& launch);

// What a pass asks of its caller after the question is in the room: to let the host answer, on
// another stream, and to wait for that on `stream`. Returns a cudaError_t.
struct HostAnswer {
    int (*begin)(void* context, const void* rows, std::size_t num_bytes, void* stream);
    int (*wait)(void* context, void* stream);
    void* context;
};

// Any number of tokens, in passes; output [num_tokens, hidden_size] of the hidden type. Returns a
// cudaError_t.
int prefill(const DeviceLayer& layer, const PrefillLaunch& launch, const LayerInput& input,
            void* output, const Counts& counts, const ExchangeView& exchange, const HostTier& tier,
            const HostAnswer& answer, void* workspace, void* stream);

}  // namespace moeprof
