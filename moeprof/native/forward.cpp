// What a model's layer asks of its experts; few tokens are decoded, more go through a prefill.
#include <algorithm>
#include <cstring>

#include "experts.hpp"
#include "plain_floats.hpp"
#include "prefill.hpp"

namespace moeprof {
namespace {

// ids and weights as decode and prefill take them.
void convert_routing(const Routed& routed, std::size_t num_slots, std::size_t num_experts,
                     const Path& path, std::uint16_t* ids, float* weights) {
    path.widen(routed.weights_type, routed.weights, num_slots, weights);
    for (std::size_t slot = 0; slot < num_slots; ++slot) {
        const auto id = static_cast<std::uint64_t>(routed.ids[slot]);
        const bool none = id >= num_experts || weights[slot] == 0.0f;
        ids[slot] = none ? kNoExpert : static_cast<std::uint16_t>(id);
    }
}

void count(const std::uint16_t* ids, std::size_t num_slots, std::size_t num_experts,
           std::uint8_t* seen, const Routed& routed) {
    std::memset(seen, 0, num_experts);
    for (std::size_t slot = 0; slot < num_slots; ++slot) {
        if (ids[slot] == kNoExpert) continue;
        if (routed.assignments) ++routed.assignments[ids[slot]];
        seen[ids[slot]] = 1;
    }
    if (routed.reads == nullptr) return;
    for (std::size_t id = 0; id < num_experts; ++id) routed.reads[id] += seen[id];
}

}  // namespace

DecodeFault ExpertLayer::prefill(Workers& workers, const Tokens& tokens, const Results& results) {
    const Held layer(busy_);
    const Held pool = workers.hold();
    if (!layer || !pool) return DecodeFault::kBusy;
    Prefill prefill(shape_, path_, experts_.data(), tokens.num_tokens, workers.num_threads());
    return prefill.run(workers, tokens, results, workers.scratch(prefill.scratch_bytes()));
}

DecodeFault ExpertLayer::forward(Workers& workers, const Routed& routed) {
    const Held layer(busy_);
    const Held pool = workers.hold();
    if (!layer || !pool) return DecodeFault::kBusy;
    PlainFloats floats;
    const std::size_t num_tokens = routed.num_tokens;
    const std::size_t num_slots = num_tokens * shape_.top_k;
    const bool few = num_tokens <= kMaxTokens;
    const std::size_t ids_bytes = padded(num_slots * sizeof(std::uint16_t));
    const std::size_t weights_bytes = padded(num_slots * sizeof(float));
    const std::size_t values_bytes = padded(num_tokens * shape_.hidden_size * sizeof(float));
    Prefill prefill(shape_, path_, experts_.data(), num_tokens, workers.num_threads());
    const std::size_t more = few ? (2 + shape_.top_k) * values_bytes : prefill.scratch_bytes();
    std::uint8_t* memory =
        workers.scratch(ids_bytes + weights_bytes + padded(shape_.num_experts) + more);
    auto* ids = reinterpret_cast<std::uint16_t*>(memory);
    auto* weights = reinterpret_cast<float*>(memory + ids_bytes);
    std::uint8_t* seen = memory + ids_bytes + weights_bytes;
    std::uint8_t* rest = seen + padded(shape_.num_experts);
    convert_routing(routed, num_slots, shape_.num_experts, path_, ids, weights);
    DecodeFault fault = DecodeFault::kNone;
    if (few) {
        auto* rows = reinterpret_cast<float*>(rest);
        auto* sums = reinterpret_cast<float*>(rest + values_bytes);
        auto* outputs = reinterpret_cast<float*>(rest + 2 * values_bytes);
        const std::size_t num_values = num_tokens * shape_.hidden_size;
        path_.widen(routed.hidden_type, routed.hidden, num_values, rows);
        fault = run({*this, workers, ids, weights, num_tokens, outputs, sums, routed.times}, rows);
        path_.narrow(routed.hidden_type, sums, num_values, routed.output);
    } else {
        fault = prefill.run(workers, {routed.hidden, routed.hidden_type, ids, weights, num_tokens},
                            {nullptr, routed.output, routed.hidden_type}, rest);
    }
    if (fault == DecodeFault::kNone) count(ids, num_slots, shape_.num_experts, seen, routed);
    return fault;
}

}  // namespace moeprof
