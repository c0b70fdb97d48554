#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <string>
#include <vector>

#include "binding_parts.hpp"
#include "counting.hpp"

namespace nb = nanobind;

namespace {

using Experts =
    nb::ndarray<const std::uint16_t, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Groups =
    nb::ndarray<const std::uint32_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<std::int64_t, nb::numpy, nb::ndim<2>>;

[[noreturn]] void raise(const moeprof::CountResult& result, std::size_t num_groups,
                        std::size_t num_experts) {
    const std::string row = "row " + std::to_string(result.row) + ": ";
    const std::string value = std::to_string(result.value);
    switch (result.fault) {
        case moeprof::CountFault::kGroup:
            throw nb::value_error(
                (row + "group " + value + ", expected below " + std::to_string(num_groups))
                    .c_str());
        case moeprof::CountFault::kExpert:
            throw nb::value_error(
                (row + "expert id " + value + ", expected below " + std::to_string(num_experts))
                    .c_str());
        default:
            throw nb::value_error((row + "expert id " + value + " stands twice").c_str());
    }
}

Counts count_assignments(Experts experts, Groups groups, std::size_t num_groups,
                         std::size_t num_experts) {
    const std::size_t num_tokens = experts.shape(0);
    if (groups.shape(0) != num_tokens) {
        throw nb::value_error(("groups: " + std::to_string(num_tokens) + " entries expected, got " +
                               std::to_string(groups.shape(0)))
                                  .c_str());
    }
    if (num_experts > moeprof::kNoExpert) throw nb::value_error("num_experts: at most 65535");
    auto counts = std::make_unique<std::int64_t[]>(num_groups * num_experts);
    moeprof::CountResult result;
    {
        nb::gil_scoped_release released;
        std::vector<std::size_t> last_seen(num_experts);
        result =
            moeprof::count_assignments(experts.data(), groups.data(), num_tokens, experts.shape(1),
                                       num_groups, num_experts, counts.get(), last_seen.data());
    }
    if (result.fault != moeprof::CountFault::kNone) raise(result, num_groups, num_experts);
    std::int64_t* data = counts.release();
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<std::int64_t*>(p); });
    return Counts(data, {num_groups, num_experts}, owner);
}

}  // namespace

NB_MODULE(_core, m) {
    m.doc() = "Compiled operations; moeprof.native.reference defines each of them.";
    m.attr("NO_EXPERT") = moeprof::kNoExpert;
    m.def("count_assignments", &count_assignments, nb::arg("experts").noconvert(),
          nb::arg("groups").noconvert(), nb::arg("num_groups"), nb::arg("num_experts"),
          "Assignments per document group and expert, [num_groups, num_experts] int64.");
    moeprof::bind_kernels(m);
    moeprof::bind_layer(m);
    moeprof::bind_answerer(m);
    moeprof::bind_linear(m);
    moeprof::bind_loading(m);
    moeprof::bind_policies(m);
    moeprof::bind_tokens(m);
}
