// What the kernels of a prefill hand on to each other in device memory.
#pragma once

#include "prefill.hpp"
#include "routing.cuh"

namespace moeprof {
namespace {

constexpr std::uint32_t kPanelQuads = 16;  // quads of a panel: the weights of a tile
constexpr std::uint32_t kPanelRows = kPanelQuads * kQuad;
// Places in the ring through which panels come from host memory; more than blocks that use them.
constexpr std::uint32_t kRingPanels = 72;
constexpr std::uint32_t kStreamBlocks = 64;
constexpr std::uint32_t kCopyBlocks = 28;

// Stages of a block's ring in shared memory: as many as let two blocks run at once.
constexpr std::uint32_t kLeastStages = 2;
constexpr std::uint32_t kMostStages = 4;

// Of `places`: an expert that this device does not compute.
constexpr std::uint32_t kOnHost = 0xFFFFFFFE;
constexpr std::uint32_t kNowhere = 0xFFFFFFFF;

enum class Projection { kGateUp, kDown };

template <Format kFormat>
struct TileOf {
    static constexpr std::uint32_t kTokens = kFormat == Format::kBf16 ? 64 : 32;
};

__host__ __device__ constexpr std::uint32_t tile_tokens(Format format) {
    return format == Format::kBf16 ? 64 : 32;
}

// The unit for matrices counts from the bits of this float32, 1.5 * 2^23, whose last place is 1: a
// product's bits are then those of the sum of both, as a float32. q4_0 counts sixteenths.
constexpr float kCountFrom = 12582912.0f;
constexpr int kCountFromBits = 0x4B400000;
constexpr float kCountSixteenths = 786432.0f;  // 1.5 * 2^19
constexpr int kCountSixteenthsBits = 0x49400000;

// Activation rows made ready for tiles, in groups of 256 values (bf16: 128), the last one filled up
// with zeros. Block formats: for each pair of blocks and t of 0 to 3 words t and t + 4 of the first
// and of the second block; then for each block its float32 scale. bf16: as GroupOf has them.
template <Format kFormat>
struct ReadyOf {
    static constexpr std::uint32_t kRowBytes = 256;  // of a group, without what follows
    static constexpr std::uint32_t kScaleBytes = kFormat == Format::kBf16 ? 0 : sizeof(float);
    static constexpr std::uint32_t kGroupBytes = kRowBytes + kBlocksAbreast * kScaleBytes;
    static constexpr std::uint32_t kGroupBlocks = GroupOf<kFormat>::kValues / kBlock;

    __host__ __device__ static constexpr std::uint32_t row_bytes(std::uint32_t row_size) {
        return groups_of(row_size, GroupOf<kFormat>::kValues) * kGroupBytes;
    }
};

// A run of at most tile_tokens of the tokens of one expert. All runs of an expert stand together
// and say the same.
struct PrefillRun {
    const std::uint8_t* packed;  // the expert, in host memory if it is copied
    std::uint32_t first;         // place of its first token
    std::uint32_t num_tokens;
    std::uint32_t first_run;  // among the runs of resident, or of copied experts
    std::uint32_t num_runs;
    std::uint32_t order;  // of a copied expert among them
    std::uint32_t unused;
};
static_assert(sizeof(PrefillRun) == 32);

struct CopiedExpert {
    const std::uint8_t* packed;
    std::uint32_t num_runs;
    std::uint32_t unused;
};

// Panels arrive in the ring in one order, that of the copied experts; each is used by every run of
// its expert.
struct PanelRing {
    std::uint32_t arrived[kRingPanels];  // 1 + the panel's number in that order
    std::uint32_t waiting[kRingPanels];  // runs that have not read it yet
};

struct PrefillState {
    std::uint32_t resident_runs;
    std::uint32_t copied_runs;
    std::uint32_t copied_experts;
    std::uint32_t unused;
    PanelRing rings[2];  // of each projection
};

// The sizes of a projection.
struct PanelShape {
    std::uint32_t row_size;
    std::uint32_t groups;  // of a row
    std::uint32_t quads;   // of all panels
    std::uint32_t panels;  // of an expert
    std::uint32_t quad_bytes;
    std::uint32_t start;  // of the first panel in a packed expert

    __device__ std::uint32_t panel_quads(std::uint32_t panel) const {
        return min(kPanelQuads, quads - panel * kPanelQuads);
    }
    __device__ std::uint32_t panel_start(std::uint32_t panel) const {
        return start + panel * kPanelQuads * quad_bytes;
    }
    // In the ring.
    __device__ std::uint32_t panel_bytes() const { return kPanelQuads * quad_bytes; }
};

struct PrefillCall {
    DeviceLayer layer;
    PanelShape shapes[2];  // of each projection
    std::uint32_t stages;
    LayerInput input;  // of this pass
    void* output;
    Counts counts;
    LayerInput counted;  // of the whole call; no tokens if this pass does not count
    ExchangeView exchange;
    HostTier tier;
    // In the workspace.
    PrefillState* state;
    CopiedExpert* copied;   // [num_experts]
    PrefillRun* runs;       // of resident experts, then of copied ones
    std::uint16_t* ids;     // [pairs]
    std::uint32_t* places;  // [pairs] place in the order of experts
    std::uint32_t* tokens;  // [pairs] the token at a place
    std::uint8_t* rows;     // [num_tokens] made ready
    std::uint8_t* between;  // [pairs] made ready, by place
    float* results;         // [pairs, hidden_size] by place
    std::uint8_t* ring;     // [kRingPanels] panels
};

}  // namespace
}  // namespace moeprof
