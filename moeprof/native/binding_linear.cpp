#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <string>

#include "binding_parts.hpp"
#include "binding_shared.hpp"
#include "linear.hpp"

namespace nb = nanobind;

namespace moeprof {
namespace {

void multiply_packed(Workers& workers, std::uintptr_t packed, std::uintptr_t bias,
                     std::size_t num_rows, std::size_t row_size, const std::string& weight_format,
                     std::uintptr_t rows, const std::string& type, std::size_t num_tokens,
                     std::uintptr_t output, const std::optional<std::string>& path_name) {
    expect_blocks("rows of the matrix", num_rows);
    expect_blocks("row size", row_size);
    if (packed % kLine != 0) refuse("packed matrix: its address is no multiple of 64");
    PackedMatrix matrix;
    matrix.format = format_of(weight_format);
    matrix.num_rows = num_rows;
    matrix.row_size = row_size;
    matrix.packed = at_address<const std::uint8_t>(packed);
    matrix.bias = at_address<const float>(bias);
    const FloatType number = float_type_of(type);
    const Path& path = path_of(path_name);
    const Held pool = workers.hold();
    if (!pool) throw std::runtime_error("linear: the workers are at work for another thread");
    DecodeFault fault;
    {
        nb::gil_scoped_release released;
        fault = multiply(matrix, path, workers, at_address<const void>(rows), number, num_tokens,
                         at_address<void>(output));
    }
    if (fault != DecodeFault::kNone) refuse("activations: a value is not finite");
}

}  // namespace

void bind_linear(nb::module_& m) {
    m.def("multiply_packed", &multiply_packed, nb::arg("workers"), nb::arg("packed"),
          nb::arg("bias"), nb::arg("num_rows"), nb::arg("row_size"), nb::arg("weight_format"),
          nb::arg("rows"), nb::arg("type"), nb::arg("num_tokens"), nb::arg("output"),
          nb::arg("path") = nb::none(),
          "A packed matrix times rows, plus a float32 bias or 0; memory is named by address.");
}

}  // namespace moeprof
