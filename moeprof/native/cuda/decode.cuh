// Decoding one layer of experts in one launch; the definition is decode_layer in
// reference/experts.py.
//
// hidden [num_tokens, hidden_size], ids and weights [num_tokens, top_k], output [num_tokens,
// hidden_size]; at most 8 tokens. One thread block on every multiprocessor, all at once:
//
// 1. Every block groups the slots by expert, looks up where each expert lies, and makes the rows
//    ready; block 0 first posts to the host what is not on this device.
// 2. Each warp takes quads of gate and up, the values of the unit go through device memory.
// 3. A barrier of all blocks.
// 4. Each block takes its own rows of down of all experts, waits for the host's answer if there is
//    one to come, and adds up its rows' slots.
//
// A warp copies what it will read into a ring of its own in shared memory, as far ahead as the ring
// is long, down's bytes too while others still compute gate and up; so memory is read without a
// pause at the barrier.
//
// Bytes: the packed bytes of every distinct resident expert once, and nothing else of size. Bound
// by device memory; what remains is the launch, two trips to memory before the first weights come,
// and the work on the last ones.
#pragma once

#include "routing.cuh"

namespace moeprof {
namespace {

constexpr std::uint32_t kSlotTable = 1024;  // experts of a layer whose slots are looked up at once
constexpr std::uint32_t kNoJob = 0xFFFF;

// Shared memory after the tables, in order; each part begins on a 16-byte boundary.
struct DecodeMemory {
    std::uint32_t ready;    // rows while gate and up are computed, then the values between
    std::uint32_t results;  // [pairs, rows of a block] float32
    std::uint32_t num_bytes;
};

struct DecodeCall {
    DeviceLayer layer;
    LayerInput input;  // of this launch
    void* output;
    Counts counts;
    LayerInput counted;  // of the whole call; no tokens if this launch does not count
    ExchangeView exchange;
    DecodeState* state;
    float* between;  // [pairs, width]
    DecodeMemory memory;
};

template <Format kFormat>
struct RingOf {
    static constexpr std::uint32_t kStageBytes = 2 * GroupOf<kFormat>::kBytes;
    static constexpr int kStages = kFormat == Format::kQ4_0 ? 8 : 4;
    static constexpr std::uint32_t kBytes = kStageBytes * kStages;
};

struct Job {  // one resident expert and the pairs (token * top_k + slot) that chose it
    const std::uint8_t* packed;
    std::uint32_t num_tokens;
    std::uint16_t pairs[kDecodeTokens];
};

struct Tables {
    Job jobs[kMaxDecodePairs];
    float weights[kMaxDecodePairs];
    std::uint16_t ids[kMaxDecodePairs];
    std::uint16_t job_of[kMaxDecodePairs];  // kNoJob: not on this device
    std::int32_t slots[kSlotTable];
    std::uint32_t num_jobs;
    std::uint32_t num_resident;  // pairs
    std::uint32_t num_host;
    std::uint32_t gave_up;
};

__device__ inline void read_choices(const DecodeCall& call, std::uint32_t num_pairs,
                                    Tables& tables) {
    const DeviceLayer& layer = call.layer;
#pragma unroll 1
    for (std::uint32_t pair = threadIdx.x; pair < num_pairs; pair += blockDim.x) {
        const float weight = load_value(call.input.weights, call.input.weights_type, pair);
        tables.weights[pair] = weight;
        tables.ids[pair] =
            static_cast<std::uint16_t>(expert_of(call.input, layer.num_experts, pair, weight));
    }
    if (layer.num_experts > kSlotTable) return;
#pragma unroll 1
    for (std::uint32_t id = threadIdx.x; id < layer.num_experts; id += blockDim.x) {
        tables.slots[id] = layer.slot_of[id];
    }
}

// One warp: jobs in the order of their first pair, and each job's pairs in increasing order.
__device__ inline void gather(const DecodeCall& call, std::uint32_t num_pairs, Tables& tables) {
    const DeviceLayer& layer = call.layer;
    const std::uint32_t lane = threadIdx.x % kWarp;
    const std::uint32_t before = (1u << lane) - 1;
    std::uint32_t num_jobs = 0, num_resident = 0, num_host = 0;
    bool is_repeated = false;
#pragma unroll 1
    for (std::uint32_t start = 0; start < num_pairs; start += kWarp) {
        const std::uint32_t pair = start + lane;
        const std::uint32_t id = pair < num_pairs ? tables.ids[pair] : kNoExpertId;
        const bool is_expert = id != kNoExpertId;
        std::int32_t slot = -1;
        if (is_expert) {
            slot = layer.num_experts > kSlotTable ? layer.slot_of[id] : tables.slots[id];
        }
        std::uint32_t rank = 0, first = pair;
#pragma unroll 1
        for (std::uint32_t earlier = start; earlier-- > 0;) {
            if (tables.ids[earlier] != id) continue;
            ++rank;
            first = earlier;
            is_repeated |= is_expert && earlier / layer.top_k == pair / layer.top_k;
        }
        const std::uint32_t same = __match_any_sync(kAllLanes, id);
        const std::uint32_t same_token =
            __match_any_sync(kAllLanes, id << 16 | (pair / layer.top_k));
        is_repeated |= is_expert && __popc(same_token) > 1;
        rank += __popc(same & before);
        const std::uint32_t leader = __ffs(static_cast<int>(same)) - 1;
        const bool is_resident = slot >= 0;
        const bool begins = is_resident && rank == 0;
        const std::uint32_t beginners = __ballot_sync(kAllLanes, begins);
        std::uint32_t job = num_jobs + __popc(beginners & before);
        job = __shfl_sync(kAllLanes, job, static_cast<int>(leader));
        if (first < start) job = tables.job_of[first];
        if (is_resident && rank < kDecodeTokens) {
            if (begins) tables.jobs[job].packed = layer.packed + slot * layer.stride;
            tables.jobs[job].pairs[rank] = static_cast<std::uint16_t>(pair);
            const bool is_last = same >> lane == 1;
            if (is_last || rank == kDecodeTokens - 1) tables.jobs[job].num_tokens = rank + 1;
        }
        if (pair < num_pairs) {
            tables.job_of[pair] = static_cast<std::uint16_t>(is_resident ? job : kNoJob);
        }
        num_jobs += __popc(beginners);
        num_resident += __popc(__ballot_sync(kAllLanes, is_resident));
        num_host += __popc(__ballot_sync(kAllLanes, is_expert && !is_resident));
        __syncwarp();
    }
    const bool any_repeated = __any_sync(kAllLanes, is_repeated);
    if (lane != 0) return;
    tables.num_jobs = num_jobs;
    tables.num_resident = num_resident;
    tables.num_host = num_host;
    if (any_repeated) report(call.exchange, kFaultRepeatedExpert);
}

// The whole of block 0 writes the question; its first thread then posts it.
__device__ inline void post(const DecodeCall& call, std::uint32_t num_pairs, const Tables& tables) {
    const ExchangeView& exchange = call.exchange;
    const std::uint32_t num_values = call.input.num_tokens * call.layer.hidden_size;
#pragma unroll 1
    for (std::uint32_t at = 4 * threadIdx.x; at < num_values; at += 4 * blockDim.x) {
        *reinterpret_cast<float4*>(exchange.rows + at) =
            load_four(call.input.hidden, call.input.hidden_type, at);
    }
#pragma unroll 1
    for (std::uint32_t pair = threadIdx.x; pair < num_pairs; pair += blockDim.x) {
        const bool is_host = tables.job_of[pair] == kNoJob;
        exchange.ids[pair] = is_host ? tables.ids[pair] : static_cast<std::uint16_t>(kNoExpertId);
        exchange.weights[pair] = tables.weights[pair];
    }
    if (threadIdx.x == 0) {
        exchange.header->layer = call.layer.index;
        exchange.header->num_tokens = call.input.num_tokens;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const std::uint64_t number = call.state->posted + 1;
        call.state->posted = number;
        __threadfence_system();
        store_release_to_host(&exchange.header->posted, number);
    }
}

// One block, for the whole call: adds up what every expert was given, a thread for each expert.
__device__ inline void count(const DecodeCall& call) {
    const LayerInput& input = call.counted;
    const std::uint32_t num_pairs = input.num_tokens * call.layer.top_k;
    if (num_pairs == 0) return;
    for (std::uint32_t id = threadIdx.x; id < call.layer.num_experts; id += blockDim.x) {
        std::int64_t assignments = 0;
#pragma unroll 1
        for (std::uint32_t pair = 0; pair < num_pairs; ++pair) {
            const float weight = load_value(input.weights, input.weights_type, pair);
            assignments += expert_of(input, call.layer.num_experts, pair, weight) == id;
        }
        if (assignments == 0) continue;
        if (call.counts.assignments != nullptr) call.counts.assignments[id] += assignments;
        if (call.counts.reads != nullptr) call.counts.reads[id] += 1;
    }
}

// The sizes of a row of a format in its packed and its ready form.
template <Format kFormat>
struct RowSizes {
    std::uint32_t groups;
    std::uint32_t quad_bytes;     // with the padding
    std::uint32_t payload_bytes;  // without

    __device__ explicit RowSizes(std::uint32_t row_size)
        : groups(groups_of(row_size, GroupOf<kFormat>::kValues)),
          quad_bytes(static_cast<std::uint32_t>(moeprof::quad_bytes(kFormat, row_size))),
          payload_bytes(
              static_cast<std::uint32_t>(kQuad * (row_size / kBlock) * block_bytes(kFormat))) {}
};

// Everything a warp will read, in the order in which it will use it, and the ring that it is copied
// into. A stage is two groups: of gate and of up, or two that follow each other in a quad of down.
template <Format kFormat>
class Stream {
  public:
    __device__ Stream(const DecodeCall& call, const Tables& tables, std::uint8_t* ring)
        : tables_(tables),
          hidden_(call.layer.hidden_size),
          between_(call.layer.width),
          ring_(ring),
          num_warps_(blockDim.x / kWarp),
          quads_(call.layer.width / kQuad),
          item_(blockIdx.x + gridDim.x * (threadIdx.x / kWarp)),
          num_items_(tables.num_jobs * quads_),
          first_quad_(first_quad(call.layer, blockIdx.x)),
          own_quads_(first_quad(call.layer, blockIdx.x + 1) - first_quad_) {
        open();
#pragma unroll 1
        for (int stage = 0; stage < Ring::kStages; ++stage) request(stage);
    }

    // Quads of down that belong to blocks before `block`.
    __device__ static std::uint32_t first_quad(const DeviceLayer& layer, std::uint32_t block) {
        return layer.hidden_size / kQuad * block / gridDim.x;
    }

    // The oldest stage, once its bytes are there.
    __device__ const std::uint8_t* front() {
        wait_for_batches<Ring::kStages - 1>();
        __syncwarp();
        return ring_ + stage_ * Ring::kStageBytes;
    }

    // Gives the oldest stage's place to the next one to be copied.
    __device__ void pop() {
        __syncwarp();
        request(stage_);
        stage_ = stage_ + 1 == Ring::kStages ? 0 : stage_ + 1;
    }

  private:
    using Ring = RingOf<kFormat>;
    static constexpr std::uint32_t kGroupBytes = GroupOf<kFormat>::kBytes;

    // Goes to the beginning of item `item_`, or on to down after the last item of gate and up.
    __device__ void open() {
        at_ = 0;
        if (!is_down_) {
            if (item_ < num_items_) {
                const std::uint32_t quad = item_ % quads_;
                source_ = tables_.jobs[item_ / quads_].packed +
                          std::size_t{2} * quad * hidden_.quad_bytes;
                payload_ = hidden_.payload_bytes;
                second_ = hidden_.quad_bytes;
                step_ = kGroupBytes;
                return;
            }
            is_down_ = true;
            item_ = threadIdx.x / kWarp;
            num_items_ = tables_.num_jobs * own_quads_;
        }
        if (item_ >= num_items_) {
            payload_ = 0;
            return;
        }
        const std::uint32_t quad = first_quad_ + item_ % own_quads_;
        source_ = tables_.jobs[item_ / own_quads_].packed +
                  std::size_t{2} * quads_ * hidden_.quad_bytes +
                  std::size_t{quad} * between_.quad_bytes;
        payload_ = between_.payload_bytes;
        second_ = kGroupBytes;
        step_ = 2 * kGroupBytes;
    }

    __device__ void request(std::uint32_t stage) {
        if (at_ < payload_) {
            std::uint8_t* to = ring_ + stage * Ring::kStageBytes;
            copy(to, source_ + at_, at_);
            copy(to + kGroupBytes, source_ + at_ + second_, is_down_ ? at_ + kGroupBytes : at_);
            at_ += step_;
            if (at_ >= payload_) {
                item_ += is_down_ ? num_warps_ : gridDim.x * num_warps_;
                open();
            }
        }
        close_batch();
    }

    // The group that begins `at` bytes into a quad, whole pieces of 16 bytes: a quad is padded.
    __device__ void copy(std::uint8_t* to, const std::uint8_t* from, std::uint32_t at) const {
        const std::uint32_t left = at < payload_ ? payload_ - at : 0;
        const std::uint32_t size = left < kGroupBytes ? left : kGroupBytes;
        for (std::uint32_t piece = 0; piece < kGroupBytes; piece += 16 * kWarp) {
            const std::uint32_t offset = piece + threadIdx.x % kWarp * 16;
            if (offset < size) copy_later(to + offset, from + offset);
        }
    }

    const Tables& tables_;
    const RowSizes<kFormat> hidden_;
    const RowSizes<kFormat> between_;
    std::uint8_t* const ring_;
    const std::uint32_t num_warps_;
    const std::uint32_t quads_;
    std::uint32_t item_;
    std::uint32_t num_items_;
    const std::uint32_t first_quad_;
    const std::uint32_t own_quads_;
    const std::uint8_t* source_ = nullptr;
    std::uint32_t payload_ = 0;  // bytes of the open quad
    std::uint32_t at_ = 0;
    std::uint32_t second_ = 0;  // from a stage's first group to its second
    std::uint32_t step_ = 0;
    std::uint32_t stage_ = 0;
    bool is_down_ = false;
};

// Adds one group of a quad to the accumulators of each token. Lane 8 r + j is row r, accumulator j.
template <Format kFormat, int kTokens, bool kIsFull>
__device__ __forceinline__ void add_blocks(const std::uint8_t* group, std::uint32_t num_blocks,
                                           const std::uint8_t* const* rows, std::uint32_t num_rows,
                                           float* accumulators) {
    const std::uint32_t row = threadIdx.x % kWarp / kBlocksAbreast;
    const std::uint32_t block = threadIdx.x % kBlocksAbreast;
    const std::uint32_t abreast = kIsFull ? kBlocksAbreast : num_blocks;
    if (block >= abreast) return;
    constexpr int kWords = kFormat == Format::kQ8_0 ? 8 : 4;
    const std::uint8_t* own = group + kQuad * abreast * kScaleBytes + (row * abreast + block) * 4;
    std::uint32_t words[kWords];
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
        words[k] = *reinterpret_cast<const std::uint32_t*>(own + k * kQuad * abreast * 4);
    }
    const float weight_scale = half_to_float(
        *reinterpret_cast<const std::uint16_t*>(group + (row * abreast + block) * kScaleBytes));
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
        if (t >= num_rows) break;
        const int4 low = *reinterpret_cast<const int4*>(rows[t] + block * 16);
        const int4 high = *reinterpret_cast<const int4*>(rows[t] + 128 + block * 16);
        const int values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        int dot = *reinterpret_cast<const int*>(rows[t] + kReadyOffsets + block * 4);
#pragma unroll
        for (int k = 0; k < kWords; ++k) {
            if constexpr (kFormat == Format::kQ8_0) {
                dot = dot_bytes(words[k], values[k], dot);
            } else {
                dot = dot_bytes(words[k] & 0x0F0F0F0Fu, values[k], dot);
                dot = dot_bytes(words[k] >> 4 & 0x0F0F0F0Fu, values[k + 4], dot);
            }
        }
        const float scale = *reinterpret_cast<const float*>(rows[t] + kReadyScales + block * 4);
        accumulators[t] += static_cast<float>(dot) * (weight_scale * scale);
    }
}

template <int kTokens>
__device__ __forceinline__ void add_run(const std::uint8_t* group, std::uint32_t run,
                                        const std::uint8_t* const* rows, std::uint32_t num_rows,
                                        float* accumulators) {
    const auto word =
        *reinterpret_cast<const std::uint32_t*>(group + run * 128 + threadIdx.x % kWarp * 4);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
        if (t >= num_rows) break;
        const auto values = *reinterpret_cast<const std::uint32_t*>(
            rows[t] + run * 32 + threadIdx.x % kBlocksAbreast * 4);
        accumulators[t] += float_of(word << 16) * float_of(values << 16);
        accumulators[t] += float_of(word & 0xFFFF0000u) * float_of(values & 0xFFFF0000u);
    }
}

// `left`: values of the row from this group on.
template <Format kFormat, int kTokens>
__device__ __forceinline__ void add_group(const std::uint8_t* group, std::uint32_t left,
                                          const std::uint8_t* const* rows, std::uint32_t num_rows,
                                          float* accumulators) {
    const bool is_full = left >= GroupOf<kFormat>::kValues;
    if constexpr (kFormat == Format::kBf16) {
        if (is_full) {
#pragma unroll
            for (std::uint32_t run = 0; run < 8; ++run) {
                add_run<kTokens>(group, run, rows, num_rows, accumulators);
            }
        } else {
#pragma unroll 1
            for (std::uint32_t run = 0; run < left / 16; ++run) {
                add_run<kTokens>(group, run, rows, num_rows, accumulators);
            }
        }
    } else if (is_full) {
        add_blocks<kFormat, kTokens, true>(group, kBlocksAbreast, rows, num_rows, accumulators);
    } else {
        add_blocks<kFormat, kTokens, false>(group, left / kBlock, rows, num_rows, accumulators);
    }
}

// tree_sum of the accumulators of eight lanes, the same in each.
__device__ __forceinline__ float sum_of_eight(float value) {
    value = value + __shfl_xor_sync(kAllLanes, value, 4);
    value = value + __shfl_xor_sync(kAllLanes, value, 2);
    return value + __shfl_xor_sync(kAllLanes, value, 1);
}

// Makes rows ready, eight lanes for each block; `source` gives row r's values from `at` on.
template <Format kFormat, typename Source>
__device__ bool make_rows_ready(std::uint32_t num_rows, std::uint32_t row_size, std::uint8_t* ready,
                                Source source) {
    constexpr int kAhead = 4;  // loads under way
    const std::uint32_t blocks = row_size / kBlock;
    const std::uint32_t num_blocks = num_rows * blocks;
    // at / blocks without a division: exact while at * blocks stays below 2^32.
    const std::uint64_t inverse = 0xFFFFFFFFu / blocks + std::uint64_t{1};
    const auto row_of = [inverse](std::uint32_t at) {
        return static_cast<std::uint32_t>(at * inverse >> 32);
    };
    const std::uint32_t abreast = blockDim.x / 8;
    const std::uint32_t part = threadIdx.x % 8;
    bool is_finite = true;
#pragma unroll 1
    for (std::uint32_t start = threadIdx.x / kWarp * 4; start < num_blocks;
         start += kAhead * abreast) {
        float4 values[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const std::uint32_t at = start + i * abreast + threadIdx.x % kWarp / 8;
            values[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (at < num_blocks) {
                values[i] = source(row_of(at), (at - row_of(at) * blocks) * kBlock + part * 4);
            }
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            if (start + i * abreast >= num_blocks) break;  // the same for the whole warp
            const std::uint32_t at = start + i * abreast + threadIdx.x % kWarp / 8;
            const bool writes = at < num_blocks;
            std::uint8_t* row =
                ready + (writes ? row_of(at) : 0) * ready_row_bytes<kFormat>(row_size);
            is_finite &=
                make_ready<kFormat>(values[i], part, row, at - row_of(at) * blocks, writes);
        }
    }
    return is_finite;
}

template <Format kFormat, int kTokens>
__device__ void gate_up(const DecodeCall& call, const Tables& tables, const std::uint8_t* ready,
                        Stream<kFormat>& stream) {
    const DeviceLayer& layer = call.layer;
    const std::uint32_t lane = threadIdx.x % kWarp;
    const std::uint32_t quads = layer.width / kQuad;
    const std::uint32_t row_bytes = ready_row_bytes<kFormat>(layer.hidden_size);
    const std::size_t biases_at = expert_bytes(kFormat, layer.hidden_size, layer.width, false);
#pragma unroll 1
    for (std::uint32_t item = blockIdx.x + gridDim.x * (threadIdx.x / kWarp);
         item < tables.num_jobs * quads; item += gridDim.x * (blockDim.x / kWarp)) {
        const Job& job = tables.jobs[item / quads];
        const std::uint32_t value = item % quads * kQuad + lane / 8;
        float gate_bias = 0.0f, up_bias = 0.0f;
        if (layer.has_biases) {
            const auto* biases = reinterpret_cast<const float*>(job.packed + biases_at);
            gate_bias = biases[value];
            up_bias = biases[layer.width + value];
        }
        const std::uint8_t* rows[kTokens];
        float gate[kTokens], up[kTokens];
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
            const std::uint32_t pair = t < job.num_tokens ? job.pairs[t] : 0;
            rows[t] = ready + pair / layer.top_k * row_bytes;
            gate[t] = up[t] = 0.0f;
        }
#pragma unroll 1
        for (std::uint32_t at = 0; at < layer.hidden_size; at += GroupOf<kFormat>::kValues) {
            const std::uint8_t* stage = stream.front();
            const std::uint32_t left = layer.hidden_size - at;
            add_group<kFormat, kTokens>(stage, left, rows, job.num_tokens, gate);
            add_group<kFormat, kTokens>(stage + GroupOf<kFormat>::kBytes, left, rows,
                                        job.num_tokens, up);
            stream.pop();
#pragma unroll
            for (int t = 0; t < kTokens; ++t) rows[t] += GroupOf<kFormat>::kReadyBytes;
        }
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
            if (t >= job.num_tokens) break;
            float gate_sum = sum_of_eight(gate[t]);
            float up_sum = sum_of_eight(up[t]);
            if (layer.has_biases) {
                gate_sum = gate_sum + gate_bias;
                up_sum = up_sum + up_bias;
            }
            if (lane % 8 == t) {
                call.between[std::size_t{job.pairs[t]} * layer.width + value] =
                    gated(layer.unit, gate_sum, up_sum);
            }
        }
    }
}

template <Format kFormat, int kTokens>
__device__ void down(const DecodeCall& call, const Tables& tables, const std::uint8_t* ready,
                     std::uint32_t first_quad, std::uint32_t own_quads, Stream<kFormat>& stream,
                     float* results) {
    const DeviceLayer& layer = call.layer;
    const std::uint32_t lane = threadIdx.x % kWarp;
    const std::uint32_t row_bytes = ready_row_bytes<kFormat>(layer.width);
    const std::size_t biases_at = expert_bytes(kFormat, layer.hidden_size, layer.width, false) +
                                  2 * sizeof(float) * layer.width;
#pragma unroll 1
    for (std::uint32_t item = threadIdx.x / kWarp; item < tables.num_jobs * own_quads;
         item += blockDim.x / kWarp) {
        const Job& job = tables.jobs[item / own_quads];
        const std::uint32_t own_row = item % own_quads * kQuad + lane / 8;
        float bias = 0.0f;
        if (layer.has_biases) {
            bias = reinterpret_cast<const float*>(job.packed +
                                                  biases_at)[first_quad * kQuad + own_row];
        }
        const std::uint8_t* rows[kTokens];
        float sums[kTokens];
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
            rows[t] = ready + (t < job.num_tokens ? job.pairs[t] : 0) * row_bytes;
            sums[t] = 0.0f;
        }
#pragma unroll 1
        for (std::uint32_t at = 0; at < layer.width; at += 2 * GroupOf<kFormat>::kValues) {
            const std::uint8_t* stage = stream.front();
#pragma unroll 1
            for (std::uint32_t half = 0; half < 2; ++half) {
                const std::uint32_t from = at + half * GroupOf<kFormat>::kValues;
                if (from >= layer.width) break;
                add_group<kFormat, kTokens>(stage + half * GroupOf<kFormat>::kBytes,
                                            layer.width - from, rows, job.num_tokens, sums);
#pragma unroll
                for (int t = 0; t < kTokens; ++t) rows[t] += GroupOf<kFormat>::kReadyBytes;
            }
            stream.pop();
        }
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
            if (t >= job.num_tokens) break;
            float sum = sum_of_eight(sums[t]);
            if (layer.has_biases) sum = sum + bias;
            if (lane % 8 == t) results[job.pairs[t] * own_quads * kQuad + own_row] = sum;
        }
    }
}

// Waits for the answer to question `number`; false if there will be none.
__device__ inline bool wait_for_answer(const ExchangeView& exchange, std::uint64_t number) {
    const std::uint64_t begun = nanoseconds();
    for (;;) {
        const std::uint64_t answered = load_acquire_from_host(&exchange.header->answered);
        if (answered >= number) {
            if (answered != kAborted) return true;
            report(exchange, kFaultNoAnswer);
            return false;
        }
        if (nanoseconds() - begun > exchange.timeout_ns) {
            report(exchange, kFaultNoAnswer);
            store_release_to_host(&exchange.header->answered, kAborted);
            return false;
        }
    }
}

// One thread of each block: only block 0 looks over the bus, and passes on what it finds. False if
// there is no answer.
__device__ inline bool learn_answer(const DecodeCall& call) {
    DecodeState& state = *call.state;
    const std::uint64_t number = load_acquire(&state.posted);
    if (blockIdx.x == 0) {
        const bool is_answered = wait_for_answer(call.exchange, number);
        store_release(&state.answered, 2 * number + (is_answered ? 0 : 1));
        return is_answered;
    }
    for (;;) {
        const std::uint64_t answered = load_acquire(&state.answered);
        if (answered / 2 >= number) return answered % 2 == 0;
    }
}

// Adds up the slots of this block's rows, in slot order; the definition is slot_sum.
__device__ inline void join(const DecodeCall& call, const Tables& tables, std::uint32_t first_row,
                            std::uint32_t own_rows, const float* results) {
    const DeviceLayer& layer = call.layer;
    const bool all_on_host = tables.num_resident == 0 && tables.num_host > 0;
#pragma unroll 1
    for (std::uint32_t at = threadIdx.x; at < call.input.num_tokens * own_rows; at += blockDim.x) {
        const std::uint32_t token = at / own_rows, own_row = at % own_rows;
        const std::size_t place = std::size_t{token} * layer.hidden_size + first_row + own_row;
        float total = 0.0f;
        if (tables.gave_up) {
            total = 0.0f;
        } else if (all_on_host) {
            total = __ldcv(call.exchange.sums + place);
        } else {
            constexpr std::uint32_t kAhead = 8;  // loads under way
#pragma unroll 1
            for (std::uint32_t start = 0; start < layer.top_k; start += kAhead) {
                float values[kAhead];
#pragma unroll
                for (std::uint32_t i = 0; i < kAhead; ++i) {
                    const std::uint32_t slot = start + i;
                    const std::uint32_t pair = token * layer.top_k + slot;
                    if (slot >= layer.top_k || tables.ids[pair] == kNoExpertId) continue;
                    values[i] =
                        tables.job_of[pair] != kNoJob
                            ? results[pair * own_rows + own_row]
                            : __ldcv(call.exchange.outputs + std::size_t{pair} * layer.hidden_size +
                                     first_row + own_row);
                }
#pragma unroll
                for (std::uint32_t i = 0; i < kAhead; ++i) {
                    const std::uint32_t pair = token * layer.top_k + start + i;
                    if (start + i >= layer.top_k || tables.ids[pair] == kNoExpertId) continue;
                    total = total + tables.weights[pair] * values[i];
                }
            }
        }
        store_value(call.output, call.input.hidden_type, place, total);
    }
}

template <Format kFormat, int kTokens>
__global__ void __launch_bounds__(512, 1) decode_kernel(const DecodeCall call) {
    extern __shared__ uint4 shared[];
    __shared__ Tables tables;
    auto* memory = reinterpret_cast<std::uint8_t*>(shared);
    std::uint8_t* ready = memory + call.memory.ready;
    auto* results = reinterpret_cast<float*>(memory + call.memory.results);
    const DeviceLayer& layer = call.layer;
    const LayerInput& input = call.input;
    const std::uint32_t num_pairs = input.num_tokens * layer.top_k;

    let_next_kernel_start();
    for (std::uint32_t id = kWarp * threadIdx.x; id < layer.num_experts; id += kWarp * blockDim.x) {
        prefetch_to_l2(layer.slot_of + id);
    }
    wait_for_previous_kernel();
    read_choices(call, num_pairs, tables);
    __syncthreads();
    if (threadIdx.x < kWarp) gather(call, num_pairs, tables);
    __syncthreads();
    if (tables.num_host > 0 && blockIdx.x == 0) post(call, num_pairs, tables);

    Stream<kFormat> stream(call, tables, memory + threadIdx.x / kWarp * RingOf<kFormat>::kBytes);
    if (blockIdx.x + 1 == gridDim.x) count(call);
    if (tables.num_resident + tables.num_host > 0) {
        bool is_finite = true;
        if (tables.num_resident > 0) {
            is_finite = make_rows_ready<kFormat>(input.num_tokens, layer.hidden_size, ready,
                                                 [&](std::uint32_t row, std::uint32_t at) {
                                                     return load_four(
                                                         input.hidden, input.hidden_type,
                                                         std::size_t{row} * layer.hidden_size + at);
                                                 });
        }
        __syncthreads();
        gate_up<kFormat, kTokens>(call, tables, ready, stream);

        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            const std::uint64_t ticket =
                atomicAdd(reinterpret_cast<unsigned long long*>(&call.state->arrivals), 1ull);
            const std::uint64_t all = (ticket / gridDim.x + 1) * gridDim.x;
            while (load_acquire(&call.state->arrivals) < all) {
            }
        }
        __syncthreads();
        if (tables.num_resident > 0) {
            is_finite &= make_rows_ready<kFormat>(
                num_pairs, layer.width, ready, [&](std::uint32_t pair, std::uint32_t at) {
                    if (tables.job_of[pair] == kNoJob) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    const float* row = call.between + std::size_t{pair} * layer.width + at;
                    return __ldcg(reinterpret_cast<const float4*>(row));
                });
        }
        if (!is_finite) report(call.exchange, kFaultNotFinite);
    }
    __syncthreads();
    const std::uint32_t first_quad = Stream<kFormat>::first_quad(layer, blockIdx.x);
    const std::uint32_t own_quads = Stream<kFormat>::first_quad(layer, blockIdx.x + 1) - first_quad;
    down<kFormat, kTokens>(call, tables, ready, first_quad, own_quads, stream, results);
    if (threadIdx.x == 0) {
        tables.gave_up = tables.num_host > 0 && !learn_answer(call);
    }
    __syncthreads();
    join(call, tables, first_quad * kQuad, own_quads * kQuad, results);
}

}  // namespace
}  // namespace moeprof
