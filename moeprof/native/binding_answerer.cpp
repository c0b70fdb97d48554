#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstddef>
#include <optional>
#include <string>

#include "answerer.hpp"
#include "binding_layer.hpp"
#include "binding_parts.hpp"
#include "prefill_answerer.hpp"

namespace nb = nanobind;

namespace moeprof {
namespace {

struct BoundAnswerer {
    std::size_t hidden_size;
    std::size_t top_k;
    Answerer answerer;

    BoundAnswerer(std::uintptr_t exchange, std::size_t hidden_size, std::size_t top_k,
                  Workers& workers, int core)
        : hidden_size(hidden_size),
          top_k(top_k),
          answerer(at_address<void>(exchange), hidden_size, top_k, workers, core) {}
};

constexpr std::uint32_t kMaxLayers = 65536;

void set_layer(BoundAnswerer& self, std::uint32_t index, BoundLayer& layer) {
    const LayerShape& shape = layer.layer.shape();
    if (shape.hidden_size > self.hidden_size || shape.top_k > self.top_k) {
        refuse("layer: hidden size " + std::to_string(shape.hidden_size) + ", top_k " +
               std::to_string(shape.top_k) + ", the exchange has room for " +
               std::to_string(self.hidden_size) + " and " + std::to_string(self.top_k));
    }
    if (index >= kMaxLayers) refuse("layer: index " + std::to_string(index) + ", at most 65535");
    if (self.answerer.is_running()) throw std::runtime_error("answerer: stop it before set_layer");
    self.answerer.set_layer(index, &layer.layer);
}

nb::dict layout(std::size_t hidden_size, std::size_t top_k) {
    const ExchangeLayout parts = exchange_layout(hidden_size, top_k);
    nb::dict places;
    places["posted"] = offsetof(ExchangeHeader, posted);
    places["device_faults"] = offsetof(ExchangeHeader, device_faults);
    places["answered"] = offsetof(ExchangeHeader, answered);
    places["host_fault"] = offsetof(ExchangeHeader, host_fault);
    places["rows"] = parts.rows;
    places["ids"] = parts.ids;
    places["weights"] = parts.weights;
    places["outputs"] = parts.outputs;
    places["sums"] = parts.sums;
    places["num_bytes"] = parts.num_bytes;
    return places;
}

void set_prefill_layer(PrefillAnswerer& self, std::uint32_t index, BoundLayer& layer) {
    if (index >= kMaxLayers) refuse("layer: index " + std::to_string(index) + ", at most 65535");
    self.set_layer(index, &layer.layer);
}

}  // namespace

void bind_answerer(nb::module_& m) {
    m.def(
        "exchange_layout", &layout, nb::arg("hidden_size"), nb::arg("top_k"),
        "Where the parts of an exchange begin, in bytes; native/exchange.hpp says what they are.");
    nb::class_<BoundAnswerer>(m, "Answerer",
                              "Computes on the host what a device asks for through an exchange.")
        .def(nb::init<std::uintptr_t, std::size_t, std::size_t, Workers&, int>(),
             nb::arg("exchange"), nb::arg("hidden_size"), nb::arg("top_k"), nb::arg("workers"),
             nb::arg("core") = -1, nb::keep_alive<1, 5>())
        .def("set_layer", &set_layer, nb::arg("index"), nb::arg("layer"), nb::keep_alive<1, 3>())
        .def(
            "take_nanoseconds",
            [](BoundAnswerer& self, std::uint32_t index) {
                return self.answerer.take_nanoseconds(index);
            },
            nb::arg("index"), "What timed questions to a layer took since the last call.")
        .def("start", [](BoundAnswerer& self) { self.answerer.start(); })
        .def(
            "stop", [](BoundAnswerer& self) { self.answerer.stop(); },
            nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("is_running",
                     [](const BoundAnswerer& self) { return self.answerer.is_running(); });
    nb::class_<PrefillAnswerer>(m, "PrefillAnswerer",
                                "Computes on the host what a device's stream asks for in a room.")
        .def(
            "__init__",
            [](PrefillAnswerer* self, std::uintptr_t exchange, Workers& workers) {
                new (self) PrefillAnswerer(at_address<ExchangeHeader>(exchange), workers);
            },
            nb::arg("exchange"), nb::arg("workers"), nb::keep_alive<1, 3>())
        .def("set_layer", &set_prefill_layer, nb::arg("index"), nb::arg("layer"),
             nb::keep_alive<1, 3>())
        .def_prop_ro("function",
                     [](const PrefillAnswerer&) {
                         return reinterpret_cast<std::uintptr_t>(&PrefillAnswerer::answer);
                     })
        .def_prop_ro("address", [](const PrefillAnswerer& self) {
            return reinterpret_cast<std::uintptr_t>(&self);
        });
}

}  // namespace moeprof
