// The end of a prefill: every token's slots, weighted and added in slot order; the definition is
// slot_sum in reference/experts.py.
//
// A block for each token. Bytes: top_k * hidden_size float32 of results read, mostly from the
// second-level cache (those of the host over the bus), hidden_size values written; bound by that.
#pragma once

#include "prefill_call.cuh"

namespace moeprof {
namespace {

constexpr std::uint32_t kCombineThreads = 256;

__global__ void __launch_bounds__(kCombineThreads) prefill_combine_kernel(const PrefillCall call) {
    constexpr std::uint32_t kAhead = 8;  // loads under way
    const DeviceLayer& layer = call.layer;
    const std::uint32_t first_pair = blockIdx.x * layer.top_k;
    const std::size_t out = std::size_t{blockIdx.x} * layer.hidden_size;
    for (std::uint32_t at = threadIdx.x * 4; at < layer.hidden_size; at += kCombineThreads * 4) {
        float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (std::uint32_t start = 0; start < layer.top_k; start += kAhead) {
            float4 values[kAhead];
#pragma unroll
            for (std::uint32_t i = 0; i < kAhead; ++i) {
                const std::uint32_t pair = first_pair + start + i;
                const std::uint32_t place = start + i < layer.top_k ? call.places[pair] : kNowhere;
                if (place == kNowhere) continue;
                const float* row = place == kOnHost
                                       ? call.tier.outputs + std::size_t{pair} * layer.hidden_size
                                       : call.results + std::size_t{place} * layer.hidden_size;
                values[i] = __ldcv(reinterpret_cast<const float4*>(row + at));
            }
#pragma unroll
            for (std::uint32_t i = 0; i < kAhead; ++i) {
                const std::uint32_t pair = first_pair + start + i;
                if (start + i >= layer.top_k || call.places[pair] == kNowhere) continue;
                const float weight = load_value(call.input.weights, call.input.weights_type, pair);
                total.x = total.x + weight * values[i].x;
                total.y = total.y + weight * values[i].y;
                total.z = total.z + weight * values[i].z;
                total.w = total.w + weight * values[i].w;
            }
        }
        const FloatType type = call.input.hidden_type;
        store_value(call.output, type, out + at, total.x);
        store_value(call.output, type, out + at + 1, total.y);
        store_value(call.output, type, out + at + 2, total.z);
        store_value(call.output, type, out + at + 3, total.w);
    }
}

}  // namespace
}  // namespace moeprof
