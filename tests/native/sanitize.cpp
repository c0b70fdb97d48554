// Drives the native core without Python, for builds with a sanitizer: every path and format decodes
// and prefills the same layer with several workers and must give the same bits as the plain path;
// pools are started and stopped, and contended for by several threads.
//
// Exit status 1 and one line for the first difference; else the paths, and a hash of all bits, the
// same on every machine.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "aligned.hpp"
#include "counting.hpp"
#include "experts.hpp"
#include "hand_over.hpp"
#include "linear.hpp"
#include "quantize.hpp"
#include "replay.hpp"
#include "routed_tokens.hpp"

using namespace moeprof;

namespace {

constexpr std::size_t kExperts = 5;
constexpr std::size_t kTopK = 3;
constexpr std::size_t kTokens = 21;

void expect(bool holds, const char* what, const char* path) {
    if (holds) return;
    std::printf("%s: %s\n", path, what);
    std::exit(1);
}

// Sums of four even draws, the same on every machine.
std::vector<float> draw(std::size_t size, unsigned seed) {
    std::mt19937 generator(seed);
    std::vector<float> values(size);
    for (float& value : values) {
        std::int64_t sum = 0;
        for (int i = 0; i < 4; ++i) sum += static_cast<std::int32_t>(generator());
        value = static_cast<float>(sum) / 2147483648.0f;
    }
    return values;
}

// FNV-1a of the bits of values, carried on from `hash`.
std::uint64_t hashed(const std::vector<float>& values, std::uint64_t hash) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (std::size_t i = 0; i < values.size() * sizeof(float); ++i) {
        hash = (hash ^ bytes[i]) * 1099511628211u;
    }
    return hash;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Case {
    LayerShape shape;
    std::vector<float> rows;
    std::vector<std::uint16_t> ids;
    std::vector<float> weights;

    explicit Case(Format format) {
        shape.hidden_size = 288;  // a full group and a smaller one
        shape.width = 96;
        shape.num_experts = kExperts;
        shape.top_k = kTopK;
        shape.format = format;
        shape.has_biases = true;
        rows = draw(kTokens * shape.hidden_size, 1);
        weights = draw(kTokens * kTopK, 2);
        for (std::size_t t = 0; t < kTokens; ++t) {
            for (std::size_t k = 0; k < kTopK; ++k) {
                ids.push_back(static_cast<std::uint16_t>((t + 2 * k) % kExperts));
            }
        }
        ids[4] = kNoExpert;
    }
};

struct Got {
    std::vector<float> outputs;
    std::vector<float> sums;
};

std::vector<AlignedBytes> quantized(const Case& given, const Path& path, Workers& workers) {
    const LayerShape& shape = given.shape;
    const std::vector<float> values = draw(3 * shape.width * shape.hidden_size, 3);
    const std::vector<float> biases = draw(2 * shape.width + shape.hidden_size, 4);
    const std::size_t size = shape.width * shape.hidden_size;
    std::vector<AlignedBytes> packed;
    for (std::size_t id = 0; id < kExperts; ++id) {
        packed.push_back(
            aligned_bytes(expert_bytes(shape.format, shape.hidden_size, shape.width, true)));
        const std::size_t turn = id % 3;
        const ExpertValues expert{values.data() + turn * size,
                                  values.data() + (turn + 1) % 3 * size,
                                  values.data() + (turn + 2) % 3 * size,
                                  FloatType::kFloat32,
                                  biases.data(),
                                  biases.data() + shape.width,
                                  biases.data() + 2 * shape.width};
        const Held pool = workers.hold();
        expect(static_cast<bool>(pool), "the pool is not free", path.name);
        expect(quantize_expert(shape, path, expert, workers, packed.back().get()) ==
                   WeightFault::kNone,
               "weights are refused", path.name);
    }
    return packed;
}

// Tokens by decode, eight at a time, and all at once by prefill and forward.
Got compute(const Case& given, const Path& path, unsigned num_threads) {
    Workers workers(num_threads, {}, 50);
    const auto packed = quantized(given, path, workers);
    const std::size_t hidden = given.shape.hidden_size;
    ExpertLayer layer(given.shape, path);
    for (std::size_t id = 0; id < kExperts; ++id) layer.set_expert(id, packed[id].get());
    Got decoded{std::vector<float>(kTokens * kTopK * hidden), std::vector<float>(kTokens * hidden)};
    for (std::size_t t = 0; t < kTokens; t += kMaxTokens) {
        const std::size_t some = std::min(kMaxTokens, kTokens - t);
        expect(layer.decode(workers, given.rows.data() + t * hidden, given.ids.data() + t * kTopK,
                            given.weights.data() + t * kTopK, some,
                            decoded.outputs.data() + t * kTopK * hidden,
                            decoded.sums.data() + t * hidden) == DecodeFault::kNone,
               "decode fails", path.name);
    }
    Got prefilled = decoded;
    std::fill(prefilled.outputs.begin(), prefilled.outputs.end(), 9.0f);
    std::fill(prefilled.sums.begin(), prefilled.sums.end(), 9.0f);
    expect(layer.prefill(workers,
                         {given.rows.data(), FloatType::kFloat32, given.ids.data(),
                          given.weights.data(), kTokens},
                         {prefilled.outputs.data(), prefilled.sums.data(), FloatType::kFloat32}) ==
               DecodeFault::kNone,
           "prefill fails", path.name);
    // The matrix unit sums bf16 products in an order of its own.
    if (given.shape.format != Format::kBf16 || std::strcmp(path.name, "amx") != 0) {
        expect(same(decoded.outputs, prefilled.outputs) && same(decoded.sums, prefilled.sums),
               "prefill differs from decode", path.name);
    }
    std::vector<std::int64_t> ids(given.ids.begin(), given.ids.end());
    std::vector<std::int64_t> counts(2 * kExperts);
    std::vector<float> output(kTokens * hidden);
    Routed routed;
    routed.hidden = given.rows.data();
    routed.ids = ids.data();
    routed.weights = given.weights.data();
    routed.output = output.data();
    routed.num_tokens = kTokens;
    routed.assignments = counts.data();
    routed.reads = counts.data() + kExperts;
    expect(layer.forward(workers, routed) == DecodeFault::kNone, "forward fails", path.name);
    expect(same(output, prefilled.sums), "forward differs from prefill", path.name);
    return decoded;
}

// One matrix times few tokens and times many.
std::vector<float> multiplied(const Case& given, const Path& path, unsigned num_threads) {
    Workers workers(num_threads, {}, 50);
    const Held pool = workers.hold();
    constexpr std::size_t kRows = 96;
    PackedMatrix matrix;
    matrix.format = given.shape.format;
    matrix.num_rows = kRows;
    matrix.row_size = given.shape.hidden_size;
    const std::vector<float> values = draw(kRows * matrix.row_size, 5);
    const std::vector<float> bias = draw(kRows, 6);
    const AlignedBytes packed =
        aligned_bytes(num_quads(kRows) * quad_bytes(matrix.format, matrix.row_size));
    expect(quantize_matrix(matrix.format, path, values.data(), FloatType::kFloat32, kRows,
                           matrix.row_size, workers, packed.get()) == WeightFault::kNone,
           "a matrix is refused", path.name);
    matrix.packed = packed.get();
    matrix.bias = bias.data();
    std::vector<float> few(kMaxTokens * kRows);
    std::vector<float> many(kTokens * kRows);
    expect(multiply(matrix, path, workers, given.rows.data(), FloatType::kFloat32, kMaxTokens,
                    few.data()) == DecodeFault::kNone &&
               multiply(matrix, path, workers, given.rows.data(), FloatType::kFloat32, kTokens,
                        many.data()) == DecodeFault::kNone,
           "multiply fails", path.name);
    if (matrix.format != Format::kBf16 || std::strcmp(path.name, "amx") != 0) {
        expect(std::memcmp(few.data(), many.data(), few.size() * sizeof(float)) == 0,
               "many tokens differ from few", path.name);
    }
    return few;
}

// Several threads want one layer and one pool; whoever is not refused gets the right bits.
void contend(const Case& given, const Path& path, const Got& expected) {
    Workers workers(2, {}, 0);
    const auto packed = quantized(given, path, workers);
    const std::size_t hidden = given.shape.hidden_size;
    ExpertLayer layer(given.shape, path);
    for (std::size_t id = 0; id < kExperts; ++id) layer.set_expert(id, packed[id].get());
    std::vector<std::thread> threads;
    for (int caller = 0; caller < 3; ++caller) {
        threads.emplace_back([&] {
            std::vector<float> outputs(kMaxTokens * kTopK * hidden);
            std::vector<float> sums(kMaxTokens * hidden);
            for (int i = 0; i < 50; ++i) {
                const DecodeFault fault =
                    layer.decode(workers, given.rows.data(), given.ids.data(), given.weights.data(),
                                 kMaxTokens, outputs.data(), sums.data());
                if (fault == DecodeFault::kBusy) continue;
                expect(fault == DecodeFault::kNone, "decode fails under contention", path.name);
                expect(std::memcmp(sums.data(), expected.sums.data(),
                                   sums.size() * sizeof(float)) == 0,
                       "decode differs under contention", path.name);
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
}

// Every statistic over tokens of 70 experts (two words of bits), with empty slots.
void count_everything() {
    constexpr std::size_t kMany = 70, kSlots = 4, kLength = 300, kLags = 64;
    std::vector<std::uint16_t> ids(kLength * kSlots);
    std::vector<std::uint32_t> group(kLength), table(kLength);
    std::size_t chosen = 0;
    for (std::size_t t = 0; t < kLength; ++t) {
        group[t] = t < 200 ? 0 : 1;
        table[t] = t % 2;
        for (std::size_t k = 0; k < kSlots; ++k) {
            const bool is_empty = k == 3 && t % 5 == 0;
            ids[t * kSlots + k] = is_empty ? kNoExpert : (t * t + 17 * k) % kMany;
            chosen += is_empty ? 0 : 1;
        }
    }
    expect(first_foreign_id(ids.data(), ids.size(), kMany) == ids.size(), "an id is foreign",
           "any");
    const ChosenExperts routed{ids.data(), kSlots};
    const std::vector<std::int64_t> runs{0, 200, 200, 300};
    const std::vector<std::uint32_t> of_run{0, 1, 1};
    std::vector<std::int64_t> shared(2 * kLags), held(2 * kLags), pairs(2 * kMany * kMany);
    lag_overlap(routed, runs.data(), of_run.data(), 3, kMany, kLags, shared.data(), held.data());
    pair_counts(routed, routed, group.data(), kLength, kMany, pairs.data());
    std::int64_t diagonal = 0;
    for (std::size_t e = 0; e < kMany; ++e) {
        diagonal += pairs[e * kMany + e] + pairs[(kMany + e) * kMany + e];
    }
    expect(diagonal == static_cast<std::int64_t>(chosen), "experts meet themselves", "any");
    const std::vector<float> evidence = draw(2 * (kMany + 1) * kMany, 5);
    const std::vector<std::uint8_t> marked(2 * kMany * kMany, 1);
    std::vector<std::int64_t> ranks(2 * kMany), found(2);
    candidate_ranks(routed, routed,
                    {evidence.data(), kMany + 1, table.data(), group.data(), kLength, kMany},
                    ranks.data());
    std::int64_t ranked = 0;
    for (const std::int64_t number : ranks) ranked += number;
    expect(ranked == static_cast<std::int64_t>(chosen), "not every expert has a rank", "any");
    chosen_pairs(routed, {marked.data(), kMany, table.data(), group.data(), kLength, kMany},
                 found.data());
    expect(found[0] + found[1] == 240 * 6 + 60 * 3, "not every pair is counted", "any");
}

}  // namespace

int main() {
    count_everything();
    replay_everything();
    hand_over();
    std::uint64_t hash = 14695981039346656037u;
    for (const Format format : {Format::kQ8_0, Format::kQ4_0, Format::kBf16}) {
        const Case given(format);
        const Got expected = compute(given, kScalarPath, 1);
        const std::vector<float> product = multiplied(given, kScalarPath, 1);
        visit_paths([&](const Path& path) {
            for (const unsigned num_threads : {1u, 2u, 4u}) {
                const Got got = compute(given, path, num_threads);
                expect(same(got.outputs, expected.outputs) && same(got.sums, expected.sums),
                       "differs from the plain path", path.name);
                expect(same(multiplied(given, path, num_threads), product),
                       "a product differs from the plain path", path.name);
            }
        });
        contend(given, kScalarPath, expected);
        for (const auto* values : {&expected.outputs, &expected.sums, &product}) {
            hash = hashed(*values, hash);
        }
    }
    for (unsigned spin_us : {0u, 100u}) {
        for (int i = 0; i < 50; ++i) Workers workers(3, {}, spin_us);
    }
    std::printf("native core: no difference and no report, on");
    visit_paths([](const Path& path) { std::printf(" %s", path.name); });
    std::printf("\nbits %016" PRIx64 "\n", hash);
}
