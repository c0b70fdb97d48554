#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "binding_parts.hpp"
#include "binding_shared.hpp"
#include "host_memory.hpp"
#include "quantize.hpp"

namespace nb = nanobind;

namespace moeprof {
namespace {

using Biases = std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t>;

void raise(WeightFault fault) {
    switch (fault) {
        case WeightFault::kNone:
            return;
        case WeightFault::kNotFinite:
            refuse("weights: a value is not finite");
        case WeightFault::kScaleOverflow:
            refuse("weights: a block's scale overflows float16");
        case WeightFault::kValueOverflow:
            refuse("weights: a value overflows bf16");
    }
}

void quantize(std::uintptr_t gate, std::uintptr_t up, std::uintptr_t down,
              const std::string& value_type, std::size_t hidden_size, std::size_t width,
              const std::string& weight_format, Output<std::uint8_t, 1> packed, Workers& workers,
              const std::optional<Biases>& biases, const std::optional<std::string>& path_name) {
    expect_blocks("hidden size", hidden_size);
    expect_blocks("width", width);
    LayerShape shape;
    shape.hidden_size = hidden_size;
    shape.width = width;
    shape.format = format_of(weight_format);
    shape.has_biases = biases.has_value();
    expect("packed expert: bytes", packed.shape(0),
           expert_bytes(shape.format, hidden_size, width, shape.has_biases));
    if (reinterpret_cast<std::uintptr_t>(packed.data()) % sizeof(float) != 0) {
        refuse("packed expert: its address is no multiple of 4");
    }
    const Path& path = path_of(path_name);
    ExpertValues values;
    values.gate = at_address<const void>(gate);
    values.up = at_address<const void>(up);
    values.down = at_address<const void>(down);
    values.type = float_type_of(value_type);
    if (biases) {
        values.gate_bias = at_address<const void>(std::get<0>(*biases));
        values.up_bias = at_address<const void>(std::get<1>(*biases));
        values.down_bias = at_address<const void>(std::get<2>(*biases));
    }
    const Held pool = workers.hold();
    if (!pool) throw std::runtime_error("experts: the workers are at work for another thread");
    WeightFault fault;
    {
        nb::gil_scoped_release released;
        fault = quantize_expert(shape, path, values, workers, packed.data());
    }
    raise(fault);
}

void quantize_one(std::uintptr_t values, const std::string& value_type, std::size_t num_rows,
                  std::size_t row_size, const std::string& weight_format,
                  Output<std::uint8_t, 1> packed, Workers& workers) {
    expect_blocks("row size", row_size);
    const Format format = format_of(weight_format);
    expect("packed matrix: bytes", packed.shape(0),
           num_quads(num_rows) * quad_bytes(format, row_size));
    const FloatType type = float_type_of(value_type);
    const Held pool = workers.hold();
    if (!pool) throw std::runtime_error("linear: the workers are at work for another thread");
    WeightFault fault;
    {
        nb::gil_scoped_release released;
        fault = quantize_matrix(format, path_of({}), at_address<const void>(values), type, num_rows,
                                row_size, workers, packed.data());
    }
    raise(fault);
}

using SharedMemory = std::shared_ptr<HostMemory>;

struct BoundMemory {
    SharedMemory memory;
};

// The array owns the memory itself, not the Python object: what torch and nanobind still hold when
// the interpreter ends they never let go, and a Python object among that is reported as a leak.
nb::ndarray<std::uint8_t, nb::numpy, nb::ndim<1>> array(const BoundMemory& self) {
    nb::capsule owner(new SharedMemory(self.memory),
                      [](void* p) noexcept { delete static_cast<SharedMemory*>(p); });
    return nb::ndarray<std::uint8_t, nb::numpy, nb::ndim<1>>(self.memory->data(),
                                                             {self.memory->num_bytes()}, owner);
}

}  // namespace

void bind_loading(nb::module_& m) {
    m.def("quantize_expert", &quantize, nb::arg("gate"), nb::arg("up"), nb::arg("down"),
          nb::arg("value_type"), nb::arg("hidden_size"), nb::arg("width"), nb::arg("weight_format"),
          nb::arg("packed").noconvert(), nb::arg("workers"), nb::arg("biases") = nb::none(),
          nb::arg("path") = nb::none(),
          "Packs an expert given as numbers, named by their addresses.");
    m.def("quantize_matrix", &quantize_one, nb::arg("values"), nb::arg("value_type"),
          nb::arg("num_rows"), nb::arg("row_size"), nb::arg("weight_format"),
          nb::arg("packed").noconvert(), nb::arg("workers"),
          "Packs a matrix given as numbers, named by their address.");
    nb::class_<BoundMemory>(m, "HostMemory", "Zeroed memory on a 2 MiB boundary for weights.")
        .def(
            "__init__",
            [](BoundMemory* self, std::size_t num_bytes) {
                // Other modules of the process may claim std::bad_alloc for errors of their own.
                try {
                    new (self) BoundMemory{std::make_shared<HostMemory>(num_bytes)};
                } catch (const std::bad_alloc&) {
                    PyErr_NoMemory();
                    throw nb::python_error();
                }
            },
            nb::arg("num_bytes"))
        .def_prop_ro("address",
                     [](const BoundMemory& self) {
                         return reinterpret_cast<std::uintptr_t>(self.memory->data());
                     })
        .def_prop_ro("num_bytes", [](const BoundMemory& self) { return self.memory->num_bytes(); })
        .def_prop_ro("huge_bytes",
                     [](const BoundMemory& self) { return self.memory->huge_bytes(); })
        .def("array", &array, "The memory as a numpy array, which keeps it alive.");
}

}  // namespace moeprof
