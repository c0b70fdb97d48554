// Asks and takes answers in a device's place, for builds with a sanitizer: every word is read and
// written whole, and no order between them is relied on.
#include "hand_over.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "aligned.hpp"
#include "answerer.hpp"
#include "paths.hpp"
#include "threads.hpp"

using namespace moeprof;

namespace {

constexpr std::size_t kHidden = 288;
constexpr std::size_t kWidth = 96;
constexpr std::size_t kExperts = 5;
constexpr std::size_t kTopK = 3;
constexpr std::uint32_t kLayer = 2;

void expect(bool holds, const char* what) {
    if (holds) return;
    std::printf("hand-over: %s\n", what);
    std::exit(1);
}

class Device {
  public:
    Device()
        : layout_(exchange_layout(kHidden, kTopK)), memory_(aligned_bytes(layout_.num_bytes)) {}

    void* exchange() { return memory_.get(); }
    std::uint32_t faults() { return __atomic_load_n(&header().host_fault, __ATOMIC_RELAXED); }

    // The header first: the host waits for the words that it announces.
    void announce(std::uint32_t num_tokens, bool wants_sums) {
        ++number_;
        store(&header().posted, Question{number_, kLayer, num_tokens, wants_sums, false}.word());
    }
    void post(std::size_t part, const std::vector<std::uint32_t>& data) {
        for (std::size_t i = 0; i < data.size(); ++i) {
            store(words(part) + i, tagged(data[i], number_));
        }
    }
    std::vector<float> take(std::size_t part, std::size_t size) {
        std::vector<float> values;
        for (std::size_t i = 0; i < size; ++i) {
            std::uint64_t word = 0;
            spin_until([&] {
                word = __atomic_load_n(words(part) + i, __ATOMIC_RELAXED);
                return number_of(word) == number_;
            });
            values.push_back(float_of(static_cast<std::uint32_t>(word)));
        }
        return values;
    }
    const ExchangeLayout& layout() const { return layout_; }

  private:
    static void store(std::uint64_t* word, std::uint64_t value) {
        __atomic_store_n(word, value, __ATOMIC_RELAXED);
    }
    ExchangeHeader& header() { return *reinterpret_cast<ExchangeHeader*>(memory_.get()); }
    std::uint64_t* words(std::size_t part) {
        return reinterpret_cast<std::uint64_t*>(memory_.get() + part);
    }

    const ExchangeLayout layout_;
    const AlignedBytes memory_;
    std::uint32_t number_ = 0;
};

// One token's row as the device makes it ready.
std::vector<std::uint32_t> ready_words(const Path& path, const std::vector<float>& row) {
    const std::size_t size = ready_bytes(Format::kQ8_0, kHidden);
    const AlignedBytes ready = aligned_bytes(size);
    for (std::size_t block = 0; block < kHidden / kBlockSize; ++block) {
        expect(path.ready_block[0](row.data() + block * kBlockSize, block, ready.get()),
               "a row is refused");
    }
    std::vector<std::uint32_t> words(size / 4);
    std::memcpy(words.data(), ready.get(), size);
    return words;
}

}  // namespace

void hand_over() {
    const Path& path = kScalarPath;
    LayerShape shape;
    shape.hidden_size = kHidden;
    shape.width = kWidth;
    shape.num_experts = kExperts;
    shape.top_k = kTopK;
    ExpertLayer asked(shape, path), expected(shape, path);
    std::mt19937 generator(3);
    std::vector<AlignedBytes> packed;
    const std::size_t size = expert_bytes(shape.format, kHidden, kWidth, false);
    for (std::size_t id = 0; id < kExperts; ++id) {
        packed.push_back(aligned_bytes(size));
        // Below 60, so that every scale is finite.
        for (std::size_t i = 0; i < size; ++i) packed[id][i] = generator() % 60;
        asked.set_expert(id, packed[id].get());
        expected.set_expert(id, packed[id].get());
    }
    Workers workers(3, {}, 100), plain(1, {}, 0);
    Device device;
    Answerer answerer(device.exchange(), kHidden, kTopK, workers, -1);
    answerer.set_layer(kLayer, &asked);
    answerer.start();
    std::vector<float> row(kHidden), weights(kTopK), outputs(kTopK * kHidden), sums(kHidden);
    for (int turn = 0; turn < 60; ++turn) {
        for (float& value : row) value = static_cast<float>(generator() % 2048) / 1024 - 1;
        for (float& value : weights) value = static_cast<float>(1 + generator() % 64) / 64;
        std::vector<std::uint16_t> ids;
        for (std::size_t k = 0; k < kTopK; ++k) {
            ids.push_back(static_cast<std::uint16_t>((turn + k) % kExperts));
        }
        expect(expected.decode(plain, row.data(), ids.data(), weights.data(), 1, outputs.data(),
                               sums.data()) == DecodeFault::kNone,
               "decode fails");
        const bool wants_sums = turn % 2 == 1;
        std::vector<std::uint32_t> bits;
        for (const float weight : weights) bits.push_back(bits_of(weight));
        device.announce(1, wants_sums);
        device.post(device.layout().rows, ready_words(path, row));
        device.post(device.layout().weights, bits);
        device.post(device.layout().ids, {ids.begin(), ids.end()});
        if (wants_sums) {
            expect(device.take(device.layout().sums, kHidden) == sums, "other sums");
        } else {
            expect(device.take(device.layout().outputs, kTopK * kHidden) == outputs,
                   "other outputs");
        }
        if (turn % 20 == 19) {
            answerer.stop();
            answerer.start();
        }
    }
    expect(device.faults() == 0, "a fault");
    device.announce(1, false);  // and then nothing: the thread must still stop
    answerer.stop();
}
