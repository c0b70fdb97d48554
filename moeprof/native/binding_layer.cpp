#include "binding_layer.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "binding_parts.hpp"
#include "binding_shared.hpp"
#include "experts.hpp"

namespace nb = nanobind;

namespace moeprof {
namespace {

void set_expert(BoundLayer& self, std::size_t expert_id, Input<std::uint8_t, 1> packed) {
    const LayerShape& shape = self.layer.shape();
    if (expert_id >= shape.num_experts) {
        throw nb::index_error(("expert id " + std::to_string(expert_id) + ", expected below " +
                               std::to_string(shape.num_experts))
                                  .c_str());
    }
    expect("packed expert: bytes", packed.shape(0),
           expert_bytes(shape.format, shape.hidden_size, shape.width, shape.has_biases));
    if (reinterpret_cast<std::uintptr_t>(packed.data()) % kLine != 0) {
        refuse("packed expert: its address is no multiple of 64");
    }
    self.packed[expert_id] = packed;
    self.layer.set_expert(expert_id, packed.data());
}

[[noreturn]] void raise(DecodeFault fault) {
    switch (fault) {
        case DecodeFault::kUnknownExpert:
            throw nb::index_error("ids: an expert of which this layer has no weights");
        case DecodeFault::kRepeatedExpert:
            refuse("ids: an expert stands twice in a row");
        case DecodeFault::kBusy:
            throw std::runtime_error(
                "experts: the layer or its workers are at work for another thread");
        default:
            refuse("activations: a value is not finite");
    }
}

template <typename Ids, typename Weights>
void expect_routing(const LayerShape& shape, std::size_t num_tokens, const Ids& ids,
                    const Weights& weights) {
    expect("ids: tokens", ids.shape(0), num_tokens);
    expect("ids: slots", ids.shape(1), shape.top_k);
    expect("weights: tokens", weights.shape(0), num_tokens);
    expect("weights: slots", weights.shape(1), shape.top_k);
}

void expect_results(const LayerShape& shape, std::size_t num_tokens,
                    const Output<float, 3>& outputs, const Output<float, 2>& sums) {
    expect("outputs: tokens", outputs.shape(0), num_tokens);
    expect("outputs: slots", outputs.shape(1), shape.top_k);
    expect("outputs: values of a token", outputs.shape(2), shape.hidden_size);
    expect("sums: tokens", sums.shape(0), num_tokens);
    expect("sums: values of a token", sums.shape(1), shape.hidden_size);
}

void decode(BoundLayer& self, Workers& workers, Input<float, 2> rows, Input<std::uint16_t, 2> ids,
            Input<float, 2> weights, Output<float, 3> outputs, Output<float, 2> sums) {
    const LayerShape& shape = self.layer.shape();
    const std::size_t num_tokens = rows.shape(0);
    if (num_tokens > kMaxTokens) {
        refuse("rows: " + std::to_string(num_tokens) + " tokens, at most 8 expected");
    }
    expect("rows: values of a token", rows.shape(1), shape.hidden_size);
    expect_routing(shape, num_tokens, ids, weights);
    expect_results(shape, num_tokens, outputs, sums);
    DecodeFault fault;
    {
        nb::gil_scoped_release released;
        fault = self.layer.decode(workers, rows.data(), ids.data(), weights.data(), num_tokens,
                                  outputs.data(), sums.data());
    }
    if (fault != DecodeFault::kNone) raise(fault);
}

void prefill(BoundLayer& self, Workers& workers, Input<float, 2> rows, Input<std::uint16_t, 2> ids,
             Input<float, 2> weights, Output<float, 3> outputs, Output<float, 2> sums) {
    const LayerShape& shape = self.layer.shape();
    const std::size_t num_tokens = rows.shape(0);
    expect("rows: values of a token", rows.shape(1), shape.hidden_size);
    expect_routing(shape, num_tokens, ids, weights);
    expect_results(shape, num_tokens, outputs, sums);
    DecodeFault fault;
    {
        nb::gil_scoped_release released;
        fault = self.layer.prefill(
            workers, {rows.data(), FloatType::kFloat32, ids.data(), weights.data(), num_tokens},
            {outputs.data(), sums.data(), FloatType::kFloat32});
    }
    if (fault != DecodeFault::kNone) raise(fault);
}

void prefill_slots(BoundLayer& self, Workers& workers, std::uintptr_t hidden,
                   const std::string& hidden_type, std::uintptr_t ids, std::size_t num_tokens,
                   std::uintptr_t outputs) {
    const FloatType type = float_type_of(hidden_type);
    DecodeFault fault;
    {
        nb::gil_scoped_release released;
        fault = self.layer.prefill(workers,
                                   {at_address<const void>(hidden), type,
                                    at_address<const std::uint16_t>(ids), nullptr, num_tokens},
                                   {at_address<float>(outputs), nullptr, FloatType::kFloat32});
    }
    if (fault != DecodeFault::kNone) raise(fault);
}

void forward(BoundLayer& self, Workers& workers, std::uintptr_t hidden,
             const std::string& hidden_type, std::uintptr_t ids, std::uintptr_t weights,
             const std::string& weights_type, std::size_t num_tokens, std::uintptr_t output,
             std::uintptr_t assignments, std::uintptr_t reads, std::uintptr_t group_of,
             std::uintptr_t nanoseconds) {
    Routed routed;
    routed.hidden = at_address<const void>(hidden);
    routed.hidden_type = float_type_of(hidden_type);
    routed.ids = at_address<const std::int64_t>(ids);
    routed.weights = at_address<const void>(weights);
    routed.weights_type = float_type_of(weights_type);
    routed.num_tokens = num_tokens;
    routed.output = at_address<void>(output);
    routed.assignments = at_address<std::int64_t>(assignments);
    routed.reads = at_address<std::int64_t>(reads);
    routed.times = {at_address<const std::uint8_t>(group_of),
                    at_address<std::uint64_t>(nanoseconds)};
    DecodeFault fault;
    {
        nb::gil_scoped_release released;
        fault = self.layer.forward(workers, routed);
    }
    if (fault != DecodeFault::kNone) raise(fault);
}

std::uint64_t xor_experts(BoundLayer& self, Workers& workers, Input<std::uint16_t, 1> ids) {
    expect("ids: slots", ids.shape(0), self.layer.shape().top_k);
    std::uint64_t words = 0;
    DecodeFault fault;
    {
        nb::gil_scoped_release released;
        fault = self.layer.xor_experts(workers, ids.data(), &words);
    }
    if (fault != DecodeFault::kNone) raise(fault);
    return words;
}

std::vector<int> processors(Workers& self) {
    const Held pool = self.hold();
    if (!pool) throw std::runtime_error("workers: are at work for another thread");
    nb::gil_scoped_release released;
    return self.processors();
}

}  // namespace

void bind_layer(nb::module_& m) {
    nb::class_<Workers>(m, "Workers", "Resident worker threads; the caller is one of them.")
        .def(
            "__init__",
            [](Workers* self, unsigned num_threads, const std::vector<int>& cores, unsigned spin_us,
               const std::vector<int>& crowded) {
                if (num_threads == 0 || num_threads > 1024) {
                    refuse("num_threads: " + std::to_string(num_threads) + ", expected 1 to 1024");
                }
                new (self) Workers(num_threads, cores, spin_us, crowded);
            },
            nb::arg("num_threads"), nb::arg("cores") = std::vector<int>(), nb::arg("spin_us") = 200,
            nb::arg("crowded") = std::vector<int>())
        .def_prop_ro("num_threads", &Workers::num_threads)
        .def("processors", &processors, "The processor that each worker is on in a call.");
    nb::class_<BoundLayer>(m, "ExpertLayer", "One layer of packed experts in host memory.")
        .def(
            "__init__",
            [](BoundLayer* self, std::size_t hidden_size, std::size_t width,
               std::size_t num_experts, std::size_t top_k, const std::string& weight_format,
               bool has_biases, const std::string& unit, float alpha, float limit,
               const std::optional<std::string>& path) {
                LayerShape shape =
                    layer_shape(hidden_size, width, num_experts, top_k, weight_format);
                shape.has_biases = has_biases;
                shape.unit = {unit_of(unit), alpha, limit};
                const Path& chosen = path_of(path);
                new (self) BoundLayer{ExpertLayer(shape, chosen), {}};
                self->packed.resize(num_experts);
            },
            nb::arg("hidden_size"), nb::arg("width"), nb::arg("num_experts"), nb::arg("top_k"),
            nb::arg("weight_format"), nb::arg("has_biases") = false, nb::arg("unit") = "silu",
            nb::arg("alpha") = 1.702f, nb::arg("limit") = 7.0f, nb::arg("path") = nb::none())
        .def("set_expert", &set_expert, nb::arg("expert_id"), nb::arg("packed").noconvert())
        .def("decode", &decode, nb::arg("workers"), nb::arg("rows").noconvert(),
             nb::arg("ids").noconvert(), nb::arg("weights").noconvert(),
             nb::arg("outputs").noconvert(), nb::arg("sums").noconvert())
        .def("prefill", &prefill, nb::arg("workers"), nb::arg("rows").noconvert(),
             nb::arg("ids").noconvert(), nb::arg("weights").noconvert(),
             nb::arg("outputs").noconvert(), nb::arg("sums").noconvert())
        .def("prefill_slots", &prefill_slots, nb::arg("workers"), nb::arg("hidden"),
             nb::arg("hidden_type"), nb::arg("ids"), nb::arg("num_tokens"), nb::arg("outputs"),
             "What each slot's expert gives, before weighting; memory is named by address.")
        .def("forward", &forward, nb::arg("workers"), nb::arg("hidden"), nb::arg("hidden_type"),
             nb::arg("ids"), nb::arg("weights"), nb::arg("weights_type"), nb::arg("num_tokens"),
             nb::arg("output"), nb::arg("assignments") = 0, nb::arg("reads") = 0,
             nb::arg("group_of") = 0, nb::arg("nanoseconds") = 0,
             "The layer's weighted sum, few tokens or many; memory is named by address.")
        .def("xor_experts", &xor_experts, nb::arg("workers"), nb::arg("ids").noconvert())
        .def_prop_ro("path", [](const BoundLayer& self) { return self.layer.path().name; });
}

}  // namespace moeprof
