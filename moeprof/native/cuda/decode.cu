#include <cuda_runtime.h>

#include <algorithm>

#include "decode.cuh"

namespace moeprof {
namespace {

using Kernel = void (*)(DecodeCall);

struct Device {
    int num_multiprocessors = 0;
    int shared_bytes = 0;  // of one block
};

// One kernel, and how much of shared memory it may use besides its tables.
struct Variant {
    Kernel kernel = nullptr;
    int limit = 0;
};

struct Launch {
    std::uint32_t num_tokens = 0;  // 0: not even one token fits
    std::uint32_t num_warps = 0;
    DecodeMemory memory{};
    Variant variant;
};

cudaError_t read_device(Device& device) {
    int id = 0;
    cudaError_t error = cudaGetDevice(&id);
    if (error == cudaSuccess) {
        error =
            cudaDeviceGetAttribute(&device.num_multiprocessors, cudaDevAttrMultiProcessorCount, id);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&device.shared_bytes,
                                       cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
    }
    return error;
}

// What of shared memory is left to a launch.
template <Format kFormat, typename Jobs>
int dynamic_limit(const Device& device) {
    constexpr std::size_t kBarriers = kMostWarps * RingOf<kFormat>::kBarrierBytes;
    return device.shared_bytes - static_cast<int>(sizeof(typename Jobs::Tables) + kBarriers) - 64;
}

template <Format kFormat, typename Jobs>
Variant variant_of(const Device& device) {
    return {decode_kernel<kFormat, Jobs>, dynamic_limit<kFormat, Jobs>(device)};
}

// kMostTokens: 1, 4 or 8.
template <Format kFormat>
Variant variant_of(const DeviceLayer& layer, std::uint32_t num_tokens, const Device& device) {
    if (num_tokens == 1 && layer.top_k <= kWarp) return variant_of<kFormat, OneToken>(device);
    if (num_tokens <= 4) return variant_of<kFormat, SeveralTokens<4>>(device);
    return variant_of<kFormat, SeveralTokens<8>>(device);
}

template <Format kFormat>
DecodeMemory memory_of(const DeviceLayer& layer, std::uint32_t num_tokens, std::uint32_t num_warps,
                       const Device& device) {
    const std::uint32_t num_pairs = num_tokens * layer.top_k;
    const std::uint32_t blocks = static_cast<std::uint32_t>(device.num_multiprocessors);
    const std::uint32_t items = layer.hidden_size / (2 * kQuad);
    DecodeMemory memory;
    memory.ready = num_warps * RingOf<kFormat>::kBytes;
    memory.results =
        memory.ready + std::max(num_tokens * ready_row_bytes<kFormat>(layer.hidden_size),
                                num_pairs * ready_row_bytes<kFormat>(layer.width));
    const std::uint32_t own_rows = (items + blocks - 1) / blocks * 2 * kQuad;
    memory.num_bytes = memory.results + num_pairs * own_rows * sizeof(float);
    return memory;
}

// As many tokens at once as fit, with as many warps as then fit.
template <Format kFormat>
Launch launch_for(const DeviceLayer& layer, std::uint32_t num_tokens, const Device& device) {
    for (std::uint32_t tokens = num_tokens; tokens > 0; --tokens) {
        if (tokens * layer.top_k > kMaxDecodePairs) continue;
        const Variant variant = variant_of<kFormat>(layer, tokens, device);
        for (std::uint32_t num_warps = kMostWarps; num_warps >= 4; num_warps /= 2) {
            const DecodeMemory memory = memory_of<kFormat>(layer, tokens, num_warps, device);
            if (static_cast<int>(memory.num_bytes) > variant.limit) continue;
            return {tokens, num_warps, memory, variant};
        }
    }
    return {};
}

Launch launch_for(const DeviceLayer& layer, std::uint32_t num_tokens, const Device& device) {
    switch (layer.format) {
        case Format::kQ8_0:
            return launch_for<Format::kQ8_0>(layer, num_tokens, device);
        case Format::kQ4_0:
            return launch_for<Format::kQ4_0>(layer, num_tokens, device);
        default:
            return launch_for<Format::kBf16>(layer, num_tokens, device);
    }
}

Projection projection_of(const DeviceLayer& layer, bool is_down) {
    Projection projection{};
    const std::size_t width_quads = num_quads(layer.width);
    projection.row_size = is_down ? layer.width : layer.hidden_size;
    projection.num_items =
        static_cast<std::uint32_t>(is_down ? num_quads(layer.hidden_size) / 2 : width_quads);
    projection.quad_bytes =
        static_cast<std::uint32_t>(quad_bytes(layer.format, projection.row_size));
    const std::size_t payload =
        kQuad * (projection.row_size / kBlockSize) * block_bytes(layer.format);
    projection.payload_bytes = static_cast<std::uint32_t>((payload + 15) / 16 * 16);
    projection.offset = is_down ? 2 * width_quads * quad_bytes(layer.format, layer.hidden_size) : 0;
    projection.blocks = Divider(projection.row_size / kBlock);
    return projection;
}

__global__ void begin_step_kernel(DecodeState* state) { state->ended = nanoseconds(); }

}  // namespace

std::size_t decode_workspace_bytes(const DeviceLayer& layer) {
    const std::size_t pairs = std::size_t{kDecodeTokens} * layer.top_k;
    return sizeof(DecodeState) + 2 * pairs * layer.width * sizeof(std::uint32_t);
}

const char* prepare_decode(const DeviceLayer& layer) {
    Device device;
    if (const cudaError_t error = read_device(device)) return cudaGetErrorString(error);
    if (layer.top_k > kMaxDecodePairs) return "more than 256 experts for one token";
    if (device.num_multiprocessors > static_cast<int>(kMostBlocks)) {
        return "more than 1024 multiprocessors";
    }
    if (launch_for(layer, 1, device).num_tokens == 0) {
        return "a device with more shared memory for rows of this size";
    }
    for (std::uint32_t tokens = 1; tokens <= kDecodeTokens; ++tokens) {
        const Variant variant = launch_for(layer, tokens, device).variant;
        const cudaError_t error =
            cudaFuncSetAttribute(reinterpret_cast<const void*>(variant.kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, variant.limit);
        if (error != cudaSuccess) return cudaGetErrorString(error);
    }
    return nullptr;
}

int begin_step(void* workspace, void* stream) {
    begin_step_kernel<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<DecodeState*>(workspace));
    return cudaGetLastError();
}

int decode(const DeviceLayer& layer, const LayerInput& input, void* output, const Counts& counts,
           const ExchangeView& exchange, void* workspace, bool overlaps, void* stream) {
    Device device;
    if (const cudaError_t error = read_device(device)) return error;
    auto* bytes = static_cast<std::uint8_t*>(workspace);
    for (std::uint32_t first = 0; first < input.num_tokens;) {
        const Launch plan =
            launch_for(layer, std::min(input.num_tokens - first, kDecodeTokens), device);
        DecodeCall call{};
        call.layer = layer;
        call.input = part_of(layer, input, first, plan.num_tokens);
        call.output = static_cast<std::uint8_t*>(output) +
                      std::size_t{first} * layer.hidden_size * float_bytes(input.hidden_type);
        call.counts = counts;
        call.counted = input;
        const bool counts_here =
            first == 0 && (counts.assignments != nullptr || counts.reads != nullptr);
        if (!counts_here) call.counted.num_tokens = 0;
        call.exchange = exchange;
        call.state = reinterpret_cast<DecodeState*>(bytes);
        call.between = reinterpret_cast<std::uint32_t*>(bytes + sizeof(DecodeState));
        call.projections[0] = projection_of(layer, false);
        call.projections[1] = projection_of(layer, true);
        call.memory = plan.memory;
        call.gate_up_items = Divider(call.projections[0].num_items);
        const auto blocks = static_cast<std::uint32_t>(device.num_multiprocessors);
        call.grid = Divider(blocks);
        call.least_share = call.projections[1].num_items / blocks;
        for (std::uint32_t more : {0u, 1u}) {
            const std::uint32_t rows = (call.least_share + more) * 2 * kQuad;
            call.share_rows[more] = Divider(std::max(rows, 1u));
        }
        const LaunchShape shape{dim3(blocks), dim3(plan.num_warps * kWarp), plan.memory.num_bytes,
                                overlaps};
        const cudaError_t error =
            launch_kernel(plan.variant.kernel, shape, static_cast<cudaStream_t>(stream), call);
        if (error != cudaSuccess) return error;
        first += plan.num_tokens;
    }
    return cudaSuccess;
}

}  // namespace moeprof
