// What a layer's kernels share: whose expert a slot is, and how faults are told.
#pragma once

#include "activations.cuh"
#include "layer.hpp"

namespace moeprof {
namespace {

constexpr std::uint32_t kNoExpertId = 65535;

__device__ __forceinline__ bool is_expert_id(std::int64_t id, std::uint32_t num_experts) {
    return static_cast<std::uint64_t>(id) < num_experts;
}

__device__ inline std::uint32_t expert_of(const LayerInput& input, std::uint32_t num_experts,
                                          std::uint32_t pair, float weight) {
    const std::int64_t id = input.ids[pair];
    const bool is_expert = is_expert_id(id, num_experts) && weight != 0.0f;
    return is_expert ? static_cast<std::uint32_t>(id) : kNoExpertId;
}

__device__ inline void report(const ExchangeView& exchange, std::uint32_t fault) {
    store_to_host(exchange.header->device_faults + __ffs(static_cast<int>(fault)) - 1, 1u);
}

}  // namespace
}  // namespace moeprof
