// Plain arguments of the CUDA kernels of one layer of experts, and the functions that launch them.
// Addresses are the device's; nothing here synchronises or allocates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../arithmetic.hpp"
#include "../exchange.hpp"
#include "../layout.hpp"

namespace moeprof {

constexpr std::uint32_t kDecodeTokens = 8;      // of one launch, and of one question to the host
constexpr std::uint32_t kMaxDecodePairs = 256;  // tokens times slots

// One layer's experts in device memory: expert e lies at packed + slot_of[e] * stride, or nowhere
// on this device if slot_of[e] is negative. No kernel that lets its successor start before its own
// end may write slot_of.
struct DeviceLayer {
    std::uint32_t index;        // by which the host's answering thread knows it
    std::uint32_t hidden_size;  // both sizes are multiples of 32
    std::uint32_t width;
    std::uint32_t num_experts;
    std::uint32_t top_k;
    Format format;
    bool has_biases;
    GatedUnit unit;
    const std::uint8_t* packed;
    std::uint64_t stride;
    const std::int32_t* slot_of;
};

// One forward's routing and activations. An id outside [0, num_experts) or a weight of 0 is no
// expert.
struct LayerInput {
    const void* hidden;  // [num_tokens, hidden_size]
    FloatType hidden_type;
    const std::int64_t* ids;  // [num_tokens, top_k]
    const void* weights;      // [num_tokens, top_k]
    FloatType weights_type;
    std::uint32_t num_tokens;
};

// Some tokens of a forward.
inline LayerInput part_of(const DeviceLayer& layer, const LayerInput& input, std::uint32_t first,
                          std::uint32_t num_tokens) {
    LayerInput part = input;
    const std::size_t pairs = std::size_t{first} * layer.top_k;
    part.hidden = static_cast<const std::uint8_t*>(input.hidden) +
                  std::size_t{first} * layer.hidden_size * float_bytes(input.hidden_type);
    part.ids = input.ids + pairs;
    part.weights =
        static_cast<const std::uint8_t*>(input.weights) + pairs * float_bytes(input.weights_type);
    part.num_tokens = num_tokens;
    return part;
}

// [num_experts] each, or null: the slots an expert was given are added, and 1 if there were any.
// nanoseconds [kDeviceTimes] are added to, or null.
struct Counts {
    std::int64_t* assignments;
    std::int64_t* reads;
    std::uint64_t* nanoseconds;
};

// Between the layer before and this one; for the experts on this device; waiting for the host.
enum DeviceTime { kTimeBefore, kTimeResident, kTimeWaiting, kDeviceTimes };

// The device's view of an exchange; all null where there is none.
struct ExchangeView {
    ExchangeHeader* header;
    std::uint64_t* rows;
    std::uint64_t* ids;
    std::uint64_t* weights;
    const std::uint64_t* outputs;
    const std::uint64_t* sums;
    std::uint64_t timeout_ns;
};

// What a thread block leaves to its successor in the next decode; the same in all blocks of one.
struct alignas(16) BlockState {
    std::uint32_t launches;  // ever
    std::uint32_t num_used;  // words between the projections in the last launch
    std::uint32_t posted;    // number of the last question to the host
    std::uint32_t unused;
};

constexpr std::uint32_t kMostBlocks = 1024;

// Device memory that the decodes of a stream pass on; zero before the first.
struct DecodeState {
    std::uint64_t ended;  // when the last timed layer or `begin_step` did, in nanoseconds
    BlockState blocks[kMostBlocks];
};

// Bytes of a decode's workspace: its state and, behind it, the values between the projections. It
// belongs to one exchange: the questions' numbers are counted in it.
std::size_t decode_workspace_bytes(const DeviceLayer& layer);

// Loads the kernels that a layer's decode may launch, so that a launch can be captured in a graph;
// null, or what the device lacks for this layer.
const char* prepare_decode(const DeviceLayer& layer);

// Any number of tokens, at most kDecodeTokens in a launch and fewer where shared memory does not
// hold them; output [num_tokens, hidden_size] of the hidden type. With `overlaps`, a launch takes
// its place while the kernel before it on the stream ends.
//
// Returns a cudaError_t.
int decode(const DeviceLayer& layer, const LayerInput& input, void* output, const Counts& counts,
           const ExchangeView& exchange, void* workspace, bool overlaps, void* stream);

// Marks, in a decode's workspace, the moment from which the next timed layer counts. Returns a
// cudaError_t.
int begin_step(void* workspace, void* stream);

// XOR of the 64-bit words of `num_bytes`, a multiple of 16 on a 16-byte boundary, added by XOR to
// *result: a plain read of device memory, bound by it. Returns a cudaError_t.
int xor_words(const void* bytes, std::size_t num_bytes, std::uint64_t* result, void* stream);

}  // namespace moeprof
