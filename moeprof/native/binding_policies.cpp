#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "binding_parts.hpp"
#include "binding_shared.hpp"
#include "lookups.hpp"

namespace nb = nanobind;

namespace moeprof {
namespace {

template <typename Scalar>
struct Made {
    AlignedBytes bytes;
    std::size_t size;

    explicit Made(std::size_t count)
        : bytes(unwritten_bytes(count * sizeof(Scalar))), size(count) {}
    Scalar* data() { return reinterpret_cast<Scalar*>(bytes.get()); }
    nb::ndarray<Scalar, nb::numpy> array() { return owned<Scalar>(std::move(bytes), {size}); }
};

// The first of some cells outside [base, base + size), or their number.
std::size_t first_outside(const Cell* cells, std::size_t num_cells, Cell base, std::size_t size) {
    std::uint32_t outside = 0;
    for (std::size_t i = 0; i < num_cells; ++i) outside |= cells[i] - base >= size;
    if (outside == 0) return num_cells;
    std::size_t at = 0;
    while (cells[at] - base < size) ++at;
    return at;
}

[[noreturn]] void refuse_cell(std::size_t batch, Cell cell) {
    refuse("cells: batch " + std::to_string(batch) + " looks up cell " + std::to_string(cell));
}

// Checks what the loops rely on: batches follow each other, and each is of one run of pool_cells.
Lookups lookups_of(const Input<std::int64_t, 1>& batch_start, const Input<std::uint32_t, 1>& cells,
                   std::size_t num_cells, std::size_t pool_cells) {
    if (batch_start.shape(0) == 0) refuse("batch_start: empty");
    const Lookups lookups{batch_start.data(), batch_start.shape(0) - 1, cells.data()};
    const std::size_t size = cells.shape(0);
    if (lookups.num_batches >= kNever) refuse("batch_start: too many batches");
    if (size > ~Tick{0}) refuse("cells: too many lookups");
    if (batch_start.data()[0] != 0) refuse("batch_start: does not begin with 0");
    for (std::size_t batch = 0; batch < lookups.num_batches; ++batch) {
        const std::int64_t end = batch_start.data()[batch + 1];
        if (end < batch_start.data()[batch] || end > static_cast<std::int64_t>(size)) {
            refuse("batch_start: batch " + std::to_string(batch) + " ends at " +
                   std::to_string(end));
        }
    }
    expect("cells: lookups", size, lookups.first(lookups.num_batches));
    const std::size_t outside = first_outside(cells.data(), size, 0, num_cells);
    if (outside < size) {
        const auto* end = lookups.batch_start + lookups.num_batches;
        const auto* next = std::upper_bound(lookups.batch_start, end, outside);
        refuse_cell(next - lookups.batch_start - 1, cells.data()[outside]);
    }
    for (std::size_t batch = 0; pool_cells < num_cells && batch < lookups.num_batches; ++batch) {
        const Cell* own = cells.data() + lookups.first(batch);
        const std::size_t number = lookups.size(batch);
        if (number == 0) continue;
        const auto base = static_cast<Cell>(own[0] / pool_cells * pool_cells);
        const std::size_t other = first_outside(own, number, base, pool_cells);
        if (other < number) refuse_cell(batch, own[other]);
    }
    return lookups;
}

nb::ndarray<std::int64_t, nb::numpy> distances(Input<std::int64_t, 1> batch_start,
                                               Input<std::uint32_t, 1> cells, std::size_t num_cells,
                                               std::optional<Input<std::int64_t, 1>> cell_bytes) {
    if (cell_bytes) expect("cell_bytes: cells", cell_bytes->shape(0), num_cells);
    Made<std::int64_t> found(cells.shape(0));
    {
        nb::gil_scoped_release released;
        const Lookups lookups = lookups_of(batch_start, cells, num_cells, num_cells);
        reuse_distances(lookups, num_cells, cell_bytes ? cell_bytes->data() : nullptr,
                        found.data());
    }
    return found.array();
}

template <typename Uses>
std::size_t pack(const std::vector<Input<std::uint16_t, 2>>& experts,
                 Input<std::int64_t, 1> step_start, std::size_t num_experts,
                 Output<std::uint32_t, 1> cells, Output<Uses, 1> uses,
                 Output<std::int64_t, 1> batch_end) {
    if (experts.empty() || step_start.shape(0) == 0) refuse("no rows or steps");
    const std::size_t num_tokens = experts[0].shape(0);
    const std::size_t top_k = experts[0].shape(1);
    std::vector<const std::uint16_t*> rows;
    for (const auto& row : experts) {
        expect("experts: tokens", row.shape(0), num_tokens);
        expect("experts: slots", row.shape(1), top_k);
        rows.push_back(row.data());
    }
    const std::size_t num_steps = step_start.shape(0) - 1;
    std::int64_t before = 0;
    for (std::size_t step = 0; step <= num_steps; ++step) {
        const std::int64_t start = step_start.data()[step];
        if (start < before) refuse("step_start: descends");
        before = start;
    }
    expect("step_start: tokens", static_cast<std::size_t>(before), num_tokens);
    expect("batch_end: batches", batch_end.shape(0), num_steps * rows.size());
    const std::size_t largest = rows.size() * num_tokens * top_k;
    if (cells.shape(0) < largest || uses.shape(0) < largest) refuse("cells, uses: too short");
    std::optional<std::size_t> found;
    {
        nb::gil_scoped_release released;
        const RoutedSteps steps{rows.data(), rows.size(),       top_k,
                                num_experts, step_start.data(), num_steps};
        found = pack_lookups(steps, cells.data(), uses.data(), batch_end.data());
    }
    if (!found) refuse("experts: an id is not below " + std::to_string(num_experts));
    return *found;
}

// A policy of a user, asked with the interpreter's lock held.
class PythonOrder final : public EvictionOrder {
  public:
    PythonOrder(std::size_t num_cells, nb::callable make)
        : make_(std::move(make)), policy_(make_()), is_present_(num_cells) {}

    void use(const UsedCells& used) override {
        used.for_each_entry([this](Cell cell, Tick) { is_present_[cell] = 1; });
    }
    Cell victim(const InUse& in_use) override {
        std::size_t count = 0;
        Made<std::int64_t> candidates(is_present_.size());
        for (Cell cell = 0; cell < is_present_.size(); ++cell) {
            if (is_present_[cell] && !in_use(cell)) candidates.data()[count++] = cell;
        }
        if (count == 0) return kNoCell;
        candidates.size = count;
        const nb::object answer = policy_.attr("victim")(candidates.array());
        const auto cell = nb::cast<std::int64_t>(answer.attr("__index__")());
        if (cell < 0 || cell >= static_cast<std::int64_t>(is_present_.size()) ||
            !is_present_[cell] || in_use(static_cast<Cell>(cell))) {
            refuse("victim returned " + std::to_string(cell) + ", which is no candidate");
        }
        is_present_[cell] = 0;
        return static_cast<Cell>(cell);
    }
    void restore(Cell cell) override { is_present_[cell] = 1; }
    void clear() override {
        policy_ = make_();
        std::fill(is_present_.begin(), is_present_.end(), 0);
    }
    bool watches() const override { return true; }
    void look_up(Cell cell, std::uint32_t batch) override {
        policy_.attr("touch")(cell, batch - 1);
    }
    bool admits(Cell cell) override {
        return nb::cast<bool>(nb::bool_(policy_.attr("admit")(cell)));
    }

  private:
    nb::callable make_;
    nb::object policy_;
    std::vector<std::uint8_t> is_present_;
};

// What makes a cache, as Python says it.
struct CacheSettings {
    std::string order;  // lru, lfu, lfru, belady or python
    Input<std::int64_t, 1> cell_bytes;
    Input<std::uint8_t, 1> pinned;
    Input<std::int64_t, 1> budgets;
    double decay;
    double recent_share;
    std::optional<std::size_t> max_uploads;
    std::optional<double> hysteresis;
    nb::object make_policy;
};

std::unique_ptr<EvictionOrder> order_of(const CacheSettings& settings, std::size_t pool,
                                        const Frequencies* frequencies,
                                        const std::uint32_t* next_use) {
    const std::size_t cells = settings.cell_bytes.shape(0) / settings.budgets.shape(0);
    const std::size_t base = pool * cells;
    const double* scores = frequencies ? frequencies->scores() + base : nullptr;
    if (settings.order == "lru") return std::make_unique<LruOrder>(cells);
    if (settings.order == "lfu") return std::make_unique<LfuOrder>(cells, scores);
    if (settings.order == "lfru") {
        const double room = settings.recent_share * settings.budgets.data()[pool];
        return std::make_unique<LfruOrder>(cells, scores, settings.cell_bytes.data() + base,
                                           static_cast<std::int64_t>(room));
    }
    if (settings.order == "belady") return std::make_unique<BeladyOrder>(cells, next_use);
    if (settings.order == "python") {
        return std::make_unique<PythonOrder>(cells, nb::cast<nb::callable>(settings.make_policy));
    }
    refuse("order: '" + settings.order + "'");
}

ExpertCache cache_of(const CacheSettings& settings, const std::uint32_t* next_use) {
    const std::size_t num_cells = settings.cell_bytes.shape(0);
    const bool counts = settings.order == "lfu" || settings.order == "lfru" || settings.hysteresis;
    auto frequencies = counts ? std::make_shared<Frequencies>(num_cells, settings.decay) : nullptr;
    std::vector<CachePool> pools;
    for (std::size_t pool = 0; pool < settings.budgets.shape(0); ++pool) {
        pools.push_back({order_of(settings, pool, frequencies.get(), next_use),
                         settings.budgets.data()[pool], 0});
    }
    Admission admission;
    if (settings.max_uploads) admission.max_uploads = *settings.max_uploads;
    admission.hysteresis = settings.hysteresis;
    admission.is_budget_hard =
        settings.max_uploads || settings.hysteresis || settings.budgets.shape(0) > 1;
    const std::int64_t* bytes = settings.cell_bytes.data();
    return ExpertCache({bytes, bytes + num_cells}, settings.pinned.data(), std::move(pools),
                       admission, std::move(frequencies));
}

struct Arrays {
    Arrays(std::size_t num_lookups, std::size_t num_batches)
        : is_hit(num_lookups),
          hits(num_batches),
          served(num_batches),
          uploads(num_batches),
          bytes(num_batches) {}
    ReplayOutput pointers() {
        return {is_hit.data(), hits.data(), served.data(), uploads.data(), bytes.data()};
    }
    nb::tuple arrays() {
        return nb::make_tuple(is_hit.array(), hits.array(), served.array(), uploads.array(),
                              bytes.array());
    }

    Made<std::uint8_t> is_hit;
    Made<std::uint16_t> hits;
    Made<std::uint32_t> served;
    Made<std::uint16_t> uploads;
    Made<std::int64_t> bytes;
};

void expect_pools(const Input<std::int64_t, 1>& cell_bytes, const Input<std::int64_t, 1>& pools) {
    const std::size_t count = pools.shape(0);
    if (count == 0 || cell_bytes.shape(0) == 0 || cell_bytes.shape(0) % count != 0) {
        refuse("budgets: " + std::to_string(count) + " pools of " +
               std::to_string(cell_bytes.shape(0)) + " cells");
    }
}

ReplayTimes times_of(std::size_t batches_per_step, const Input<std::int64_t, 1>& restarts) {
    if (batches_per_step == 0) refuse("batches_per_step: 0");
    return {batches_per_step, restarts.data(), restarts.shape(0)};
}

template <typename Uses>
nb::tuple replay_lookups(Input<std::int64_t, 1> batch_start, Input<std::uint32_t, 1> cells,
                         Input<Uses, 1> uses, std::size_t batches_per_step,
                         Input<std::int64_t, 1> restarts, const std::string& order,
                         Input<std::int64_t, 1> cell_bytes, Input<std::uint8_t, 1> pinned,
                         Input<std::int64_t, 1> budgets, double decay, double recent_share,
                         std::optional<std::size_t> max_uploads, std::optional<double> hysteresis,
                         nb::object make_policy) {
    const std::size_t num_cells = cell_bytes.shape(0);
    expect_pools(cell_bytes, budgets);
    expect("pinned: cells", pinned.shape(0), num_cells);
    expect("uses: lookups", uses.shape(0), cells.shape(0));
    if (!(decay > 0 && decay <= 1)) refuse("decay: not above 0 and at most 1");
    const ReplayTimes times = times_of(batches_per_step, restarts);
    const Lookups lookups = lookups_of(batch_start, cells, num_cells, num_cells / budgets.shape(0));
    const CacheSettings settings{order,        cell_bytes,  pinned,     budgets,    decay,
                                 recent_share, max_uploads, hysteresis, make_policy};
    std::vector<std::uint32_t> next_use(order == "belady" ? cells.shape(0) : 0);
    Arrays output(cells.shape(0), lookups.num_batches);
    if (order == "python") {
        ExpertCache cache = cache_of(settings, nullptr);
        replay(lookups, uses.data(), times, cache, output.pointers());
    } else {
        ExpertCache cache = cache_of(settings, next_use.data());
        nb::gil_scoped_release released;
        if (!next_use.empty()) next_uses(lookups, times, num_cells, next_use.data());
        replay(lookups, uses.data(), times, cache, output.pointers());
    }
    return output.arrays();
}

template <typename Uses>
nb::tuple look_up(Input<std::int64_t, 1> batch_start, Input<std::uint32_t, 1> cells,
                  Input<Uses, 1> uses, Input<std::uint8_t, 2> is_member,
                  Input<std::uint32_t, 1> set_of_batch) {
    const std::size_t num_sets = is_member.shape(0), num_cells = is_member.shape(1);
    if (num_cells == 0) refuse("is_member: no cells");
    expect("uses: lookups", uses.shape(0), cells.shape(0));
    const Lookups lookups = lookups_of(batch_start, cells, num_cells, num_cells);
    expect("set_of_batch: batches", set_of_batch.shape(0), lookups.num_batches);
    for (std::size_t batch = 0; batch < lookups.num_batches; ++batch) {
        const std::uint32_t set = set_of_batch.data()[batch];
        if (set >= num_sets) refuse("set_of_batch: set " + std::to_string(set));
    }
    Arrays output(cells.shape(0), lookups.num_batches);
    {
        nb::gil_scoped_release released;
        look_up_sets(lookups, uses.data(), {is_member.data(), set_of_batch.data(), num_cells},
                     output.pointers());
    }
    return output.arrays();
}

template <typename Uses>
nb::tuple optimum(Input<std::int64_t, 1> batch_start, Input<std::uint32_t, 1> cells,
                  Input<Uses, 1> uses, std::size_t batches_per_step,
                  Input<std::int64_t, 1> restarts, Input<std::int64_t, 1> cell_bytes,
                  Input<std::int64_t, 1> capacities, Input<std::uint8_t, 1> is_scored) {
    const std::size_t num_cells = cell_bytes.shape(0);
    expect_pools(cell_bytes, capacities);
    expect("uses: lookups", uses.shape(0), cells.shape(0));
    const ReplayTimes times = times_of(batches_per_step, restarts);
    const Lookups lookups =
        lookups_of(batch_start, cells, num_cells, num_cells / capacities.shape(0));
    expect("is_scored: batches", is_scored.shape(0), lookups.num_batches);
    const std::vector<std::size_t> entries(capacities.data(),
                                           capacities.data() + capacities.shape(0));
    Arrays output(cells.shape(0), lookups.num_batches);
    {
        nb::gil_scoped_release released;
        std::vector<std::uint32_t> next_use(cells.shape(0));
        next_uses(lookups, times, num_cells, next_use.data());
        replay_optimum(lookups, uses.data(), times, next_use.data(), is_scored.data(), entries,
                       cell_bytes.data(), num_cells, output.pointers());
    }
    return output.arrays();
}

template <typename Uses>
void bind_typed(nb::module_& m) {
    m.def("pack_lookups", &pack<Uses>, nb::arg("experts"), nb::arg("step_start").noconvert(),
          nb::arg("num_experts"), nb::arg("cells").noconvert(), nb::arg("uses").noconvert(),
          nb::arg("batch_end").noconvert(),
          "Writes the lookups of routed tokens, a batch for each step and row; their number.");
    m.def(
        "replay_lookups", &replay_lookups<Uses>, nb::arg("batch_start").noconvert(),
        nb::arg("cells").noconvert(), nb::arg("uses").noconvert(), nb::arg("batches_per_step"),
        nb::arg("restarts").noconvert(), nb::arg("order"), nb::arg("cell_bytes").noconvert(),
        nb::arg("pinned").noconvert(), nb::arg("budgets").noconvert(), nb::arg("decay") = 1.0,
        nb::arg("recent_share") = 0.5, nb::arg("max_uploads") = nb::none(),
        nb::arg("hysteresis") = nb::none(), nb::arg("make_policy") = nb::none(),
        "Replays a policy; which lookups hit, and of each batch the hits, the assignments served, "
        "uploads and bytes uploaded.");
    m.def("look_up_sets", &look_up<Uses>, nb::arg("batch_start").noconvert(),
          nb::arg("cells").noconvert(), nb::arg("uses").noconvert(),
          nb::arg("is_member").noconvert(), nb::arg("set_of_batch").noconvert(),
          "Which lookups a list of cells holds, one list for each batch; as replay_lookups.");
    m.def("replay_optimum", &optimum<Uses>, nb::arg("batch_start").noconvert(),
          nb::arg("cells").noconvert(), nb::arg("uses").noconvert(), nb::arg("batches_per_step"),
          nb::arg("restarts").noconvert(), nb::arg("cell_bytes").noconvert(),
          nb::arg("capacities").noconvert(), nb::arg("is_scored").noconvert(),
          "The most hits in scored batches with so many entries; as replay_lookups.");
}

}  // namespace

void bind_policies(nb::module_& m) {
    m.def("reuse_distances", &distances, nb::arg("batch_start").noconvert(),
          nb::arg("cells").noconvert(), nb::arg("num_cells"), nb::arg("cell_bytes") = nb::none(),
          "Distinct cells (or their bytes) looked up since the last use of each, [N] int64.");
    bind_typed<std::uint16_t>(m);
    bind_typed<std::uint32_t>(m);
}

}  // namespace moeprof
