#include "binding_dense.hpp"

#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "dense.hpp"

namespace nb = nanobind;

namespace moeprof::cuda {
namespace {

using Address = std::uintptr_t;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

cudaStream_t stream_of(Address stream) { return reinterpret_cast<cudaStream_t>(stream); }

[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

void check(cudaError_t status, const char* call) {
    if (status == cudaSuccess) return;
    const std::string what = std::string(call) + ": " + cudaGetErrorString(status);
    PyErr_SetString(nb::module_::import_("moeprof.errors").attr("NativeError").ptr(), what.c_str());
    throw nb::python_error();
}

Element element_of(const std::string& name) {
    if (name == "float32") return Element::kFloat32;
    if (name == "bfloat16") return Element::kBFloat16;
    if (name == "float16") return Element::kFloat16;
    refuse("element: float32, bfloat16 or float16 expected, got " + name);
}

void check_aligned(Address address, const char* name) {
    if (address % 16 != 0) refuse(std::string(name) + ": must start on 16 bytes");
}

/// Batch, heads, groups, length, key size and value size of an attention.
using AttentionShape = std::array<int, 6>;

void check_shape(const AttentionShape& shape, Element element) {
    const auto [batch, heads, groups, length, key_size, value_size] = shape;
    if (batch < 1 || groups < 1 || heads < groups || length < 1 || heads % groups != 0)
        refuse("shape: positive sizes expected, and heads a multiple of groups");
    const int unit = element == Element::kFloat32 ? 4 : 8;
    if (key_size < 1 || key_size > kMostHeadSize || key_size % unit != 0 || value_size < 1 ||
        value_size > kMostHeadSize || value_size % unit != 0)
        refuse("shape: head sizes of " + std::to_string(key_size) + " and " +
               std::to_string(value_size) + " are not supported");
}

std::tuple<int, std::int64_t, int> attention_workspace(const AttentionShape& shape) {
    const auto [batch, heads, groups, length, key_size, value_size] = shape;
    const int splits = attention_splits(batch, heads, groups, length);
    return {splits, attention_partial_floats(batch, heads, value_size, splits),
            attention_tickets(batch, heads, groups)};
}

void run_attention(std::array<Address, 8> addresses, const AttentionShape& shape,
                   const std::array<std::int64_t, 9>& strides, const std::string& element,
                   float scaling, float softcap, Address stream) {
    DecodeAttention job{};
    job.element = element_of(element);
    check_shape(shape, job.element);
    check_aligned(addresses[1], "keys");
    check_aligned(addresses[2], "values");
    const std::int64_t unit = job.element == Element::kFloat32 ? 4 : 8;
    check_aligned(addresses[0], "query");
    for (int i = 0; i < 8; ++i)
        if (strides[i] % unit != 0) refuse("strides: rows must start on 16 bytes");
    job.query = pointer(addresses[0]);
    job.keys = pointer(addresses[1]);
    job.values = pointer(addresses[2]);
    job.mask = static_cast<const bool*>(pointer(addresses[3]));
    job.sinks = pointer(addresses[4]);
    job.output = pointer(addresses[5]);
    job.partial = static_cast<float*>(pointer(addresses[6]));
    job.tickets = static_cast<unsigned*>(pointer(addresses[7]));
    std::tie(job.batch, job.heads, job.groups, job.length, job.key_size, job.value_size) =
        std::tuple_cat(shape);
    job.splits = attention_splits(job.batch, job.heads, job.groups, job.length);
    for (int i = 0; i < 2; ++i) job.query_strides[i] = strides[i];
    for (int i = 0; i < 3; ++i) job.key_strides[i] = strides[2 + i];
    for (int i = 0; i < 3; ++i) job.value_strides[i] = strides[5 + i];
    job.mask_stride = strides[8];
    job.scaling = scaling;
    job.softcap = softcap;
    check(decode_attention(job, stream_of(stream)), "decode_attention");
}

void run_row_products(Address row, const std::vector<Address>& weights,
                      const std::vector<Address>& biases, const std::vector<Address>& outputs,
                      const std::vector<int>& rows, int columns, const std::string& element,
                      Address stream, const std::vector<Address>& scales) {
    RowProducts job{};
    job.element = element_of(element);
    const std::size_t count = weights.size();
    if (count < 1 || count > RowProducts::kMost || biases.size() != count ||
        outputs.size() != count || rows.size() != count)
        refuse("weights, biases, outputs, rows: 1 to 4 of each expected");
    if (columns < 1 || columns % (job.element == Element::kFloat32 ? 4 : 8) != 0)
        refuse("columns: rows must be a multiple of 16 bytes");
    const bool has_scales = !scales.empty();
    if (has_scales && (scales.size() != count || columns % 32 != 0))
        refuse("scales: one of each, and columns a multiple of 32, expected");
    check_aligned(row, "row");
    job.row = pointer(row);
    job.columns = columns;
    job.count = static_cast<int>(count);
    for (std::size_t i = 0; i < count; ++i) {
        check_aligned(weights[i], "weights");
        if (rows[i] < 1) refuse("rows: positive numbers expected");
        job.weights[i] = pointer(weights[i]);
        job.scales[i] =
            has_scales ? static_cast<const std::uint16_t*>(pointer(scales[i])) : nullptr;
        job.biases[i] = pointer(biases[i]);
        job.outputs[i] = pointer(outputs[i]);
        job.rows[i] = rows[i];
    }
    check(row_products(job, stream_of(stream)), "row_products");
}

void run_route(std::array<Address, 8> addresses, const std::array<std::string, 4>& elements,
               const std::array<int, 3>& shape, const std::string& score, bool normalized,
               float scaling, Address stream) {
    Route job{};
    std::tie(job.columns, job.experts, job.top_k) = std::tuple_cat(shape);
    if (job.columns < 1 || job.columns % 8 != 0) refuse("columns: a multiple of 8 expected");
    if (job.experts < 1 || job.experts > kMostRouted) refuse("experts: 1 to 1024 expected");
    if (job.top_k < 1 || job.top_k > job.experts || job.top_k > kMostChosen)
        refuse("top_k: 1 to 32 expected, and no more than experts");
    if (score != "softmax" && score != "sigmoid") refuse("score: softmax or sigmoid expected");
    check_aligned(addresses[0], "row");
    check_aligned(addresses[1], "weight");
    job.row = pointer(addresses[0]);
    job.weight = pointer(addresses[1]);
    job.bias = pointer(addresses[2]);
    job.correction = static_cast<const float*>(pointer(addresses[3]));
    job.logits = pointer(addresses[4]);
    job.weights = pointer(addresses[5]);
    job.ids = static_cast<std::int64_t*>(pointer(addresses[6]));
    job.ticket = static_cast<unsigned*>(pointer(addresses[7]));
    job.row_element = element_of(elements[0]);
    job.weight_element = element_of(elements[1]);
    job.logit_element = element_of(elements[2]);
    job.output_element = element_of(elements[3]);
    job.score = score == "softmax" ? Score::kSoftmax : Score::kSigmoid;
    job.normalized = normalized;
    job.scaling = scaling;
    check(route(job, stream_of(stream)), "route");
}

}  // namespace

void bind_dense(nb::module_& m) {
    m.attr("MOST_HEAD_SIZE") = kMostHeadSize;
    m.attr("MOST_PRODUCTS") = RowProducts::kMost;
    m.attr("MOST_ROUTED") = kMostRouted;
    m.attr("MOST_CHOSEN") = kMostChosen;
    m.def(
        "attention_workspace", &attention_workspace, nb::arg("shape"),
        "Parts of the context, float32 values and uint32 tickets (zero at first) that "
        "decode_attention works with; shape is batch, heads, groups, length, key and value size.");
    m.def("decode_attention", &run_attention, nb::arg("addresses"), nb::arg("shape"),
          nb::arg("strides"), nb::arg("element"), nb::arg("scaling"), nb::arg("softcap"),
          nb::arg("stream"),
          "Attention of one query token per sequence. Addresses: query, keys, values, mask or 0, "
          "sinks or 0, output, workspace, tickets. Strides: query 2, keys 3, values 3, mask 1.");
    m.def("row_products", &run_row_products, nb::arg("row"), nb::arg("weights"), nb::arg("biases"),
          nb::arg("outputs"), nb::arg("rows"), nb::arg("columns"), nb::arg("element"),
          nb::arg("stream"), nb::arg("scales") = std::vector<Address>(),
          "Up to four matrices times the same row, each plus its bias or 0; with scales, q8_0.");
    m.def("route", &run_route, nb::arg("addresses"), nb::arg("elements"), nb::arg("shape"),
          nb::arg("score"), nb::arg("normalized"), nb::arg("scaling"), nb::arg("stream"),
          "A plain router for one token. Addresses: row, weight, bias or 0, correction or 0, "
          "logits, weights, ids, ticket. Elements: of row, weight, logits, weights. Shape: "
          "columns, experts, top_k.");
}

}  // namespace moeprof::cuda
