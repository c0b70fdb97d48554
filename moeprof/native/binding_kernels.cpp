#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "binding_parts.hpp"
#include "binding_shared.hpp"
#include "plain_floats.hpp"

namespace nb = nanobind;

namespace moeprof {
namespace {

std::size_t row_size_of(const Input<std::uint8_t, 2>& stored, Format format) {
    if (stored.shape(1) == 0 || stored.shape(1) % block_bytes(format) != 0) {
        refuse("stored rows: " + std::to_string(stored.shape(1)) +
               " bytes, expected a positive multiple of " + std::to_string(block_bytes(format)));
    }
    return stored.shape(1) / block_bytes(format) * kBlockSize;
}

nb::ndarray<std::uint8_t, nb::numpy> pack(Input<std::uint8_t, 2> stored, const std::string& name) {
    const Format format = format_of(name);
    const std::size_t row_size = row_size_of(stored, format);
    const std::size_t stride = quad_bytes(format, row_size);
    const std::size_t quads = num_quads(stored.shape(0));
    AlignedBytes packed = aligned_bytes(quads * stride);
    {
        nb::gil_scoped_release released;
        pack_rows(format, stored.data(), stored.shape(0), row_size, packed.get(), stride);
    }
    return owned<std::uint8_t>(std::move(packed), {quads, stride});
}

nb::ndarray<std::uint8_t, nb::numpy> unpack(Input<std::uint8_t, 2> packed, std::size_t num_rows,
                                            std::size_t row_size, const std::string& name) {
    const Format format = format_of(name);
    expect_blocks("row size", row_size);
    expect("packed rows: number of quads", packed.shape(0), num_quads(num_rows));
    expect("packed rows: bytes of a quad", packed.shape(1), quad_bytes(format, row_size));
    const std::size_t row_bytes = row_size / kBlockSize * block_bytes(format);
    AlignedBytes stored = aligned_bytes(num_rows * row_bytes);
    {
        nb::gil_scoped_release released;
        unpack_rows(format, packed.data(), num_rows, row_size, stored.get());
    }
    return owned<std::uint8_t>(std::move(stored), {num_rows, row_bytes});
}

// Stored gate, up and down into one run of bytes; the biases' place is left to the caller.
void pack_expert(Input<std::uint8_t, 2> gate, Input<std::uint8_t, 2> up,
                 Input<std::uint8_t, 2> down, const std::string& name,
                 Output<std::uint8_t, 1> packed) {
    const Format format = format_of(name);
    const std::size_t hidden_size = row_size_of(gate, format);
    const std::size_t width = row_size_of(down, format);
    expect("gate: rows", gate.shape(0), width);
    expect("up: rows", up.shape(0), width);
    expect("up: bytes of a row", up.shape(1), gate.shape(1));
    expect("down: rows", down.shape(0), hidden_size);
    expect("packed expert: bytes", packed.shape(0),
           expert_bytes(format, hidden_size, width, false));
    nb::gil_scoped_release released;
    const std::size_t stride = quad_bytes(format, hidden_size);
    std::uint8_t* to = packed.data();
    pack_rows(format, gate.data(), width, hidden_size, to, 2 * stride);
    pack_rows(format, up.data(), width, hidden_size, to + stride, 2 * stride);
    pack_rows(format, down.data(), hidden_size, width, to + 2 * num_quads(width) * stride,
              quad_bytes(format, width));
}

bool make_ready(const Path& path, Format format, const Input<float, 2>& rows, std::uint8_t* ready) {
    const auto ready_block = path.ready_block[static_cast<std::size_t>(format)];
    const std::size_t row_size = rows.shape(1);
    for (std::size_t t = 0; t < rows.shape(0); ++t, ready += ready_bytes(format, row_size)) {
        for (std::size_t b = 0; b < row_size / kBlockSize; ++b) {
            if (!ready_block(rows.data() + t * row_size + b * kBlockSize, b, ready)) return false;
        }
    }
    return true;
}

nb::ndarray<float, nb::numpy> project(Input<std::uint8_t, 2> packed, Input<float, 2> rows,
                                      std::size_t num_rows, const std::string& name,
                                      const std::optional<std::string>& path_name) {
    const Format format = format_of(name);
    const Path& path = path_of(path_name);
    const std::size_t row_size = rows.shape(1);
    const std::size_t num_tokens = rows.shape(0);
    expect_blocks("row size", row_size);
    expect("packed rows: number of quads", packed.shape(0), num_quads(num_rows));
    expect("packed rows: bytes of a quad", packed.shape(1), quad_bytes(format, row_size));
    AlignedBytes sums = aligned_bytes(num_tokens * num_rows * sizeof(float));
    bool finite = true;
    {
        nb::gil_scoped_release released;
        AlignedBytes ready = aligned_bytes(num_tokens * ready_bytes(format, row_size));
        std::vector<const std::uint8_t*> ready_rows;
        for (std::size_t t = 0; t < num_tokens; ++t) {
            ready_rows.push_back(ready.get() + t * ready_bytes(format, row_size));
        }
        PlainFloats floats;
        finite = make_ready(path, format, rows, ready.get());
        std::vector<float> quad(num_tokens * kQuad);
        auto* out = reinterpret_cast<float*>(sums.get());
        for (std::size_t q = 0; finite && q < packed.shape(0); ++q) {
            path.dot_quad[static_cast<std::size_t>(format)](packed.data() + q * packed.shape(1),
                                                            row_size, ready_rows.data(), num_tokens,
                                                            quad.data());
            for (std::size_t i = 0; i < num_tokens * kQuad; ++i) {
                const std::size_t row = q * kQuad + i % kQuad;
                if (row < num_rows) out[i / kQuad * num_rows + row] = quad[i];
            }
        }
    }
    if (!finite) refuse("activations: a value is not finite");
    return owned<float>(std::move(sums), {num_tokens, num_rows});
}

nb::ndarray<float, nb::numpy> gated_unit(Input<float, 1> gate, Input<float, 1> up,
                                         const std::string& kind, float alpha, float limit,
                                         const std::optional<std::string>& path_name) {
    const GatedUnit unit{unit_of(kind), alpha, limit};
    const Path& path = path_of(path_name);
    const std::size_t size = gate.shape(0);
    expect("up: values", up.shape(0), size);
    expect_blocks("values", size);
    AlignedBytes values = aligned_bytes(size * sizeof(float));
    PlainFloats floats;
    for (std::size_t at = 0; at < size; at += kBlockSize) {
        path.unit_block(unit, gate.data() + at, up.data() + at,
                        reinterpret_cast<float*>(values.get()) + at);
    }
    return owned<float>(std::move(values), {size});
}

}  // namespace

void bind_kernels(nb::module_& m) {
    m.def("paths", &paths, "Vector paths this machine can run, the slowest first.");
    m.def(
        "expert_bytes",
        [](std::size_t hidden_size, std::size_t width, const std::string& name, bool has_biases) {
            expect_blocks("hidden size", hidden_size);
            expect_blocks("width", width);
            return expert_bytes(format_of(name), hidden_size, width, has_biases);
        },
        nb::arg("hidden_size"), nb::arg("width"), nb::arg("weight_format"), nb::arg("has_biases"),
        "Bytes of one packed expert.");
    m.def("pack_rows", &pack, nb::arg("stored").noconvert(), nb::arg("weight_format"),
          "Stored rows in the packed order, [num_quads, quad_bytes] uint8.");
    m.def("unpack_rows", &unpack, nb::arg("packed").noconvert(), nb::arg("num_rows"),
          nb::arg("row_size"), nb::arg("weight_format"), "The inverse of pack_rows.");
    m.def(
        "pack_expert", &pack_expert, nb::arg("gate").noconvert(), nb::arg("up").noconvert(),
        nb::arg("down").noconvert(), nb::arg("weight_format"), nb::arg("packed").noconvert(),
        "Packs an expert's stored rows into `packed`, which is expert_bytes without biases long.");
    m.def("project", &project, nb::arg("packed").noconvert(), nb::arg("rows").noconvert(),
          nb::arg("num_rows"), nb::arg("weight_format"), nb::arg("path") = nb::none(),
          "Packed rows times activation rows, [num_tokens, num_rows] float32.");
    m.def("gated_unit", &gated_unit, nb::arg("gate").noconvert(), nb::arg("up").noconvert(),
          nb::arg("kind"), nb::arg("alpha") = 1.702f, nb::arg("limit") = 7.0f,
          nb::arg("path") = nb::none(), "Values of a gated unit, float32.");
}

}  // namespace moeprof
