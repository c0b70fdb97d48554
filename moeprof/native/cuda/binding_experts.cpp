#include "binding_experts.hpp"

#include <cuda_runtime_api.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

#include "../binding_shared.hpp"
#include "host_link.hpp"
#include "layer.hpp"

namespace nb = nanobind;

namespace moeprof {
namespace {

void expect_aligned(const char* what, std::uintptr_t address, std::size_t boundary) {
    if (address % boundary == 0) return;
    refuse(std::string(what) + ": its address is no multiple of " + std::to_string(boundary));
}

// Why nothing can run here, or nothing.
std::optional<std::string> unavailable() {
    int num_devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&num_devices);
    if (error != cudaSuccess) return std::string(cudaGetErrorString(error));
    if (num_devices == 0) return std::string("no CUDA device");
    return std::nullopt;
}

// An exchange in pinned host memory that the device sees, too.
class Exchange {
  public:
    Exchange(std::size_t hidden_size, std::size_t top_k, double timeout_s)
        : layout_(exchange_layout(hidden_size, top_k)),
          hidden_size_(hidden_size),
          top_k_(top_k),
          timeout_ns_(static_cast<std::uint64_t>(timeout_s * 1e9)) {
        check("cudaHostAlloc", cudaHostAlloc(&host_, layout_.num_bytes,
                                             cudaHostAllocMapped | cudaHostAllocPortable));
        std::memset(host_, 0, layout_.num_bytes);
        header().answered = kAborted;
        const cudaError_t error = cudaHostGetDevicePointer(&device_, host_, 0);
        if (error == cudaSuccess) return;
        cudaFreeHost(host_);
        fail("cudaHostGetDevicePointer", error);
    }
    ~Exchange() { cudaFreeHost(host_); }
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;

    std::uintptr_t address() const { return reinterpret_cast<std::uintptr_t>(host_); }
    std::size_t hidden_size() const { return hidden_size_; }
    std::size_t top_k() const { return top_k_; }

    std::uint32_t take_faults() {
        std::uint32_t faults = __atomic_exchange_n(&header().host_fault, 0u, __ATOMIC_ACQ_REL);
        for (std::uint32_t bit = 0; bit < kNumFaults; ++bit) {
            std::uint32_t& met = header().device_faults[bit];
            if (__atomic_exchange_n(&met, 0u, __ATOMIC_ACQ_REL) != 0) faults |= 1u << bit;
        }
        return faults;
    }

    ExchangeView view() const {
        auto* bytes = static_cast<std::uint8_t*>(device_);
        return {static_cast<ExchangeHeader*>(device_),
                reinterpret_cast<std::uint64_t*>(bytes + layout_.rows),
                reinterpret_cast<std::uint64_t*>(bytes + layout_.ids),
                reinterpret_cast<std::uint64_t*>(bytes + layout_.weights),
                reinterpret_cast<const std::uint64_t*>(bytes + layout_.outputs),
                reinterpret_cast<const std::uint64_t*>(bytes + layout_.sums),
                timeout_ns_};
    }

  private:
    ExchangeHeader& header() { return *static_cast<ExchangeHeader*>(host_); }

    const ExchangeLayout layout_;
    const std::size_t hidden_size_;
    const std::size_t top_k_;
    const std::uint64_t timeout_ns_;
    void* host_ = nullptr;
    void* device_ = nullptr;
};

struct BoundDeviceLayer {
    DeviceLayer layer{};
    Exchange* exchange = nullptr;
    std::uint8_t* workspace = nullptr;
    PrefillLaunch launch{};
    HostTier tier{};
    HostRoom* room = nullptr;
};

void construct(BoundDeviceLayer* self, Exchange& exchange, std::uint32_t index,
               std::size_t hidden_size, std::size_t width, std::size_t num_experts,
               std::size_t top_k, const std::string& weight_format, bool has_biases,
               const std::string& unit, float alpha, float limit) {
    const LayerShape shape = layer_shape(hidden_size, width, num_experts, top_k, weight_format);
    if (hidden_size > exchange.hidden_size() || top_k > exchange.top_k()) {
        refuse("layer: the exchange was made for hidden size " +
               std::to_string(exchange.hidden_size()) + " and top_k " +
               std::to_string(exchange.top_k()));
    }
    DeviceLayer layer{};
    layer.index = index;
    layer.hidden_size = static_cast<std::uint32_t>(hidden_size);
    layer.width = static_cast<std::uint32_t>(width);
    layer.num_experts = static_cast<std::uint32_t>(num_experts);
    layer.top_k = static_cast<std::uint32_t>(top_k);
    layer.format = shape.format;
    layer.has_biases = has_biases;
    layer.unit = {unit_of(unit), alpha, limit};
    if (const char* lack = prepare_decode(layer)) {
        throw std::runtime_error(std::string("CUDA device: ") + lack);
    }
    PrefillLaunch launch{};
    if (const char* lack = prepare_prefill(layer, launch)) {
        throw std::runtime_error(std::string("CUDA device: ") + lack);
    }
    new (self) BoundDeviceLayer{layer, &exchange, nullptr, launch, {}, nullptr};
}

void set_weights(BoundDeviceLayer& self, std::uintptr_t packed, std::size_t stride,
                 std::uintptr_t slot_of, std::uintptr_t workspace) {
    expect_aligned("packed experts", packed, kLine);
    expect_aligned("stride", stride, kLine);
    expect_aligned("slot table", slot_of, alignof(std::int32_t));
    expect_aligned("workspace", workspace, 256);
    self.layer.packed = at_address<const std::uint8_t>(packed);
    self.layer.stride = stride;
    self.layer.slot_of = at_address<const std::int32_t>(slot_of);
    self.workspace = at_address<std::uint8_t>(workspace);
}

// Where experts in host memory are and what they cost, in nanoseconds; see HostTier.
void set_host(BoundDeviceLayer& self, std::uintptr_t address_of, HostRoom* room, float copy_ns,
              float host_ns, float host_token_ns) {
    expect_aligned("addresses", address_of, alignof(std::uint64_t));
    self.tier = {at_address<const std::uint64_t>(address_of),
                 nullptr,
                 nullptr,
                 nullptr,
                 copy_ns,
                 host_ns,
                 host_token_ns};
    self.room = room;
}

LayerInput layer_input(std::uintptr_t hidden, const std::string& hidden_type, std::uintptr_t ids,
                       std::uintptr_t weights, const std::string& weights_type,
                       std::size_t num_tokens) {
    expect_aligned("hidden", hidden, 16);
    return {at_address<const void>(hidden),      float_type_of(hidden_type),
            at_address<const std::int64_t>(ids), at_address<const void>(weights),
            float_type_of(weights_type),         static_cast<std::uint32_t>(num_tokens)};
}

void prefill_layer(BoundDeviceLayer& self, std::uintptr_t stream, std::uintptr_t hidden,
                   const std::string& hidden_type, std::uintptr_t ids, std::uintptr_t weights,
                   const std::string& weights_type, std::size_t num_tokens, std::uintptr_t output,
                   std::uintptr_t workspace, std::uintptr_t assignments, std::uintptr_t reads) {
    if (self.layer.slot_of == nullptr) {
        throw std::runtime_error("layer: set_weights was not called");
    }
    expect_aligned("workspace", workspace, 256);
    const LayerInput input =
        layer_input(hidden, hidden_type, ids, weights, weights_type, num_tokens);
    HostTier tier = self.tier;
    HostAnswer answer{};
    if (self.room != nullptr) {
        self.room->reserve(std::min<std::size_t>(num_tokens, prefill_pass_tokens(self.layer)));
        tier.room = self.room->room();
        tier.ids = self.room->ids();
        tier.outputs = self.room->outputs();
        answer = self.room->answer();
    }
    const Counts counts{at_address<std::int64_t>(assignments), at_address<std::int64_t>(reads),
                        nullptr};
    check("prefill", prefill(self.layer, self.launch, input, at_address<void>(output), counts,
                             self.exchange->view(), tier, answer, at_address<void>(workspace),
                             at_address<void>(stream)));
}

void forward(BoundDeviceLayer& self, std::uintptr_t stream, std::uintptr_t hidden,
             const std::string& hidden_type, std::uintptr_t ids, std::uintptr_t weights,
             const std::string& weights_type, std::size_t num_tokens, std::uintptr_t output,
             std::uintptr_t assignments, std::uintptr_t reads, bool overlaps,
             std::uintptr_t nanoseconds) {
    if (self.workspace == nullptr) throw std::runtime_error("layer: set_weights was not called");
    const LayerInput input =
        layer_input(hidden, hidden_type, ids, weights, weights_type, num_tokens);
    const Counts counts{at_address<std::int64_t>(assignments), at_address<std::int64_t>(reads),
                        at_address<std::uint64_t>(nanoseconds)};
    check("decode",
          decode(self.layer, input, at_address<void>(output), counts, self.exchange->view(),
                 self.workspace, overlaps, at_address<void>(stream)));
}

}  // namespace

void cuda::bind_experts(nb::module_& m) {
    m.attr("DECODE_TOKENS") = kDecodeTokens;
    m.attr("FAULT_NOT_FINITE") = static_cast<unsigned>(kFaultNotFinite);
    m.attr("FAULT_UNKNOWN_EXPERT") = static_cast<unsigned>(kFaultUnknownExpert);
    m.attr("FAULT_REPEATED_EXPERT") = static_cast<unsigned>(kFaultRepeatedExpert);
    m.attr("FAULT_NO_ANSWER") = static_cast<unsigned>(kFaultNoAnswer);
    m.attr("FAULT_UNKNOWN_LAYER") = static_cast<unsigned>(kFaultUnknownLayer);
    m.attr("FAULT_BUSY") = static_cast<unsigned>(kFaultBusy);
    m.def("unavailable", &unavailable, "Why no kernel can run here, or None.");
    m.def(
        "xor_words",
        [](std::uintptr_t bytes, std::size_t num_bytes, std::uintptr_t result,
           std::uintptr_t stream) {
            expect_aligned("bytes", bytes | num_bytes, 16);
            check("xor_words",
                  xor_words(at_address<const void>(bytes), num_bytes,
                            at_address<std::uint64_t>(result), at_address<void>(stream)));
        },
        nb::arg("bytes"), nb::arg("num_bytes"), nb::arg("result"), nb::arg("stream"),
        "A plain read of device memory: the XOR of its 64-bit words.");
    nb::class_<Exchange>(m, "Exchange", "Pinned memory through which a device asks the host.")
        .def(nb::init<std::size_t, std::size_t, double>(), nb::arg("hidden_size"), nb::arg("top_k"),
             nb::arg("timeout_s") = 10.0)
        .def_prop_ro("address", &Exchange::address)
        .def_prop_ro("hidden_size", &Exchange::hidden_size)
        .def_prop_ro("top_k", &Exchange::top_k)
        .def("take_faults", &Exchange::take_faults,
             "The bits of what went wrong since the last call; synchronise first.");
    nb::class_<HostPin>(m, "HostPin", "Host memory that is pinned and that the device sees.")
        .def(
            "__init__",
            [](HostPin* self, nb::object, std::uintptr_t address, std::size_t num_bytes) {
                new (self) HostPin(address, num_bytes);
            },
            nb::arg("owner"), nb::arg("address"), nb::arg("num_bytes"), nb::keep_alive<1, 2>(),
            "`owner` keeps the memory alive.")
        .def_prop_ro("device_address", &HostPin::device_address);
    nb::class_<HostRoom>(m, "HostRoom", "Where the host is asked during a prefill.")
        .def(
            "__init__",
            [](HostRoom* self, nb::object, std::size_t hidden_size, std::size_t top_k,
               std::uintptr_t answer, std::uintptr_t answerer) {
                new (self) HostRoom(hidden_size, top_k, reinterpret_cast<void (*)(void*)>(answer),
                                    at_address<void>(answerer));
            },
            nb::arg("owner"), nb::arg("hidden_size"), nb::arg("top_k"), nb::arg("answer"),
            nb::arg("answerer"), nb::keep_alive<1, 2>(),
            "`owner` keeps the answerer alive, a PrefillAnswerer's `function` and `address`.");
    nb::class_<BoundDeviceLayer>(m, "DeviceLayer", "One layer of packed experts in device memory.")
        .def("__init__", &construct, nb::arg("exchange"), nb::arg("index"), nb::arg("hidden_size"),
             nb::arg("width"), nb::arg("num_experts"), nb::arg("top_k"), nb::arg("weight_format"),
             nb::arg("has_biases") = false, nb::arg("unit") = "silu", nb::arg("alpha") = 1.702f,
             nb::arg("limit") = 7.0f, nb::keep_alive<1, 2>())
        .def_prop_ro(
            "workspace_bytes",
            [](const BoundDeviceLayer& self) { return decode_workspace_bytes(self.layer); })
        .def(
            "prefill_workspace_bytes",
            [](const BoundDeviceLayer& self, std::size_t num_tokens) {
                return prefill_workspace_bytes(self.layer, static_cast<std::uint32_t>(num_tokens),
                                               self.tier.address_of != nullptr);
            },
            nb::arg("num_tokens"))
        .def("set_host", &set_host, nb::arg("address_of"), nb::arg("room").none(),
             nb::arg("copy_ns"), nb::arg("host_ns"), nb::arg("host_token_ns"),
             nb::keep_alive<1, 3>())
        .def("prefill", &prefill_layer, nb::arg("stream"), nb::arg("hidden"),
             nb::arg("hidden_type"), nb::arg("ids"), nb::arg("weights"), nb::arg("weights_type"),
             nb::arg("num_tokens"), nb::arg("output"), nb::arg("workspace"),
             nb::arg("assignments") = 0, nb::arg("reads") = 0,
             "As forward, for many tokens at once; bf16 sums in another order.")
        .def("set_weights", &set_weights, nb::arg("packed"), nb::arg("stride"), nb::arg("slot_of"),
             nb::arg("workspace"))
        .def("forward", &forward, nb::arg("stream"), nb::arg("hidden"), nb::arg("hidden_type"),
             nb::arg("ids"), nb::arg("weights"), nb::arg("weights_type"), nb::arg("num_tokens"),
             nb::arg("output"), nb::arg("assignments") = 0, nb::arg("reads") = 0,
             nb::arg("overlaps") = true, nb::arg("nanoseconds") = 0)
        .def(
            "begin_step",
            [](BoundDeviceLayer& self, std::uintptr_t stream) {
                if (self.workspace == nullptr) throw std::runtime_error("layer: no workspace");
                check("begin_step", begin_step(self.workspace, at_address<void>(stream)));
            },
            nb::arg("stream"), "Marks the moment from which the next timed layer counts.");
}

}  // namespace moeprof
