// Replays random lookups under every policy, for builds with a sanitizer.
#include "replay.hpp"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "lookups.hpp"

using namespace moeprof;

namespace {

constexpr std::size_t kRows = 3;
constexpr std::size_t kExperts = 7;
constexpr std::size_t kCells = kRows * kExperts;
constexpr std::size_t kSteps = 600;

void expect(bool holds, const char* what) {
    if (holds) return;
    std::printf("replay: %s\n", what);
    std::exit(1);
}

struct Drawn {
    std::vector<std::uint16_t> experts[kRows];
    std::vector<Cell> cells;
    std::vector<std::uint16_t> uses;
    std::vector<std::int64_t> start{0};

    Drawn() {
        std::mt19937 generator(5);
        std::vector<std::int64_t> steps{0};
        for (std::size_t step = 0; step < kSteps; ++step)
            steps.push_back(steps.back() + 1 + step % 2);
        const auto tokens = static_cast<std::size_t>(steps.back());
        const std::uint16_t* rows[kRows];
        for (std::size_t row = 0; row < kRows; ++row) {
            for (std::size_t i = 0; i < tokens; ++i) {
                const auto first = static_cast<std::uint16_t>(generator() % kExperts);
                experts[row].push_back(first);
                experts[row].push_back(static_cast<std::uint16_t>((first + 1) % kExperts));
            }
            rows[row] = experts[row].data();
        }
        cells.resize(kRows * tokens * 2);
        uses.resize(cells.size());
        start.resize(kSteps * kRows + 1);
        const auto found = pack_lookups({rows, kRows, 2, kExperts, steps.data(), kSteps},
                                        cells.data(), uses.data(), start.data() + 1);
        expect(found.has_value(), "lookups are not packed");
        cells.resize(*found);
    }

    Lookups lookups() const { return {start.data(), start.size() - 1, cells.data()}; }
};

std::unique_ptr<EvictionOrder> order_of(int kind, std::size_t cells, const double* scores,
                                        const std::int64_t* bytes, const std::uint32_t* next_use) {
    switch (kind) {
        case 0:
            return std::make_unique<LruOrder>(cells);
        case 1:
            return std::make_unique<LfuOrder>(cells, scores);
        case 2:
            return std::make_unique<LfruOrder>(cells, scores, bytes, 9);
        default:
            return std::make_unique<BeladyOrder>(cells, next_use);
    }
}

}  // namespace

void replay_everything() {
    const Drawn drawn;
    const Lookups lookups = drawn.lookups();
    std::vector<std::int64_t> bytes;
    for (std::size_t cell = 0; cell < kCells; ++cell) bytes.push_back(1 + cell / kExperts);
    const std::int64_t restart = 300;
    const ReplayTimes times{kRows, &restart, 1};
    std::vector<std::uint32_t> next_use(drawn.cells.size());
    next_uses(lookups, times, kCells, next_use.data());
    std::vector<std::int64_t> distances(drawn.cells.size());
    reuse_distances(lookups, kCells, bytes.data(), distances.data());
    std::vector<std::uint8_t> is_hit(drawn.cells.size()), pinned(kCells),
        scored(lookups.num_batches, 1);
    std::vector<std::uint16_t> hits(lookups.num_batches), uploads(lookups.num_batches);
    std::vector<std::uint32_t> served(lookups.num_batches);
    std::vector<std::int64_t> moved(lookups.num_batches);
    const ReplayOutput output{is_hit.data(), hits.data(), served.data(), uploads.data(),
                              moved.data()};
    pinned[4] = 1;
    for (int kind = 0; kind < 4; ++kind) {
        for (const std::size_t pools : {std::size_t{1}, kRows}) {
            for (const bool is_limited : {false, true}) {
                auto frequencies = std::make_shared<Frequencies>(kCells, 0.5);
                std::vector<CachePool> made;
                const std::size_t cells = kCells / pools;
                for (std::size_t pool = 0; pool < pools; ++pool) {
                    const std::size_t base = pool * cells;
                    made.push_back({order_of(kind, cells, frequencies->scores() + base,
                                             bytes.data() + base, next_use.data()),
                                    20 / static_cast<std::int64_t>(pools), 0});
                }
                Admission admission;
                if (is_limited) admission.hysteresis = 0.1;
                admission.is_budget_hard = is_limited || pools > 1;
                ExpertCache cache(bytes, pinned.data(), std::move(made), admission, frequencies);
                replay(lookups, drawn.uses.data(), times, cache, output);
                expect(hits[lookups.num_batches - 1] <= lookups.size(lookups.num_batches - 1),
                       "more hits than lookups");
            }
        }
    }
    replay_optimum(lookups, drawn.uses.data(), times, next_use.data(), scored.data(),
                   std::vector<std::size_t>{2, 0, 5}, bytes.data(), kCells, output);
}
