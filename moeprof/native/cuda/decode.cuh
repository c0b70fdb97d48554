// Decoding one layer of experts in one launch; the definition is decode_layer in
// reference/experts.py.
//
// hidden [num_tokens, hidden_size], ids and weights [num_tokens, top_k], output [num_tokens,
// hidden_size]; at most 8 tokens. One thread block on every multiprocessor, all at once:
//
// 1. As soon as the ids are known, each warp begins to copy what it will read into a ring of its
//    own in shared memory, as far ahead as the ring is long, down's bytes too while others still
//    compute gate and up: memory is read without a pause between the projections.
// 2. Every block makes the rows ready; block 0 posts to the host what is not on this device.
// 3. Warps multiply gate and up, and pass the values of the unit on through device memory.
// 4. Every block takes all values of the unit as they come, and multiplies its own rows of down of
//    all experts.
// 5. It takes the host's words for its rows, if there are any to come, and adds up its rows' slots.
//
// Bytes: the packed bytes of every distinct expert on this device once, and nothing else of size.
// Bound by device memory; what remains is the launch, two trips to memory before the first weights
// come, and from the last ones of gate and up to the end.
#pragma once

#include "hand_over.cuh"
#include "launch.cuh"
#include "quad_products.cuh"
#include "ready_rows.cuh"

namespace moeprof {
namespace {

// Who stamps a timed layer: one thread, of the block whose rows the host answers last.
__device__ inline bool is_timer(const DecodeCall& call) {
    return call.counts.nanoseconds != nullptr && blockIdx.x + 1 == gridDim.x && threadIdx.x == 0;
}

// begun: with the choices known; computed: with this device's experts done.
__device__ inline void add_times(const DecodeCall& call, std::uint64_t begun,
                                 std::uint64_t computed, bool has_waited) {
    std::uint64_t* times = call.counts.nanoseconds;
    const std::uint64_t now = nanoseconds();
    const std::uint64_t end = has_waited ? computed : now;
    times[kTimeBefore] += begun - call.state->ended;
    times[kTimeResident] += end - begun;
    times[kTimeWaiting] += now - end;
    call.state->ended = now;
}

// All blocks, for the whole call: adds up what every expert was given, a block for each expert.
__device__ inline void count(const DecodeCall& call) {
    const LayerInput& input = call.counted;
    const std::uint32_t num_pairs = input.num_tokens * call.layer.top_k;
#pragma unroll 1
    for (std::uint32_t id = blockIdx.x; id < call.layer.num_experts; id += gridDim.x) {
        std::int64_t assignments = 0;
#pragma unroll 1
        for (std::uint32_t start = 0; start < num_pairs; start += blockDim.x) {
            const std::uint32_t pair = start + threadIdx.x;
            bool is_given = false;
            if (pair < num_pairs) {
                const float weight = load_value(input.weights, input.weights_type, pair);
                is_given = expert_of(input, call.layer.num_experts, pair, weight) == id;
            }
            assignments += __syncthreads_count(is_given);
        }
        if (assignments == 0 || threadIdx.x != 0) continue;
        if (call.counts.assignments != nullptr) call.counts.assignments[id] += assignments;
        if (call.counts.reads != nullptr) call.counts.reads[id] += 1;
    }
}

// One token: the lanes of a warp, each for its slot.
__device__ inline void count_one(const Counts& counts, std::uint32_t id) {
    if (id == kNoExpertId) return;
    const auto add = [id](std::int64_t* to) {
        if (to != nullptr) atomicAdd(reinterpret_cast<unsigned long long*>(to) + id, 1ull);
    };
    add(counts.assignments);
    add(counts.reads);
}

// Takes what the host has computed of this block's rows. Only what comes last is looked for until
// it is there: looks for every word would fill the way to the host, and keep its processors from
// the lines that they write.
__device__ inline void take_answer(const DecodeCall& call, const Share& share, const Pair* pairs,
                                   std::uint32_t num_here, std::uint32_t number, float* results) {
    const std::uint32_t num_rows = share.num_rows();
    const std::uint32_t num_pairs = call.input.num_tokens * call.layer.top_k;
    const std::uint64_t* outputs = call.exchange.outputs + share.first_row();
    Answer answer(call.exchange, number);
    std::uint32_t last = num_pairs - 1;
    while (pairs[last].id == kNoExpertId || pairs[last].number < num_here) --last;
    if (threadIdx.x < num_rows) {
        answer.take(outputs + std::size_t{last} * call.layer.hidden_size + threadIdx.x);
    }
    __syncthreads();
#pragma unroll 1
    for (std::uint32_t at = threadIdx.x; at < num_pairs * num_rows; at += blockDim.x) {
        const std::uint32_t slot = share.rows.divide(at), row = at - slot * num_rows;
        const Pair pair = pairs[slot];
        if (pair.id == kNoExpertId || pair.number < num_here) continue;
        results[pair.number * num_rows + row] =
            answer.take(outputs + std::size_t{slot} * call.layer.hidden_size + row);
    }
}

// Adds up the slots of this block's rows, in slot order; the definition is slot_sum.
__device__ inline void join(const DecodeCall& call, const Share& share, const Pair* pairs,
                            const float* results) {
    const DeviceLayer& layer = call.layer;
    const std::uint32_t num_rows = share.num_rows();
#pragma unroll 1
    for (std::uint32_t at = threadIdx.x; at < call.input.num_tokens * num_rows; at += blockDim.x) {
        const std::uint32_t token = share.rows.divide(at), row = at - token * num_rows;
        const Pair* const own = pairs + token * layer.top_k;
        float total = 0.0f;
#pragma unroll 8
        for (std::uint32_t slot = 0; slot < layer.top_k; ++slot) {
            const Pair pair = own[slot];
            const float more = total + pair.weight * results[pair.number * num_rows + row];
            total = pair.id == kNoExpertId ? total : more;
        }
        const std::size_t place = std::size_t{token} * layer.hidden_size + share.first_row() + row;
        store_value(call.output, call.input.hidden_type, place, total);
    }
}

// The same where every expert is on the host, which has added them up.
__device__ inline void take_sums(const DecodeCall& call, const Share& share, std::uint32_t number) {
    const std::uint32_t num_rows = share.num_rows();
    Answer answer(call.exchange, number);
#pragma unroll 1
    for (std::uint32_t at = threadIdx.x; at < call.input.num_tokens * num_rows; at += blockDim.x) {
        const std::uint32_t token = share.rows.divide(at), row = at - token * num_rows;
        const std::size_t place =
            std::size_t{token} * call.layer.hidden_size + share.first_row() + row;
        const float sum = answer.take(call.exchange.sums + place);
        store_value(call.output, call.input.hidden_type, place, sum);
    }
}

// Multiplies the warp's items of one projection: `ready` are the rows that it reads.
template <Format kFormat, typename Jobs>
__device__ __forceinline__ void project(const DecodeCall& call, const Share& share,
                                        const Jobs& jobs, bool is_down, SharedAddress ready,
                                        Stream<kFormat, Jobs>& stream, std::uint32_t* between,
                                        float* results) {
    constexpr std::uint32_t kTokens = Jobs::kMostTokens;
    const DeviceLayer& layer = call.layer;
    const std::uint32_t lane_row = threadIdx.x % kWarp / 8;
    const std::uint32_t t = threadIdx.x % 8;  // the token whose sums this lane keeps
    const std::uint32_t row_size = call.projections[is_down].row_size;
    const std::uint32_t row_bytes = ready_row_bytes<kFormat>(row_size);
#pragma unroll 1
    for (Items items(call, share, is_down); !items.is_done(jobs.num_jobs()); items.next()) {
        const std::uint32_t job = items.job();
        const std::uint32_t num_tokens = jobs.num_tokens(job);
        SharedAddress rows[kTokens];
        float sums[2][kTokens];
#pragma unroll
        for (std::uint32_t i = 0; i < kTokens; ++i) {
            const std::uint32_t own = i < num_tokens ? i : 0;
            rows[i] = ready + (is_down ? jobs.number(job, own) : jobs.token(job, own)) * row_bytes;
        }
        multiply_item<kFormat>(stream, jobs, row_size, rows, num_tokens, sums);
        if (t >= num_tokens) continue;
        float first = sums[0][0], second = sums[1][0];
#pragma unroll
        for (std::uint32_t i = 1; i < kTokens; ++i) {
            if (i != t) continue;
            first = sums[0][i];
            second = sums[1][i];
        }
        // Of gate and up: the same row of both. Of down: two rows four apart.
        const std::uint32_t row = items.place() * (is_down ? 2 * kQuad : kQuad) + lane_row;
        if (layer.has_biases) {
            const auto* biases = reinterpret_cast<const float*>(
                jobs.packed(job) + expert_bytes(kFormat, layer.hidden_size, layer.width, false));
            if (is_down) biases += 2 * layer.width + share.first_row();
            first = first + biases[row];
            second = second + biases[row + (is_down ? kQuad : layer.width)];
        }
        const std::uint32_t number = jobs.number(job, t);
        if (is_down) {
            float* result = results + number * share.num_rows() + row;
            result[0] = first;
            result[kQuad] = second;
        } else {
            pass_on(between + passed_place(number * layer.width + row),
                    passed_word(gated(layer.unit, first, second)));
        }
    }
}

template <Format kFormat, typename Jobs>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    decode_kernel(const __grid_constant__ DecodeCall call) {
    using Ring = RingOf<kFormat>;
    constexpr std::uint32_t kAhead = Jobs::kMostTokens == 1 ? 2 : 4;
    extern __shared__ uint4 shared[];
    __shared__ typename Jobs::Tables tables;
    __shared__ std::uint64_t barriers[kMostWarps * RingOf<kFormat>::kBarrierBytes / 8];
    auto* memory = reinterpret_cast<std::uint8_t*>(shared);
    std::uint8_t* ready = memory + call.memory.ready;
    auto* results = reinterpret_cast<float*>(memory + call.memory.results);
    const DeviceLayer& layer = call.layer;
    const std::uint32_t warp = threadIdx.x / kWarp;
    BlockState* state = call.state->blocks + blockIdx.x;

    const SlotTable slots(layer);
    const Share share(call);
    Stream<kFormat, Jobs> stream(call, share, address_of(memory) + warp * Ring::kBytes,
                                 address_of(barriers) + warp * Ring::kBarrierBytes);
    wait_for_previous();

    const uint4 words = __ldcg(reinterpret_cast<const uint4*>(state));
    const BlockState before{words.x, words.y, words.z, words.w};
    std::uint64_t begun = 0, computed = 0;
    if (is_timer(call)) begun = nanoseconds();
    // What must be waited for is asked for together, and before weights fill the way from memory.
    Jobs jobs(layer, call.input, tables);
    RowMaker<kFormat, GivenRows, kAhead> given({call.input}, call.input.num_tokens,
                                               call.projections[0]);
    slots.store(tables.slots);
    __syncthreads();
    jobs.resolve(call.input, tables);
    stream.start_gate_up(jobs);

    if (warp == 0) jobs.tell_pairs(call.exchange, tables);
    const bool asks = jobs.num_host() > 0;
    const bool posts = asks && blockIdx.x == 0;
    const std::uint32_t number = before.posted + 1 == 0 ? 1 : before.posted + 1;
    const bool wants_sums = asks && jobs.num_jobs() == 0;
    std::uint32_t* between = passed_buffer(call, before.launches);
    empty(passed_buffer(call, before.launches + 1), before.num_used);
    bool is_finite = true;
    if (jobs.num_jobs() > 0 || posts) is_finite = given.make(ready);
    __syncthreads();
    if (posts) post<kFormat>(call, tables.pairs, jobs.num_here(), ready, number, wants_sums);
#pragma unroll 1
    for (std::uint32_t step = 0; step < 2 && jobs.num_jobs() > 0; ++step) {
        if (step == 1) {
            stream.start_down(jobs);
            RowMaker<kFormat, PassedRows, 4> passed({between}, jobs.num_here(),
                                                    call.projections[1]);
            is_finite &= passed.make(ready);
            __syncthreads();
        }
        project<kFormat>(call, share, jobs, step == 1, address_of(ready), stream, between, results);
        __syncthreads();
    }
    if (!is_finite) report(call.exchange, kFaultNotFinite);
    if (is_timer(call)) computed = jobs.num_jobs() > 0 ? nanoseconds() : begun;
    if (wants_sums) {
        take_sums(call, share, number);
    } else {
        if (asks) {
            take_answer(call, share, tables.pairs, jobs.num_here(), number, results);
            __syncthreads();
        }
        join(call, share, tables.pairs, results);
    }
    if constexpr (Jobs::kMostTokens == 1) {
        const bool counts = call.counted.num_tokens == 1 && blockIdx.x + 1 == gridDim.x;
        if (counts && warp == 0) count_one(call.counts, jobs.id());
    }
    if (call.counted.num_tokens > (Jobs::kMostTokens == 1 ? 1 : 0)) count(call);
    if (threadIdx.x == 0) {
        *state = {before.launches + 1, jobs.num_here() * layer.width, asks ? number : before.posted,
                  0};
    }
    if (is_timer(call)) add_times(call, begun, computed, asks);
}

}  // namespace
}  // namespace moeprof
