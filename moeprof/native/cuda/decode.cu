#include <cuda_runtime.h>

#include <algorithm>

#include "decode.cuh"

namespace moeprof {
namespace {

using Kernel = void (*)(DecodeCall);

struct Device {
    int num_multiprocessors = 0;
    int shared_bytes = 0;  // of one block
    bool overlaps = false;
};

struct Launch {
    std::uint32_t num_tokens = 0;  // 0: not even one token fits
    std::uint32_t num_warps = 0;
    DecodeMemory memory{};
};

cudaError_t read_device(Device& device) {
    int id = 0, major = 0;
    cudaError_t error = cudaGetDevice(&id);
    if (error == cudaSuccess) {
        error =
            cudaDeviceGetAttribute(&device.num_multiprocessors, cudaDevAttrMultiProcessorCount, id);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&device.shared_bytes,
                                       cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id);
    }
    device.overlaps = major >= 9;
    return error;
}

template <Format kFormat>
DecodeMemory memory_of(const DeviceLayer& layer, std::uint32_t num_tokens, std::uint32_t num_warps,
                       const Device& device) {
    const std::uint32_t num_pairs = num_tokens * layer.top_k;
    const std::uint32_t blocks = static_cast<std::uint32_t>(device.num_multiprocessors);
    const auto quads = static_cast<std::uint32_t>(num_quads(layer.hidden_size));
    DecodeMemory memory;
    memory.ready = num_warps * RingOf<kFormat>::kBytes;
    memory.results =
        memory.ready + std::max(num_tokens * ready_row_bytes<kFormat>(layer.hidden_size),
                                num_pairs * ready_row_bytes<kFormat>(layer.width));
    const std::uint32_t own_rows = (quads + blocks - 1) / blocks * kQuad;
    memory.num_bytes = memory.results + num_pairs * own_rows * sizeof(float);
    return memory;
}

DecodeMemory memory_of(const DeviceLayer& layer, std::uint32_t num_tokens, std::uint32_t num_warps,
                       const Device& device) {
    switch (layer.format) {
        case Format::kQ8_0:
            return memory_of<Format::kQ8_0>(layer, num_tokens, num_warps, device);
        case Format::kQ4_0:
            return memory_of<Format::kQ4_0>(layer, num_tokens, num_warps, device);
        default:
            return memory_of<Format::kBf16>(layer, num_tokens, num_warps, device);
    }
}

// As many tokens at once as fit, with as many warps as then fit.
Launch launch_for(const DeviceLayer& layer, std::uint32_t num_tokens, const Device& device) {
    const auto limit = device.shared_bytes - static_cast<int>(sizeof(Tables)) - 64;
    for (std::uint32_t tokens = num_tokens; tokens > 0; --tokens) {
        if (tokens * layer.top_k > kMaxDecodePairs) continue;
        for (const std::uint32_t num_warps : {16u, 8u, 4u}) {
            const DecodeMemory memory = memory_of(layer, tokens, num_warps, device);
            if (static_cast<int>(memory.num_bytes) <= limit) return {tokens, num_warps, memory};
        }
    }
    return {};
}

template <Format kFormat>
Kernel kernel_of(std::uint32_t num_tokens) {
    if (num_tokens == 1) return decode_kernel<kFormat, 1>;
    if (num_tokens <= 4) return decode_kernel<kFormat, 4>;
    return decode_kernel<kFormat, 8>;
}

Kernel kernel_of(Format format, std::uint32_t num_tokens) {
    switch (format) {
        case Format::kQ8_0:
            return kernel_of<Format::kQ8_0>(num_tokens);
        case Format::kQ4_0:
            return kernel_of<Format::kQ4_0>(num_tokens);
        default:
            return kernel_of<Format::kBf16>(num_tokens);
    }
}

cudaError_t start(Kernel kernel, const DecodeCall& call, const Launch& launch, const Device& device,
                  bool overlaps, cudaStream_t stream) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(device.num_multiprocessors));
    config.blockDim = dim3(launch.num_warps * kWarp);
    config.dynamicSmemBytes = launch.memory.num_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = overlaps && device.overlaps ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, call);
}

__global__ void begin_step_kernel(DecodeState* state) { state->ended = nanoseconds(); }

LayerInput part_of(const DeviceLayer& layer, const LayerInput& input, std::uint32_t first,
                   std::uint32_t num_tokens) {
    LayerInput part = input;
    const std::size_t pairs = std::size_t{first} * layer.top_k;
    part.hidden = static_cast<const std::uint8_t*>(input.hidden) +
                  std::size_t{first} * layer.hidden_size * float_bytes(input.hidden_type);
    part.ids = input.ids + pairs;
    part.weights =
        static_cast<const std::uint8_t*>(input.weights) + pairs * float_bytes(input.weights_type);
    part.num_tokens = num_tokens;
    return part;
}

}  // namespace

std::size_t decode_workspace_bytes(const DeviceLayer& layer) {
    const std::size_t pairs = std::size_t{kDecodeTokens} * layer.top_k;
    return kStateBytes + pairs * layer.width * sizeof(float);
}

const char* prepare_decode(const DeviceLayer& layer) {
    Device device;
    if (const cudaError_t error = read_device(device)) return cudaGetErrorString(error);
    if (layer.top_k > kMaxDecodePairs) return "more than 256 experts for one token";
    if (launch_for(layer, 1, device).num_tokens == 0) {
        return "a device with more shared memory for rows of this size";
    }
    const int limit = device.shared_bytes - static_cast<int>(sizeof(Tables)) - 64;
    for (const std::uint32_t tokens : {1u, 4u, 8u}) {
        const cudaError_t error =
            cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel_of(layer.format, tokens)),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
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
        const Launch launch =
            launch_for(layer, std::min(input.num_tokens - first, kDecodeTokens), device);
        DecodeCall call{};
        call.layer = layer;
        call.input = part_of(layer, input, first, launch.num_tokens);
        call.output = static_cast<std::uint8_t*>(output) +
                      std::size_t{first} * layer.hidden_size * float_bytes(input.hidden_type);
        call.counts = counts;
        call.counted = input;
        const bool counts_here =
            first == 0 && (counts.assignments != nullptr || counts.reads != nullptr);
        if (!counts_here) call.counted.num_tokens = 0;
        call.exchange = exchange;
        call.state = reinterpret_cast<DecodeState*>(bytes);
        call.between = reinterpret_cast<float*>(bytes + kStateBytes);
        call.memory = launch.memory;
        const cudaError_t error = start(kernel_of(layer.format, launch.num_tokens), call, launch,
                                        device, overlaps, static_cast<cudaStream_t>(stream));
        if (error != cudaSuccess) return error;
        first += launch.num_tokens;
    }
    return cudaSuccess;
}

}  // namespace moeprof
