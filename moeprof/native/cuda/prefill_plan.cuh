// Before the products of a prefill: who computes which expert, the order of the tokens, and their
// rows made ready.
//
// Block 0 plans, block 1 counts, the others make rows ready. Bytes: hidden [num_tokens,
// hidden_size] once, its ready form once, ids and weights a few times; what takes the time is the
// plan's row of steps in one block.
#pragma once

#include "prefill_call.cuh"

namespace moeprof {
namespace {

constexpr std::uint32_t kPlanThreads = 1024;

struct PlanMemory {
    std::uint32_t counts[kPrefillExperts];   // tokens of an expert
    std::uint32_t sorted[kPrefillExperts];   // those of experts that can be copied, most first
    std::uint32_t tokens[kPrefillExperts];   // by job: an expert computed here
    std::uint32_t runs[kPrefillExperts];     // likewise
    std::uint32_t cursors[kPrefillExperts];  // next place of an expert, kOnHost or kNowhere
    std::uint32_t firsts[kPrefillExperts];   // by job: first place
    const std::uint8_t* packed[kPrefillExperts];
    std::uint32_t sums[kWarp];
    float float_sums[kWarp];
    unsigned long long best;
};

// Sum of the values of the threads before this one; `total` is that of all. Every thread of the
// block takes part.
__device__ inline std::uint32_t sum_before(std::uint32_t value, std::uint32_t* sums,
                                           std::uint32_t& total) {
    const std::uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    std::uint32_t sum = value;
#pragma unroll
    for (unsigned far = 1; far < kWarp; far *= 2) {
        const std::uint32_t before = __shfl_up_sync(kAllLanes, sum, far);
        if (lane >= far) sum += before;
    }
    __syncthreads();
    if (lane == kWarp - 1) sums[warp] = sum;
    __syncthreads();
    std::uint32_t before = 0;
    total = 0;
    for (std::uint32_t w = 0; w < blockDim.x / kWarp; ++w) {
        if (w < warp) before += sums[w];
        total += sums[w];
    }
    return before + sum - value;
}

__device__ inline void read_ids(const PrefillCall& call, std::uint32_t num_pairs,
                                PlanMemory& memory) {
    const std::uint32_t top_k = call.layer.top_k;
    for (std::uint32_t pair = threadIdx.x; pair < num_pairs; pair += kPlanThreads) {
        const float weight = load_value(call.input.weights, call.input.weights_type, pair);
        const std::uint32_t id = expert_of(call.input, call.layer.num_experts, pair, weight);
        call.ids[pair] = static_cast<std::uint16_t>(id);
        if (id != kNoExpertId) atomicAdd(&memory.counts[id], 1u);
    }
    __syncthreads();
    bool is_repeated = false;
    for (std::uint32_t pair = threadIdx.x; pair < num_pairs; pair += kPlanThreads) {
        const std::uint32_t id = call.ids[pair];
        if (id == kNoExpertId) continue;
        for (std::uint32_t earlier = pair / top_k * top_k; earlier < pair; ++earlier) {
            is_repeated |= call.ids[earlier] == id;
        }
    }
    if (is_repeated) report(call.exchange, kFaultRepeatedExpert);
}

// How many of the experts that can be copied, the busiest first, are copied. `num_tokens`: of the
// host's other experts, of which there are `num_others`.
__device__ inline std::uint32_t choose_copied(const HostTier& tier, std::uint32_t num_candidates,
                                              std::uint32_t num_others, std::uint32_t num_tokens,
                                              PlanMemory& memory) {
    if (tier.room == nullptr) return num_candidates;
    const std::uint32_t own = threadIdx.x < num_candidates ? memory.sorted[threadIdx.x] : 0;
    std::uint32_t all = 0;
    const std::uint32_t busier = sum_before(own, memory.sums, all);
    // With this thread's number of copied experts, and for the last candidate with all of them.
    const auto time = [&](std::uint32_t copied, std::uint32_t host_tokens) {
        const float host = static_cast<float>(num_candidates - copied + num_others) * tier.host_ns +
                           static_cast<float>(host_tokens) * tier.host_token_ns;
        return fmaxf(static_cast<float>(copied) * tier.copy_ns, host);
    };
    if (threadIdx.x == 0) {
        memory.best =
            std::uint64_t{bits_of(time(num_candidates, num_tokens))} << 32 | num_candidates;
    }
    __syncthreads();
    if (threadIdx.x < num_candidates) {
        const float found = time(threadIdx.x, all - busier + num_tokens);
        atomicMin(&memory.best,
                  static_cast<unsigned long long>(bits_of(found)) << 32 | threadIdx.x);
    }
    __syncthreads();
    return static_cast<std::uint32_t>(memory.best);
}

// Gives every expert its place. Jobs are experts computed here: resident ones by id, then copied
// ones, the busiest first.
__device__ inline void choose(const PrefillCall& call, PlanMemory& memory) {
    const DeviceLayer& layer = call.layer;
    const std::uint32_t id = threadIdx.x;
    const std::uint32_t count = memory.counts[id];
    const std::int32_t slot = count > 0 ? layer.slot_of[id] : -1;
    const bool is_resident = slot >= 0;
    const bool is_away = count > 0 && !is_resident;
    std::uint64_t address = 0;
    if (is_away && call.tier.address_of != nullptr) address = call.tier.address_of[id];
    const bool is_candidate = address != 0;
    std::uint32_t num_resident = 0, num_candidates = 0, num_others = 0, other_tokens = 0;
    const std::uint32_t resident = sum_before(is_resident, memory.sums, num_resident);
    sum_before(is_candidate, memory.sums, num_candidates);
    sum_before(is_away && !is_candidate, memory.sums, num_others);
    sum_before(is_away && !is_candidate ? count : 0, memory.sums, other_tokens);
    memory.tokens[id] = is_candidate ? count : 0;
    __syncthreads();
    std::uint32_t rank = 0;
    if (is_candidate) {
        for (std::uint32_t other = 0; other < layer.num_experts; ++other) {
            const std::uint32_t theirs = memory.tokens[other];
            rank += theirs > count || (theirs == count && other < id);
        }
        memory.sorted[rank] = count;
    }
    __syncthreads();
    const std::uint32_t num_copied =
        choose_copied(call.tier, num_candidates, num_others, other_tokens, memory);
    const bool is_copied = is_candidate && rank < num_copied;
    const std::uint32_t num_jobs = num_resident + num_copied;
    const std::uint32_t job = is_resident ? resident : num_resident + rank;
    constexpr std::uint32_t kEmpty = 0;
    memory.tokens[id] = memory.runs[id] = kEmpty;
    __syncthreads();
    if (is_resident || is_copied) {
        const std::uint32_t most = tile_tokens(layer.format);
        memory.tokens[job] = count;
        memory.runs[job] = (count + most - 1) / most;
        memory.packed[job] = is_resident ? layer.packed + slot * layer.stride
                                         : reinterpret_cast<const std::uint8_t*>(address);
    }
    __syncthreads();
    // From here on thread `id` is also job `id`.
    std::uint32_t num_places = 0, num_runs = 0, resident_runs = 0;
    const std::uint32_t first = sum_before(memory.tokens[id], memory.sums, num_places);
    const std::uint32_t runs = memory.runs[id];
    const std::uint32_t first_run = sum_before(runs, memory.sums, num_runs);
    sum_before(id < num_resident ? runs : 0, memory.sums, resident_runs);
    memory.firsts[id] = first;
    if (id < num_jobs) {
        const bool comes = id >= num_resident;
        const PrefillRun run{memory.packed[id],
                             first,
                             memory.tokens[id],
                             first_run - (comes ? resident_runs : 0),
                             runs,
                             comes ? id - num_resident : 0,
                             0};
        for (std::uint32_t i = 0; i < runs; ++i) call.runs[first_run + i] = run;
        if (comes) call.copied[id - num_resident] = {memory.packed[id], runs, 0};
    }
    __syncthreads();
    const bool is_hosts = is_away && !is_copied;
    if (is_hosts && call.tier.room == nullptr) report(call.exchange, kFaultUnknownExpert);
    memory.cursors[id] = is_resident || is_copied                ? memory.firsts[job]
                         : is_hosts && call.tier.room != nullptr ? kOnHost
                                                                 : kNowhere;
    if (id != 0) return;
    call.state->resident_runs = resident_runs;
    call.state->copied_runs = num_runs - resident_runs;
    call.state->copied_experts = num_copied;
}

__device__ inline void give_places(const PrefillCall& call, std::uint32_t num_pairs,
                                   PlanMemory& memory) {
    std::uint32_t host_slots = 0;
    for (std::uint32_t pair = threadIdx.x; pair < num_pairs; pair += kPlanThreads) {
        const std::uint32_t id = call.ids[pair];
        std::uint32_t place = id == kNoExpertId ? kNowhere : memory.cursors[id];
        if (place < kOnHost) {
            place = atomicAdd(&memory.cursors[id], 1u);
            call.tokens[place] = pair / call.layer.top_k;
        }
        call.places[pair] = place;
        host_slots += place == kOnHost;
        if (call.tier.room != nullptr) {
            call.tier.ids[pair] =
                place == kOnHost ? static_cast<std::uint16_t>(id) : std::uint16_t{kNoExpertId};
        }
    }
    std::uint32_t all = 0;
    sum_before(host_slots, memory.sums, all);
    if (threadIdx.x != 0 || call.tier.room == nullptr) return;
    PrefillRoom& room = *call.tier.room;
    room.layer = call.layer.index;
    room.num_tokens = call.input.num_tokens;
    room.num_slots = all;
    room.hidden_type = call.input.hidden_type;
}

__device__ inline void plan(const PrefillCall& call, PlanMemory& memory) {
    const std::uint32_t num_pairs = call.input.num_tokens * call.layer.top_k;
    memory.counts[threadIdx.x] = 0;
    for (std::uint32_t at = threadIdx.x; at < sizeof(PanelRing) / 2; at += kPlanThreads) {
        reinterpret_cast<std::uint32_t*>(call.state->rings)[at] = 0;
    }
    __syncthreads();
    read_ids(call, num_pairs, memory);
    __syncthreads();
    choose(call, memory);
    __syncthreads();
    give_places(call, num_pairs, memory);
}

// For the whole call: adds up what every expert was given.
__device__ inline void count_assignments(const PrefillCall& call, PlanMemory& memory) {
    const LayerInput& input = call.counted;
    const std::uint32_t num_pairs = input.num_tokens * call.layer.top_k;
    if (num_pairs == 0) return;
    memory.counts[threadIdx.x] = 0;
    __syncthreads();
    for (std::uint32_t pair = threadIdx.x; pair < num_pairs; pair += kPlanThreads) {
        const float weight = load_value(input.weights, input.weights_type, pair);
        const std::uint32_t id = expert_of(input, call.layer.num_experts, pair, weight);
        if (id != kNoExpertId) atomicAdd(&memory.counts[id], 1u);
    }
    __syncthreads();
    const std::uint32_t assignments = memory.counts[threadIdx.x];
    if (assignments == 0) return;
    if (call.counts.assignments != nullptr) call.counts.assignments[threadIdx.x] += assignments;
    if (call.counts.reads != nullptr) call.counts.reads[threadIdx.x] += 1;
}

// Writes block `block` of a row, eight lanes for each, lane `part` with values 4 part to 4 part +
// 3; false if a value is not finite. All lanes of a warp take part; those with `writes` false only
// lend their hands.
template <Format kFormat>
__device__ __forceinline__ bool make_tile_row_ready(const float4& values, std::uint32_t part,
                                                    std::uint8_t* row, std::uint32_t block,
                                                    bool writes) {
    using Ready = ReadyOf<kFormat>;
    const std::uint32_t in_group = block % Ready::kGroupBlocks;
    std::uint8_t* group = row + block / Ready::kGroupBlocks * Ready::kGroupBytes;
    if constexpr (kFormat == Format::kBf16) {
        const RoundedPart rounded = round_part(values);
        if (writes && (part & 2) == 0) {
            std::uint8_t* to = group + in_group * 64 + (part >> 2) * 32 + (part & 1) * 16;
            *reinterpret_cast<uint4*>(to) = rounded.words;
        }
        return rounded.is_finite || !writes;
    } else {
        const QuantizedPart quantized = quantize_part(values);
        if (writes) {
            std::uint8_t* to =
                group + in_group / 2 * 64 + part % 4 * 16 + in_group % 2 * 8 + part / 4 * 4;
            *reinterpret_cast<std::uint32_t*>(to) = quantized.word;
            if (part == 0) {
                *reinterpret_cast<float*>(group + Ready::kRowBytes +
                                          in_group * Ready::kScaleBytes) = quantized.scale;
            }
        }
        return quantized.is_finite || !writes;
    }
}

template <Format kFormat>
__device__ void make_rows_ready_for_tiles(const PrefillCall& call, std::uint32_t part_of_grid,
                                          std::uint32_t parts) {
    const std::uint32_t row_size = call.layer.hidden_size;
    const std::uint32_t row_bytes = ReadyOf<kFormat>::row_bytes(row_size);
    const std::uint32_t blocks =
        groups_of(row_size, GroupOf<kFormat>::kValues) * ReadyOf<kFormat>::kGroupBlocks;
    const std::uint32_t num_blocks = call.input.num_tokens * blocks;
    const std::uint32_t part = threadIdx.x % 8;
    bool is_finite = true;
    for (std::uint32_t start = part_of_grid * (blockDim.x / 8); start < num_blocks;
         start += parts * (blockDim.x / 8)) {
        const std::uint32_t at = start + threadIdx.x / 8;
        const bool writes = at < num_blocks;
        const std::uint32_t token = writes ? at / blocks : 0, block = at - token * blocks;
        float4 values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (writes && block < row_size / kBlock) {
            values = load_four(call.input.hidden, call.input.hidden_type,
                               std::size_t{token} * row_size + block * kBlock + part * 4);
        }
        is_finite &= make_tile_row_ready<kFormat>(
            values, part, call.rows + std::size_t{token} * row_bytes, writes ? block : 0, writes);
    }
    if (!is_finite) report(call.exchange, kFaultNotFinite);
}

template <Format kFormat>
__global__ void __launch_bounds__(kPlanThreads) prefill_plan_kernel(const PrefillCall call) {
    auto& memory = *reinterpret_cast<PlanMemory*>(dynamic_memory());
    if (blockIdx.x == 0) {
        plan(call, memory);
    } else if (blockIdx.x == 1) {
        count_assignments(call, memory);
    } else {
        make_rows_ready_for_tiles<kFormat>(call, blockIdx.x - 2, gridDim.x - 2);
    }
}

}  // namespace
}  // namespace moeprof
