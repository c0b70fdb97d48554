#include <algorithm>
#include <string>

#include "binding_parts.hpp"
#include "binding_shared.hpp"
#include "counting.hpp"
#include "routed_tokens.hpp"

namespace nb = nanobind;

namespace moeprof {
namespace {

using Experts = Input<std::uint16_t, 2>;
using Numbers = Input<std::uint32_t, 1>;

struct Sums {
    AlignedBytes bytes;

    explicit Sums(std::size_t size)
        : bytes(aligned_bytes(std::max<std::size_t>(size, 1) * sizeof(std::int64_t))) {}
    std::int64_t* data() { return reinterpret_cast<std::int64_t*>(bytes.get()); }
    nb::ndarray<std::int64_t, nb::numpy> array(std::vector<std::size_t> shape) {
        return owned<std::int64_t>(std::move(bytes), std::move(shape));
    }
};

ChosenExperts routed(const char* what, const Experts& experts, std::size_t num_tokens,
                     std::size_t num_experts) {
    expect((std::string(what) + ": tokens").c_str(), experts.shape(0), num_tokens);
    if (num_experts > kNoExpert) refuse("num_experts: at most 65535");
    const std::size_t foreign = first_foreign_id(experts.data(), experts.size(), num_experts);
    if (foreign != experts.size()) {
        refuse(std::string(what) + ": row " + std::to_string(foreign / experts.shape(1)) +
               ": expert id " + std::to_string(experts.data()[foreign]) + ", expected below " +
               std::to_string(num_experts));
    }
    return {experts.data(), experts.shape(1)};
}

void expect_below(const char* what, const Numbers& numbers, std::size_t size, std::size_t limit) {
    expect(what, numbers.shape(0), size);
    for (std::size_t i = 0; i < size; ++i) {
        if (numbers.data()[i] < limit) continue;
        refuse(std::string(what) + ": " + std::to_string(numbers.data()[i]) + " at " +
               std::to_string(i) + ", expected below " + std::to_string(limit));
    }
}

nb::ndarray<std::int64_t, nb::numpy> overlap(Experts experts, Input<std::int64_t, 1> runs,
                                             Numbers groups, std::size_t num_groups,
                                             std::size_t num_experts, std::size_t max_lag) {
    Sums sums(2 * num_groups * max_lag);
    {
        nb::gil_scoped_release released;
        const ChosenExperts tokens = routed("experts", experts, experts.shape(0), num_experts);
        if (runs.shape(0) == 0 || runs.data()[0] != 0) refuse("runs: do not begin with 0");
        const std::size_t num_runs = runs.shape(0) - 1;
        for (std::size_t run = 0; run < num_runs; ++run) {
            if (runs.data()[run + 1] < runs.data()[run]) refuse("runs: descend");
        }
        expect("runs: tokens", static_cast<std::size_t>(runs.data()[num_runs]), experts.shape(0));
        expect_below("groups", groups, num_runs, num_groups);
        lag_overlap(tokens, runs.data(), groups.data(), num_runs, num_experts, max_lag, sums.data(),
                    sums.data() + num_groups * max_lag);
    }
    return sums.array({2, num_groups, max_lag});
}

nb::ndarray<std::int64_t, nb::numpy> pairs(Experts first, Experts second, Numbers groups,
                                           std::size_t num_groups, std::size_t num_experts) {
    Sums sums(num_groups * num_experts * num_experts);
    {
        nb::gil_scoped_release released;
        const std::size_t num_tokens = first.shape(0);
        const ChosenExperts one = routed("first", first, num_tokens, num_experts);
        const ChosenExperts other = routed("second", second, num_tokens, num_experts);
        expect_below("groups", groups, num_tokens, num_groups);
        pair_counts(one, other, groups.data(), num_tokens, num_experts, sums.data());
    }
    return sums.array({num_groups, num_experts, num_experts});
}

template <typename Entry>
Tables<Entry> tables_of(const Input<Entry, 3>& entries, const Numbers& tables,
                        const Numbers& groups, std::size_t num_tokens, std::size_t num_groups) {
    expect_below("tables", tables, num_tokens, entries.shape(0));
    expect_below("groups", groups, num_tokens, num_groups);
    return {entries.data(), entries.shape(1), tables.data(),
            groups.data(),  num_tokens,       entries.shape(2)};
}

nb::ndarray<std::int64_t, nb::numpy> ranks(Experts given, Experts chosen, Input<float, 3> evidence,
                                           Numbers tables, Numbers groups, std::size_t num_groups) {
    const std::size_t num_experts = evidence.shape(2);
    Sums sums(num_groups * num_experts);
    {
        nb::gil_scoped_release released;
        const std::size_t num_tokens = given.shape(0);
        const auto scoring = tables_of<float>(evidence, tables, groups, num_tokens, num_groups);
        expect("evidence: rows", evidence.shape(1), num_experts + 1);
        const ChosenExperts known = routed("given", given, num_tokens, num_experts);
        const ChosenExperts sought = routed("chosen", chosen, num_tokens, num_experts);
        candidate_ranks(known, sought, scoring, sums.data());
    }
    return sums.array({num_groups, num_experts});
}

nb::ndarray<std::int64_t, nb::numpy> marked_pairs(Experts experts, Input<std::uint8_t, 3> marked,
                                                  Numbers tables, Numbers groups,
                                                  std::size_t num_groups) {
    Sums sums(num_groups);
    {
        nb::gil_scoped_release released;
        const std::size_t num_tokens = experts.shape(0);
        expect("marked: rows", marked.shape(1), marked.shape(2));
        const auto asked = tables_of<std::uint8_t>(marked, tables, groups, num_tokens, num_groups);
        chosen_pairs(routed("experts", experts, num_tokens, marked.shape(1)), asked, sums.data());
    }
    return sums.array({num_groups});
}

}  // namespace

void bind_tokens(nb::module_& m) {
    m.def("lag_overlap", &overlap, nb::arg("experts").noconvert(), nb::arg("runs").noconvert(),
          nb::arg("groups").noconvert(), nb::arg("num_groups"), nb::arg("num_experts"),
          nb::arg("max_lag"), "Experts that tokens some places apart share, and could share.");
    m.def("pair_counts", &pairs, nb::arg("first").noconvert(), nb::arg("second").noconvert(),
          nb::arg("groups").noconvert(), nb::arg("num_groups"), nb::arg("num_experts"),
          "How often a token chooses an expert of one layer and an expert of another.");
    m.def("candidate_ranks", &ranks, nb::arg("given").noconvert(), nb::arg("chosen").noconvert(),
          nb::arg("evidence").noconvert(), nb::arg("tables").noconvert(),
          nb::arg("groups").noconvert(), nb::arg("num_groups"),
          "Chosen experts by their rank among scored candidates.");
    m.def("chosen_pairs", &marked_pairs, nb::arg("experts").noconvert(),
          nb::arg("marked").noconvert(), nb::arg("tables").noconvert(),
          nb::arg("groups").noconvert(), nb::arg("num_groups"),
          "Marked pairs among the experts of tokens.");
}

}  // namespace moeprof
