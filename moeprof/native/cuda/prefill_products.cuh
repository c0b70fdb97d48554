// The two products of a prefill: gate and up with the unit between, and down; one launch each.
//
// Every block computes tiles: 64 rows of weights (32 of gate and the same of up, or 64 of down) by
// up to 32 of an expert's tokens (bf16: 64). Experts that lie in host memory come panel by panel
// through a ring in device memory: some blocks copy, some compute what has come, the others compute
// what is resident.
//
// Bytes: the packed bytes of an expert once for every 32 (64) of its tokens, all but the first time
// from the second-level cache, as are the rows made ready, once for every panel; the results,
// [pairs, width] made ready and [pairs, hidden_size] float32. Bound by device memory up to some 30
// tokens for each expert, then by the 4 float32 operations of each block's term (prefill_multiply);
// with experts in host memory by the bus.
#pragma once

#include "prefill_multiply.cuh"
#include "prefill_plan.cuh"

namespace moeprof {
namespace {

// The unit's values of a tile, [tokens, 32 and some so that banks differ].
constexpr std::uint32_t kValuesStride = 36;

// Shared memory: those values, what is known of the tiles, stages.
template <Format kFormat>
struct ProductMemory {
    static constexpr std::uint32_t kQueue =
        StageOf<kFormat>::kTokens * kValuesStride * sizeof(float);
    static constexpr std::uint32_t kStages = (kQueue + sizeof(TileQueue) + 127) / 128 * 128;

    __host__ static constexpr std::uint32_t num_bytes(std::uint32_t stages) {
        return kStages + stages * StageOf<kFormat>::kBytes;
    }
};

// Waits until at most `pending` batches are under way.
__device__ __forceinline__ void wait_for_all_but(std::uint32_t pending) {
    static_assert(kMostStages == 4);
    if (pending == 2) {
        wait_for_batches<2>();
    } else if (pending == 1) {
        wait_for_batches<1>();
    } else {
        wait_for_batches<0>();
    }
}

__device__ inline const float* biases_of(const DeviceLayer& layer, const std::uint8_t* packed) {
    return reinterpret_cast<const float*>(
        packed + expert_bytes(layer.format, layer.hidden_size, layer.width, false));
}

// The unit of gate and up; their values, made ready, are rows of `between`.
template <Format kFormat>
__device__ void finish_gate_up(const PrefillCall& call, const Tile& tile,
                               const LanePlace<kFormat, Projection::kGateUp>& lane,
                               const Sums<kFormat>& sums, float* values) {
    const DeviceLayer& layer = call.layer;
    if (lane.first_token() < tile.num_tokens) {
        const float* biases = layer.has_biases ? biases_of(layer, tile.packed) : nullptr;
#pragma unroll
        for (int column = 0; column < Sums<kFormat>::kColumns; ++column) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const std::uint32_t row = lane.half * 16 + lane.g + i / 2 * 8;
                float gate = sums.total(0, column, i), up = sums.total(1, column, i);
                if (biases != nullptr) {
                    gate = gate + biases[tile.panel * kBlock + row];
                    up = up + biases[layer.width + tile.panel * kBlock + row];
                }
                const std::uint32_t token = lane.first_token() + column * 8 + lane.t * 2 + i % 2;
                values[token * kValuesStride + row] = gated(layer.unit, gate, up);
            }
        }
    }
    __syncthreads();
    using Ready = ReadyOf<kFormat>;
    const std::uint32_t row_bytes = Ready::row_bytes(layer.width);
    const std::uint32_t part = threadIdx.x % 8;
    // The last panel also fills up the last group.
    std::uint32_t end = tile.panel + 1;
    if (end == layer.width / kBlock) {
        end = groups_of(layer.width, GroupOf<kFormat>::kValues) * Ready::kGroupBlocks;
    }
    bool is_finite = true;
    for (std::uint32_t start = 0; start < StageOf<kFormat>::kTokens; start += kTileThreads / 8) {
        const std::uint32_t token = start + threadIdx.x / 8;
        const bool writes = token < tile.num_tokens;
        std::uint8_t* row =
            call.between + std::size_t{tile.first + (writes ? token : 0)} * row_bytes;
        float4 own = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (writes) {
            own = *reinterpret_cast<const float4*>(values + token * kValuesStride + part * 4);
        }
        for (std::uint32_t block = tile.panel; block < end; ++block) {
            is_finite &= make_tile_row_ready<kFormat>(own, part, row, block, writes);
            own = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    }
    if (!is_finite) report(call.exchange, kFaultNotFinite);
}

template <Format kFormat>
__device__ void finish_down(const PrefillCall& call, const Tile& tile,
                            const LanePlace<kFormat, Projection::kDown>& lane,
                            const Sums<kFormat>& sums) {
    const DeviceLayer& layer = call.layer;
    if (lane.first_token() >= tile.num_tokens) return;
    const float* biases =
        layer.has_biases ? biases_of(layer, tile.packed) + 2 * layer.width : nullptr;
#pragma unroll
    for (int matrix = 0; matrix < 2; ++matrix) {
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
            const std::uint32_t row =
                tile.panel * kPanelRows + matrix * 32 + lane.half * 16 + upper * 8 + lane.g;
            if (row >= layer.hidden_size) continue;
            const float bias = biases != nullptr ? biases[row] : 0.0f;
#pragma unroll
            for (int column = 0; column < 2 * Sums<kFormat>::kColumns; ++column) {
                const std::uint32_t token =
                    lane.first_token() + column / 2 * 8 + lane.t * 2 + column % 2;
                if (token >= tile.num_tokens) continue;
                float sum = sums.total(matrix, column / 2, upper * 2 + column % 2);
                if (biases != nullptr) sum = sum + bias;
                call.results[std::size_t{tile.first + token} * layer.hidden_size + row] = sum;
            }
        }
    }
}

template <Format kFormat, Projection kProjection>
__device__ __forceinline__ void compute_tiles(const PrefillCall& call, const Share& share) {
    using Stage = StageOf<kFormat>;
    std::uint8_t* memory = dynamic_memory();
    auto& queue = *reinterpret_cast<TileQueue*>(memory + ProductMemory<kFormat>::kQueue);
    if (threadIdx.x == 0) queue.share = share;
    __syncthreads();
    const LanePlace<kFormat, kProjection> lane;
    Loader<kFormat, kProjection> loader(call, queue);
    const SharedAddress ring = address_of(memory + ProductMemory<kFormat>::kStages);
#pragma unroll 1
    for (std::uint32_t ahead = 0; ahead + 1 < call.stages; ++ahead) {
        loader.push(ring + ahead * Stage::kBytes);
    }
    const std::uint32_t groups = call.shapes[static_cast<int>(kProjection)].groups;
    std::uint32_t stage = 0;
    const std::uint32_t num_tiles =
        share.first < share.num_tiles ? (share.num_tiles - share.first - 1) / share.step + 1 : 0;
#pragma unroll 1
    for (std::uint32_t computed = 0; computed < num_tiles; ++computed) {
        const Tile& tile = queue.tiles[computed % TileQueue::kTiles];
        Sums<kFormat> sums;
        sums.clear();
        bool takes_part = false;
#pragma unroll 1
        for (std::uint32_t group = 0; group < groups; ++group) {
            wait_for_all_but(call.stages - 2);
            __syncthreads();
            if (group == 0) takes_part = lane.first_token() < tile.num_tokens;
            if (group + 1 == groups && threadIdx.x == 0 && tile.ring_place != kNowhere) {
                PanelRing& panels = call.state->rings[static_cast<int>(kProjection)];
                __threadfence();
                atomicSub(&panels.waiting[tile.ring_place], 1u);
            }
            const std::uint32_t free = stage == 0 ? call.stages - 1 : stage - 1;
            loader.push(ring + free * Stage::kBytes);
            if (takes_part) {
                multiply<kFormat, kProjection>(ring + stage * Stage::kBytes, lane, sums);
            }
            stage = stage + 1 == call.stages ? 0 : stage + 1;
        }
        if constexpr (kProjection == Projection::kGateUp) {
            finish_gate_up<kFormat>(call, tile, lane, sums, reinterpret_cast<float*>(memory));
        } else {
            finish_down<kFormat>(call, tile, lane, sums);
        }
    }
}

// Copies every kCopyBlocks-th panel of the copied experts from host memory into the ring.
template <Format kFormat, Projection kProjection>
__device__ void copy_panels(const PrefillCall& call, std::uint32_t first, std::uint32_t step) {
    constexpr std::uint32_t kAhead = 8;  // loads under way
    const PanelShape& shape = call.shapes[static_cast<int>(kProjection)];
    PanelRing& ring = call.state->rings[static_cast<int>(kProjection)];
    const std::uint32_t num_panels = call.state->copied_experts * shape.panels;
    for (std::uint32_t number = first; number < num_panels; number += step) {
        const CopiedExpert expert = call.copied[number / shape.panels];
        const std::uint32_t panel = number % shape.panels, place = number % kRingPanels;
        if (threadIdx.x == 0) {
            // The place's panel before this one may still be on its way, by another block.
            const std::uint32_t before = number < kRingPanels ? 0 : number + 1 - kRingPanels;
            while (load_acquire(&ring.arrived[place]) != before) pause();
            while (load_acquire(&ring.waiting[place]) != 0) pause();
        }
        __syncthreads();
        const auto* from = reinterpret_cast<const uint4*>(expert.packed + shape.panel_start(panel));
        auto* to = reinterpret_cast<uint4*>(call.ring + std::size_t{place} * shape.panel_bytes());
        const std::uint32_t size =
            shape.panel_quads(panel) * shape.quad_bytes / static_cast<std::uint32_t>(sizeof *to);
        for (std::uint32_t start = threadIdx.x; start < size; start += kAhead * kTileThreads) {
            uint4 words[kAhead];
#pragma unroll
            for (std::uint32_t i = 0; i < kAhead; ++i) {
                const std::uint32_t at = start + i * kTileThreads;
                words[i] = at < size ? __ldcs(from + at) : make_uint4(0, 0, 0, 0);
            }
#pragma unroll
            for (std::uint32_t i = 0; i < kAhead; ++i) {
                const std::uint32_t at = start + i * kTileThreads;
                if (at < size) to[at] = words[i];
            }
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            ring.waiting[place] = expert.num_runs;
            __threadfence();
            store_release(&ring.arrived[place], number + 1);
        }
    }
}

// Blocks that compute what comes through the ring. A block opens tiles before it has read those it
// computes; the ring must be longer than what all of them have opened, or nobody goes on.
__device__ inline std::uint32_t ring_blocks(std::uint32_t stages, std::uint32_t groups,
                                            std::uint32_t num_blocks) {
    const std::uint32_t opened = (stages - 2) / groups + 1;
    return max(1u, min(min(kStreamBlocks, (kRingPanels - 1) / opened), num_blocks / 4));
}

template <Format kFormat, Projection kProjection>
__global__ void __launch_bounds__(kTileThreads, 2)
    prefill_products_kernel(const __grid_constant__ PrefillCall call) {
    const PrefillState& state = *call.state;
    const PanelShape& shape = call.shapes[static_cast<int>(kProjection)];
    Share share{call.runs, blockIdx.x, gridDim.x, state.resident_runs * shape.panels, false};
    if (state.copied_runs > 0) {
        const std::uint32_t copying = max(1u, min(kCopyBlocks, gridDim.x / 8));
        const std::uint32_t from_ring = ring_blocks(call.stages, shape.groups, gridDim.x);
        if (blockIdx.x < copying) {
            copy_panels<kFormat, kProjection>(call, blockIdx.x, copying);
            return;
        }
        const std::uint32_t block = blockIdx.x - copying;
        if (block < from_ring) {
            share = {call.runs + state.resident_runs, block, from_ring,
                     state.copied_runs * shape.panels, true};
        } else {
            share.first = block - from_ring;
            share.step = gridDim.x - copying - from_ring;
        }
    }
    compute_tiles<kFormat, kProjection>(call, share);
}

}  // namespace
}  // namespace moeprof
