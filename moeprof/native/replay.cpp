#include "lookups.hpp"

namespace moeprof {
namespace {

// Says before which batches the cache is emptied and after which a step ends.
class Clock {
  public:
    explicit Clock(const ReplayTimes& times) : times_(times) {}

    bool restarts_at(std::size_t batch) {
        if (next_ == times_.num_restarts) return false;
        if (times_.restarts[next_] != static_cast<std::int64_t>(batch)) return false;
        ++next_;
        return true;
    }
    bool step_ends_after(std::size_t batch) const {
        return (batch + 1) % times_.batches_per_step == 0;
    }

  private:
    const ReplayTimes& times_;
    std::size_t next_ = 0;
};

template <typename Uses>
std::uint32_t served(const Uses* uses, const std::uint8_t* is_hit, std::size_t size) {
    std::uint32_t sum = 0;
    for (std::size_t i = 0; i < size; ++i) sum += is_hit[i] ? uses[i] : 0;
    return sum;
}

void write(const ReplayOutput& output, std::size_t batch, const BatchOutcome& outcome,
           std::uint32_t served) {
    output.hits[batch] = static_cast<std::uint16_t>(outcome.hits);
    output.served[batch] = served;
    output.uploads[batch] = static_cast<std::uint16_t>(outcome.uploads);
    output.uploaded_bytes[batch] = outcome.uploaded_bytes;
}

// The entries to begin with: the cells whose first use, before the next restart, is scored.
void preload(const Lookups& lookups, std::size_t batch, Clock clock, const std::uint8_t* is_scored,
             std::vector<Tournament>& kept, const std::vector<std::size_t>& capacities,
             std::vector<std::uint8_t>& was_used) {
    std::fill(was_used.begin(), was_used.end(), 0);
    const std::size_t pool_cells = was_used.size() / kept.size();
    std::size_t unused = was_used.size();
    for (; batch < lookups.num_batches && unused > 0 && !clock.restarts_at(batch); ++batch) {
        for (std::size_t i = lookups.first(batch); i < lookups.first(batch + 1); ++i) {
            const Cell cell = lookups.cells[i];
            if (was_used[cell]) continue;
            was_used[cell] = 1;
            --unused;
            Tournament& entries = kept[kept.size() == 1 ? 0 : cell / pool_cells];
            if (is_scored[batch]) entries.put(kNever - batch, static_cast<Tick>(i), cell);
        }
    }
    for (std::size_t pool = 0; pool < kept.size(); ++pool) {
        Tournament& entries = kept[pool];
        while (entries.size() > capacities[pool]) entries.remove(entries.top());
    }
}

}  // namespace

template <typename Uses>
void replay(const Lookups& lookups, const Uses* uses, const ReplayTimes& times, ExpertCache& cache,
            const ReplayOutput& output) {
    Clock clock(times);
    for (std::size_t batch = 0; batch < lookups.num_batches; ++batch) {
        if (clock.restarts_at(batch)) cache.clear();
        const std::size_t first = lookups.first(batch);
        const std::size_t size = lookups.size(batch);
        std::uint8_t* is_hit = output.is_hit + first;
        const BatchOutcome outcome =
            cache.batch(lookups.cells + first, size, static_cast<Tick>(first), is_hit);
        write(output, batch, outcome, served(uses + first, is_hit, size));
        if (clock.step_ends_after(batch)) cache.step();
    }
}

template void replay(const Lookups&, const std::uint16_t*, const ReplayTimes&, ExpertCache&,
                     const ReplayOutput&);
template void replay(const Lookups&, const std::uint32_t*, const ReplayTimes&, ExpertCache&,
                     const ReplayOutput&);

template <typename Uses>
void look_up_sets(const Lookups& lookups, const Uses* uses, const CellSets& sets,
                  const ReplayOutput& output) {
    for (std::size_t batch = 0; batch < lookups.num_batches; ++batch) {
        const std::uint8_t* is_member = sets.is_member + sets.set_of_batch[batch] * sets.num_cells;
        const std::size_t first = lookups.first(batch);
        const std::size_t size = lookups.size(batch);
        const Cell* cells = lookups.cells + first;
        std::uint8_t* is_hit = output.is_hit + first;
        std::uint32_t hits = 0, served = 0;
        for (std::size_t i = 0; i < size; ++i) {
            const bool hit = is_member[cells[i]] != 0;
            is_hit[i] = hit;
            hits += hit;
            served += hit ? uses[first + i] : 0;
        }
        write(output, batch, {hits, 0, 0}, served);
    }
}

template void look_up_sets(const Lookups&, const std::uint16_t*, const CellSets&,
                           const ReplayOutput&);
template void look_up_sets(const Lookups&, const std::uint32_t*, const CellSets&,
                           const ReplayOutput&);

template <typename Uses>
void replay_optimum(const Lookups& lookups, const Uses* uses, const ReplayTimes& times,
                    const std::uint32_t* next_use, const std::uint8_t* is_scored,
                    const std::vector<std::size_t>& capacities, const std::int64_t* bytes,
                    std::size_t num_cells, const ReplayOutput& output) {
    const std::size_t pool_cells = num_cells / capacities.size();
    // The entry that is used again last comes first.
    std::vector<Tournament> kept(capacities.size(), Tournament(num_cells));
    std::vector<std::uint8_t> was_used(num_cells);
    Clock clock(times);
    for (std::size_t batch = 0; batch < lookups.num_batches; ++batch) {
        if (clock.restarts_at(batch) || batch == 0) {
            for (Tournament& entries : kept) entries.clear();
            preload(lookups, batch, clock, is_scored, kept, capacities, was_used);
        }
        const std::size_t first = lookups.first(batch);
        const std::size_t size = lookups.size(batch);
        const Cell* cells = lookups.cells + first;
        std::uint8_t* is_hit = output.is_hit + first;
        BatchOutcome outcome;
        if (size > 0) {
            const std::size_t pool = capacities.size() == 1 ? 0 : cells[0] / pool_cells;
            Tournament& entries = kept[pool];
            for (std::size_t i = 0; i < size; ++i) {
                is_hit[i] = entries.holds(cells[i]);
                outcome.hits += is_hit[i];
                if (is_hit[i]) entries.remove(cells[i]);
            }
            for (std::size_t i = 0; i < size; ++i) {
                const std::uint32_t next = next_use[first + i];
                if (next == kNever || !is_scored[next]) continue;
                entries.put(kNever - next, static_cast<Tick>(first + i), cells[i]);
            }
            while (entries.size() > capacities[pool]) entries.remove(entries.top());
            for (std::size_t i = 0; i < size; ++i) {
                if (is_hit[i] || !entries.holds(cells[i])) continue;
                ++outcome.uploads;
                outcome.uploaded_bytes += bytes[cells[i]];
            }
        }
        write(output, batch, outcome, served(uses + first, is_hit, size));
    }
}

template void replay_optimum(const Lookups&, const std::uint16_t*, const ReplayTimes&,
                             const std::uint32_t*, const std::uint8_t*,
                             const std::vector<std::size_t>&, const std::int64_t*, std::size_t,
                             const ReplayOutput&);
template void replay_optimum(const Lookups&, const std::uint32_t*, const ReplayTimes&,
                             const std::uint32_t*, const std::uint8_t*,
                             const std::vector<std::size_t>&, const std::int64_t*, std::size_t,
                             const ReplayOutput&);

}  // namespace moeprof
