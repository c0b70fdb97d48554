#include "binding_experts.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "experts.hpp"
#include "plain_floats.hpp"

namespace nb = nanobind;

namespace moeprof {
namespace {

template <typename Scalar, int kDims>
using Input = nb::ndarray<const Scalar, nb::numpy, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
template <typename Scalar, int kDims>
using Output = nb::ndarray<Scalar, nb::numpy, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

void expect(const char* what, std::size_t got, std::size_t expected) {
    if (got == expected) return;
    refuse(std::string(what) + ": " + std::to_string(expected) + " expected, got " +
           std::to_string(got));
}

void expect_blocks(const char* what, std::size_t size) {
    if (size == 0 || size % kBlockSize != 0) {
        refuse(std::string(what) + ": " + std::to_string(size) +
               ", expected a positive multiple of 32");
    }
}

Format format_of(const std::string& name) {
    if (name == "q8_0") return Format::kQ8_0;
    if (name == "q4_0") return Format::kQ4_0;
    if (name == "bf16") return Format::kBf16;
    refuse("weight format: '" + name + "', expected one of q8_0, q4_0, bf16");
}

UnitKind unit_of(const std::string& name) {
    if (name == "silu") return UnitKind::kSilu;
    if (name == "gelu_tanh") return UnitKind::kGeluTanh;
    if (name == "clamped") return UnitKind::kClamped;
    if (name == "clamped_silu") return UnitKind::kClampedSilu;
    refuse("gated unit: '" + name + "', expected one of silu, gelu_tanh, clamped, clamped_silu");
}

std::vector<std::string> paths() {
    std::vector<std::string> names;
    visit_paths([&](const Path& path) { names.emplace_back(path.name); });
    return names;
}

// The named path, or the last and fastest.
const Path& path_of(const std::optional<std::string>& name) {
    const Path* found = nullptr;
    visit_paths([&](const Path& path) {
        if (!name || *name == path.name) found = &path;
    });
    if (found == nullptr) {
        std::string known;
        for (const std::string& path : paths()) known += (known.empty() ? "" : ", ") + path;
        refuse("path: '" + *name + "', this machine has " + known);
    }
    return *found;
}

template <typename Scalar>
nb::ndarray<Scalar, nb::numpy> owned(AlignedBytes bytes, std::vector<std::size_t> shape) {
    auto* data = bytes.release();
    nb::capsule owner(data,
                      [](void* p) noexcept { AlignedDelete{}(static_cast<std::uint8_t*>(p)); });
    return nb::ndarray<Scalar, nb::numpy>(reinterpret_cast<Scalar*>(data), shape.size(),
                                          shape.data(), owner);
}

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

LayerShape layer_shape(std::size_t hidden_size, std::size_t width, std::size_t num_experts,
                       std::size_t top_k, const std::string& weight_format) {
    expect_blocks("hidden size", hidden_size);
    expect_blocks("width", width);
    if (num_experts == 0 || num_experts > kNoExpert) {
        refuse("num_experts: " + std::to_string(num_experts) + ", expected 1 to 65535");
    }
    if (top_k == 0 || top_k > num_experts) {
        refuse("top_k: " + std::to_string(top_k) + ", expected 1 to " +
               std::to_string(num_experts));
    }
    LayerShape shape;
    shape.hidden_size = hidden_size;
    shape.width = width;
    shape.num_experts = num_experts;
    shape.top_k = top_k;
    shape.format = format_of(weight_format);
    return shape;
}

// A layer and the Python objects whose memory it reads.
struct BoundLayer {
    ExpertLayer layer;
    std::vector<Input<std::uint8_t, 1>> packed;
};

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

void decode(BoundLayer& self, Workers& workers, Input<float, 2> rows, Input<std::uint16_t, 2> ids,
            Input<float, 2> weights, Output<float, 3> outputs, Output<float, 2> sums) {
    const LayerShape& shape = self.layer.shape();
    const std::size_t num_tokens = rows.shape(0);
    if (num_tokens > kMaxTokens) {
        refuse("rows: " + std::to_string(num_tokens) + " tokens, at most 8 expected");
    }
    expect("rows: values of a token", rows.shape(1), shape.hidden_size);
    expect("ids: tokens", ids.shape(0), num_tokens);
    expect("ids: slots", ids.shape(1), shape.top_k);
    expect("weights: tokens", weights.shape(0), num_tokens);
    expect("weights: slots", weights.shape(1), shape.top_k);
    expect("outputs: tokens", outputs.shape(0), num_tokens);
    expect("outputs: slots", outputs.shape(1), shape.top_k);
    expect("outputs: values of a token", outputs.shape(2), shape.hidden_size);
    expect("sums: tokens", sums.shape(0), num_tokens);
    expect("sums: values of a token", sums.shape(1), shape.hidden_size);
    DecodeFault fault;
    {
        nb::gil_scoped_release released;
        fault = self.layer.decode(workers, rows.data(), ids.data(), weights.data(), num_tokens,
                                  outputs.data(), sums.data());
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

}  // namespace

void bind_experts(nb::module_& m) {
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
    nb::class_<Workers>(m, "Workers", "Resident worker threads; the caller is one of them.")
        .def(
            "__init__",
            [](Workers* self, unsigned num_threads, std::vector<int> cores, unsigned spin_us) {
                if (num_threads == 0 || num_threads > 1024) {
                    refuse("num_threads: " + std::to_string(num_threads) + ", expected 1 to 1024");
                }
                new (self) Workers(num_threads, std::move(cores), spin_us);
            },
            nb::arg("num_threads"), nb::arg("cores") = std::vector<int>(), nb::arg("spin_us") = 200)
        .def_prop_ro("num_threads", &Workers::num_threads);
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
        .def("xor_experts", &xor_experts, nb::arg("workers"), nb::arg("ids").noconvert())
        .def_prop_ro("path", [](const BoundLayer& self) { return self.layer.path().name; });
}

}  // namespace moeprof
