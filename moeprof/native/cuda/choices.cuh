// Which experts a launch computes on this device, and for which of its tokens.
//
// A pair is a token's slot, token * top_k + slot. A job is an expert on this device that was
// chosen. Pairs with an expert are numbered, first those on this device and then the host's, each
// in their order; what belongs to a pair lies under its number.
#pragma once

#include "routing.cuh"

namespace moeprof {
namespace {

constexpr std::uint32_t kSlotTable = 1024;  // experts of a layer whose slots are looked up at once
constexpr std::uint32_t kMostWarps = 16;

struct Pair {
    float weight;
    std::uint16_t id;      // kNoExpertId: none
    std::uint16_t number;  // 0 where there is no expert
};

__device__ __forceinline__ std::int32_t slot_of(const DeviceLayer& layer, const std::int32_t* slots,
                                                std::uint32_t id) {
    return layer.num_experts > kSlotTable ? layer.slot_of[id] : slots[id];
}

// Slots are looked up in shared memory; the first of them are fetched into registers before the
// launch's input is there.
class SlotTable {
  public:
    __device__ explicit SlotTable(const DeviceLayer& layer) : layer_(layer) {
        if (threadIdx.x < size()) own_ = __ldcg(layer.slot_of + threadIdx.x);
    }
    __device__ void store(std::int32_t* slots) const {
        if (threadIdx.x < size()) slots[threadIdx.x] = own_;
#pragma unroll 1
        for (std::uint32_t id = threadIdx.x + blockDim.x; id < size(); id += blockDim.x) {
            slots[id] = __ldcg(layer_.slot_of + id);
        }
    }

  private:
    __device__ std::uint32_t size() const { return min(layer_.num_experts, kSlotTable); }

    const DeviceLayer& layer_;
    std::int32_t own_ = -1;
};

// The experts of one token with at most a warp's slots, which every warp finds for itself.
class OneToken {
  public:
    static constexpr std::uint32_t kMostTokens = 1;
    struct Tables {
        Pair pairs[kWarp];
        std::int32_t slots[kSlotTable];
        std::int32_t slot_of_job[kMostWarps][kWarp];
    };

    // Begins to load the choices.
    __device__ OneToken(const DeviceLayer& layer, const LayerInput& input, Tables& tables)
        : layer_(layer), slot_of_job_(tables.slot_of_job[threadIdx.x / kWarp]) {
        const std::uint32_t lane = threadIdx.x % kWarp;
        if (lane >= layer.top_k) return;
        given_id_ = __ldcg(input.ids + lane);
        weight_bits_ = load_bits(input.weights, input.weights_type, lane);
    }

    // With the slots in their table.
    __device__ void resolve(const LayerInput& input, Tables& tables) {
        weight_ = widened(weight_bits_, input.weights_type);
        const bool is_expert = is_expert_id(given_id_, layer_.num_experts) && weight_ != 0.0f;
        if (is_expert) id_ = static_cast<std::uint32_t>(given_id_);
        const std::int32_t slot = is_expert ? slot_of(layer_, tables.slots, id_) : -1;
        here_ = __ballot_sync(kAllLanes, slot >= 0);
        experts_ = __ballot_sync(kAllLanes, is_expert);
        if (slot >= 0) tables.slot_of_job[threadIdx.x / kWarp][__popc(here_ & before())] = slot;
        __syncwarp();
    }

    // By one warp, before what reads the pairs.
    __device__ void tell_pairs(const ExchangeView& exchange, Tables& tables) const {
        const std::uint32_t lane = threadIdx.x % kWarp;
        const std::uint32_t elsewhere = experts_ & ~here_;
        const bool is_here = here_ >> lane & 1;
        const std::uint32_t number =
            is_here ? __popc(here_ & before()) : num_jobs() + __popc(elsewhere & before());
        const bool is_expert = id_ != kNoExpertId;
        tables.pairs[lane] = {weight_, static_cast<std::uint16_t>(id_),
                              static_cast<std::uint16_t>(is_expert ? number : 0)};
        const std::uint32_t same = __match_any_sync(kAllLanes, id_);
        if (is_expert && __popc(same) > 1 && blockIdx.x == 0) {
            report(exchange, kFaultRepeatedExpert);
        }
    }

    __device__ std::uint32_t num_jobs() const { return __popc(here_); }
    __device__ std::uint32_t num_here() const { return num_jobs(); }  // pairs
    __device__ std::uint32_t num_host() const { return __popc(experts_ & ~here_); }
    __device__ const std::uint8_t* packed(std::uint32_t job) const {
        return layer_.packed + slot_of_job_[job] * layer_.stride;
    }
    __device__ std::uint32_t num_tokens(std::uint32_t) const { return 1; }
    __device__ std::uint32_t token(std::uint32_t, std::uint32_t) const { return 0; }
    __device__ std::uint32_t number(std::uint32_t job, std::uint32_t) const { return job; }

    // The expert in this lane's slot.
    __device__ std::uint32_t id() const { return id_; }

  private:
    __device__ static std::uint32_t before() { return (1u << threadIdx.x % kWarp) - 1; }

    const DeviceLayer& layer_;
    const std::int32_t* const slot_of_job_;
    // Of this lane's slot.
    std::int64_t given_id_ = -1;
    std::uint32_t weight_bits_ = 0;
    std::uint32_t id_ = kNoExpertId;
    float weight_ = 0.0f;
    // Of all lanes' slots.
    std::uint32_t here_ = 0;     // those whose expert is on this device
    std::uint32_t experts_ = 0;  // those with an expert
};

// The experts of at most kMost tokens, which one warp of a block finds for all.
template <int kMost>
class SeveralTokens {
  public:
    static constexpr std::uint32_t kMostTokens = kMost;
    struct Job {
        const std::uint8_t* packed;
        std::uint32_t num_tokens;
        std::uint16_t numbers[kMost];
        std::uint16_t tokens[kMost];
    };
    struct Tables {
        Pair pairs[kMaxDecodePairs];
        std::int32_t slots[kSlotTable];
        Job jobs[kMaxDecodePairs];
        std::uint16_t job_of[kMaxDecodePairs];  // of pairs on this device
        std::uint32_t num_jobs;
        std::uint32_t num_here;
        std::uint32_t num_host;
        std::uint32_t is_repeated;
    };

    __device__ SeveralTokens(const DeviceLayer& layer, const LayerInput& input, Tables& tables)
        : layer_(layer), tables_(tables) {
        const std::uint32_t num_pairs = input.num_tokens * layer.top_k;
#pragma unroll 1
        for (std::uint32_t pair = threadIdx.x; pair < num_pairs; pair += blockDim.x) {
            const float weight = load_value(input.weights, input.weights_type, pair);
            const std::uint32_t id = expert_of(input, layer.num_experts, pair, weight);
            tables.pairs[pair] = {weight, static_cast<std::uint16_t>(id), 0};
        }
    }

    __device__ void resolve(const LayerInput& input, Tables& tables) {
        if (threadIdx.x < kWarp) gather(layer_, input.num_tokens * layer_.top_k, tables);
        __syncthreads();
    }

    // As that of OneToken; the pairs are known already.
    __device__ void tell_pairs(const ExchangeView& exchange, Tables& tables) const {
        if (tables.is_repeated && blockIdx.x == 0) report(exchange, kFaultRepeatedExpert);
    }

    __device__ std::uint32_t num_jobs() const { return tables_.num_jobs; }
    __device__ std::uint32_t num_here() const { return tables_.num_here; }
    __device__ std::uint32_t num_host() const { return tables_.num_host; }
    __device__ const std::uint8_t* packed(std::uint32_t job) const {
        return tables_.jobs[job].packed;
    }
    __device__ std::uint32_t num_tokens(std::uint32_t job) const {
        return tables_.jobs[job].num_tokens;
    }
    __device__ std::uint32_t token(std::uint32_t job, std::uint32_t t) const {
        return tables_.jobs[job].tokens[t];
    }
    __device__ std::uint32_t number(std::uint32_t job, std::uint32_t t) const {
        return tables_.jobs[job].numbers[t];
    }

  private:
    // One warp: jobs in the order of their first pair, and each job's pairs in increasing order.
    __device__ static void gather(const DeviceLayer& layer, std::uint32_t num_pairs,
                                  Tables& tables) {
        const std::uint32_t lane = threadIdx.x % kWarp;
        const std::uint32_t before = (1u << lane) - 1;
        std::uint32_t num_jobs = 0, num_here = 0, num_host = 0;
        bool is_repeated = false;
#pragma unroll 1
        for (std::uint32_t start = 0; start < num_pairs; start += kWarp) {
            const std::uint32_t pair = start + lane;
            const std::uint32_t token = pair / layer.top_k;
            const std::uint32_t id = pair < num_pairs ? tables.pairs[pair].id : kNoExpertId;
            const bool is_expert = id != kNoExpertId;
            const std::int32_t slot = is_expert ? slot_of(layer, tables.slots, id) : -1;
            const bool is_here = slot >= 0;
            std::uint32_t rank = 0, first = pair;
#pragma unroll 1
            for (std::uint32_t earlier = start; earlier-- > 0;) {
                if (tables.pairs[earlier].id != id) continue;
                ++rank;
                first = earlier;
                is_repeated |= is_expert && earlier / layer.top_k == token;
            }
            const std::uint32_t same = __match_any_sync(kAllLanes, id);
            const std::uint32_t same_token = __match_any_sync(kAllLanes, id << 16 | token);
            is_repeated |= is_expert && __popc(same_token) > 1;
            rank += __popc(same & before);
            const std::uint32_t leader = __ffs(static_cast<int>(same)) - 1;
            const bool begins = is_here && rank == 0;
            const std::uint32_t beginners = __ballot_sync(kAllLanes, begins);
            std::uint32_t job = num_jobs + __popc(beginners & before);
            job = __shfl_sync(kAllLanes, job, static_cast<int>(leader));
            if (is_here && first < start) job = tables.job_of[first];
            const std::uint32_t here = __ballot_sync(kAllLanes, is_here);
            const auto number = static_cast<std::uint16_t>(num_here + __popc(here & before));
            const std::uint32_t elsewhere = __ballot_sync(kAllLanes, is_expert && !is_here);
            const std::uint32_t host = kHosts + num_host + __popc(elsewhere & before);
            if (is_here && rank < kMost) {
                Job& own = tables.jobs[job];
                if (begins) own.packed = layer.packed + slot * layer.stride;
                own.numbers[rank] = number;
                own.tokens[rank] = static_cast<std::uint16_t>(token);
                const bool is_last = same >> lane == 1;
                if (is_last || rank == kMost - 1) own.num_tokens = rank + 1;
            }
            if (pair < num_pairs) {
                tables.job_of[pair] = static_cast<std::uint16_t>(job);
                tables.pairs[pair].number = is_here ? number : static_cast<std::uint16_t>(host);
            }
            num_jobs += __popc(beginners);
            num_here += __popc(here);
            num_host += __popc(elsewhere);
            __syncwarp();
        }
        for (std::uint32_t at = lane; at < num_pairs; at += kWarp) {
            Pair& pair = tables.pairs[at];
            if (pair.number >= kHosts) pair.number += num_here - kHosts;
            if (pair.id == kNoExpertId) pair.number = 0;
        }
        is_repeated = __any_sync(kAllLanes, is_repeated);
        if (lane == 0) {
            tables.is_repeated = is_repeated;
            tables.num_jobs = num_jobs;
            tables.num_here = num_here;
            tables.num_host = num_host;
        }
    }

    // Added to numbers of the host's pairs until it is known how many are here.
    static constexpr std::uint16_t kHosts = 0x8000;

    const DeviceLayer& layer_;
    const Tables& tables_;
};

}  // namespace
}  // namespace moeprof
