#include <cuda_runtime.h>

#include <algorithm>

#include "prefill.hpp"
#include "prefill_combine.cuh"
#include "prefill_products.cuh"

namespace moeprof {
namespace {

using Kernel = void (*)(PrefillCall);

// Results of a pass are kept until its slots are added up.
constexpr std::size_t kResultBytes = std::size_t{128} << 20;

// The kernels of a format, and what a launch of them takes.
struct Kernels {
    Kernel plan;
    Kernel products[2];
    std::uint32_t (*product_bytes)(std::uint32_t stages);  // of shared memory
    std::uint32_t hidden_row_bytes;
    std::uint32_t between_row_bytes;
};

template <Format kFormat>
Kernels kernels_of(const DeviceLayer& layer) {
    return {prefill_plan_kernel<kFormat>,
            {prefill_products_kernel<kFormat, Projection::kGateUp>,
             prefill_products_kernel<kFormat, Projection::kDown>},
            ProductMemory<kFormat>::num_bytes,
            ReadyOf<kFormat>::row_bytes(layer.hidden_size),
            ReadyOf<kFormat>::row_bytes(layer.width)};
}

Kernels kernels_of(const DeviceLayer& layer) {
    switch (layer.format) {
        case Format::kQ8_0:
            return kernels_of<Format::kQ8_0>(layer);
        case Format::kQ4_0:
            return kernels_of<Format::kQ4_0>(layer);
        default:
            return kernels_of<Format::kBf16>(layer);
    }
}

PanelShape panel_shape(const DeviceLayer& layer, Projection projection) {
    const bool is_down = projection == Projection::kDown;
    const std::size_t up = quad_bytes(layer.format, layer.hidden_size);
    PanelShape shape;
    shape.row_size = is_down ? layer.width : layer.hidden_size;
    shape.groups = groups_of(shape.row_size, layer.format == Format::kBf16 ? 128 : 256);
    shape.quads = is_down ? layer.hidden_size / kQuad : 2 * (layer.width / kQuad);
    shape.panels = (shape.quads + kPanelQuads - 1) / kPanelQuads;
    shape.quad_bytes = static_cast<std::uint32_t>(quad_bytes(layer.format, shape.row_size));
    shape.start = is_down ? static_cast<std::uint32_t>(2 * (layer.width / kQuad) * up) : 0;
    return shape;
}

// Hands out parts of a workspace; with a null one it only adds up.
class Parts {
  public:
    explicit Parts(void* memory) : memory_(static_cast<std::uint8_t*>(memory)) {}

    template <typename T>
    T* take(std::size_t count) {
        constexpr std::size_t kBoundary = 256;
        auto* part = reinterpret_cast<T*>(memory_ + used_);
        used_ += (count * sizeof(T) + kBoundary - 1) / kBoundary * kBoundary;
        return part;
    }
    std::size_t used() const { return used_; }

  private:
    std::uint8_t* const memory_;
    std::size_t used_ = 0;
};

std::size_t lay_out(const DeviceLayer& layer, std::uint32_t num_tokens, bool copies,
                    void* workspace, PrefillCall& call) {
    const Kernels kernels = kernels_of(layer);
    const std::size_t tokens = std::min(num_tokens, prefill_pass_tokens(layer));
    const std::size_t pairs = tokens * layer.top_k;
    const std::size_t experts = std::min<std::size_t>(layer.num_experts, pairs);
    Parts parts(workspace);
    call.state = parts.take<PrefillState>(1);
    call.copied = parts.take<CopiedExpert>(experts);
    call.runs = parts.take<PrefillRun>(pairs / tile_tokens(layer.format) + experts);
    call.ids = parts.take<std::uint16_t>(pairs);
    call.places = parts.take<std::uint32_t>(pairs);
    call.tokens = parts.take<std::uint32_t>(pairs);
    call.rows = parts.take<std::uint8_t>(tokens * kernels.hidden_row_bytes);
    call.between = parts.take<std::uint8_t>(pairs * kernels.between_row_bytes);
    call.results = parts.take<float>(pairs * layer.hidden_size);
    const std::size_t quad = std::max(quad_bytes(layer.format, layer.hidden_size),
                                      quad_bytes(layer.format, layer.width));
    call.ring = parts.take<std::uint8_t>(copies ? kRingPanels * kPanelQuads * quad : 0);
    return parts.used();
}

struct Device {
    int num_multiprocessors = 0;
    int block_bytes = 0;  // of shared memory
    int multiprocessor_bytes = 0;
    int reserved_bytes = 0;  // for each block
};

cudaError_t read_device(Device& device) {
    int id = 0;
    cudaError_t error = cudaGetDevice(&id);
    const auto read = [&](int& value, cudaDeviceAttr attribute) {
        if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, id);
    };
    read(device.num_multiprocessors, cudaDevAttrMultiProcessorCount);
    read(device.block_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    read(device.multiprocessor_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    read(device.reserved_bytes, cudaDevAttrReservedSharedMemoryPerBlock);
    return error;
}

// The most stages with which two blocks run at once, at least 3; else the most for one; 0: none.
std::uint32_t stages_for(const Kernels& kernels, const Device& device) {
    for (std::uint32_t stages = kMostStages; stages > kLeastStages; --stages) {
        const int num_bytes = static_cast<int>(kernels.product_bytes(stages));
        if (2 * (num_bytes + device.reserved_bytes) <= device.multiprocessor_bytes) return stages;
    }
    for (std::uint32_t stages = kMostStages; stages >= kLeastStages; --stages) {
        if (static_cast<int>(kernels.product_bytes(stages)) <= device.block_bytes) return stages;
    }
    return 0;
}

cudaError_t start(Kernel kernel, const PrefillCall& call, std::uint32_t blocks,
                  std::uint32_t threads, std::size_t shared_bytes, cudaStream_t stream) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, call);
}

cudaError_t run_pass(const PrefillCall& call, const Kernels& kernels, const PrefillLaunch& launch,
                     const HostAnswer& answer, cudaStream_t stream) {
    const std::uint32_t num_tokens = call.input.num_tokens;
    const std::uint32_t row_blocks =
        (num_tokens * (call.layer.hidden_size / kBlock) * 8 + kPlanThreads - 1) / kPlanThreads;
    cudaError_t error =
        start(kernels.plan, call, 2 + row_blocks, kPlanThreads, sizeof(PlanMemory), stream);
    if (error != cudaSuccess) return error;
    if (call.tier.room != nullptr) {
        const std::size_t num_bytes =
            std::size_t{num_tokens} * call.layer.hidden_size * float_bytes(call.input.hidden_type);
        const int begun = answer.begin(answer.context, call.input.hidden, num_bytes, stream);
        if (begun != cudaSuccess) return static_cast<cudaError_t>(begun);
    }
    for (int i = 0; i < 2; ++i) {
        error = start(kernels.products[i], call, launch.blocks[i], kTileThreads,
                      kernels.product_bytes(launch.stages), stream);
        if (error != cudaSuccess) return error;
    }
    if (call.tier.room != nullptr) {
        const int waited = answer.wait(answer.context, stream);
        if (waited != cudaSuccess) return static_cast<cudaError_t>(waited);
    }
    return start(prefill_combine_kernel, call, num_tokens, kCombineThreads, 0, stream);
}

}  // namespace

std::uint32_t prefill_pass_tokens(const DeviceLayer& layer) {
    const std::size_t token_bytes = std::size_t{layer.top_k} * layer.hidden_size * sizeof(float);
    return static_cast<std::uint32_t>(std::max<std::size_t>(32, kResultBytes / token_bytes));
}

std::size_t prefill_workspace_bytes(const DeviceLayer& layer, std::uint32_t num_tokens,
                                    bool copies) {
    PrefillCall call{};
    return lay_out(layer, num_tokens, copies, nullptr, call);
}

const char* prepare_prefill(const DeviceLayer& layer, PrefillLaunch& launch) {
    if (layer.num_experts > kPrefillExperts) return "prefill for more than 1024 experts";
    const Kernels kernels = kernels_of(layer);
    Device device;
    if (const cudaError_t error = read_device(device)) return cudaGetErrorString(error);
    launch.stages = stages_for(kernels, device);
    if (launch.stages == 0) return "shared memory for a tile of a prefill";
    const std::uint32_t num_bytes = kernels.product_bytes(launch.stages);
    for (int i = 0; i < 2; ++i) {
        const Kernel product = kernels.products[i];
        int each = 0;
        cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(product),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(num_bytes));
        if (error == cudaSuccess) {
            error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, product, kTileThreads,
                                                                  num_bytes);
        }
        if (error != cudaSuccess) return cudaGetErrorString(error);
        launch.blocks[i] = static_cast<std::uint32_t>(device.num_multiprocessors * each);
        if (launch.blocks[i] < 8) return "room for 8 blocks of a prefill at once";
    }
    return nullptr;
}

int prefill(const DeviceLayer& layer, const PrefillLaunch& launch, const LayerInput& input,
            void* output, const Counts& counts, const ExchangeView& exchange, const HostTier& tier,
            const HostAnswer& answer, void* workspace, void* stream) {
    const Kernels kernels = kernels_of(layer);
    const std::uint32_t pass_tokens = prefill_pass_tokens(layer);
    PrefillCall call{};
    call.layer = layer;
    call.stages = launch.stages;
    call.shapes[0] = panel_shape(layer, Projection::kGateUp);
    call.shapes[1] = panel_shape(layer, Projection::kDown);
    call.counts = counts;
    call.counted = input;
    call.exchange = exchange;
    call.tier = tier;
    lay_out(layer, input.num_tokens, tier.address_of != nullptr, workspace, call);
    for (std::uint32_t first = 0; first < input.num_tokens; first += pass_tokens) {
        call.input = part_of(layer, input, first, std::min(pass_tokens, input.num_tokens - first));
        call.output = static_cast<std::uint8_t*>(output) +
                      std::size_t{first} * layer.hidden_size * float_bytes(input.hidden_type);
        const bool counts_here =
            first == 0 && (counts.assignments != nullptr || counts.reads != nullptr);
        if (!counts_here) call.counted.num_tokens = 0;
        const cudaError_t error =
            run_pass(call, kernels, launch, answer, static_cast<cudaStream_t>(stream));
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

}  // namespace moeprof
