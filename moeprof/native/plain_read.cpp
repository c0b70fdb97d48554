// The plain read of a layer's experts that decoding is measured against.
#include <algorithm>

#include "experts.hpp"

namespace moeprof {
namespace {

constexpr std::size_t kPieceBytes = 128 * 1024;

std::size_t bytes_of_expert(const LayerShape& shape) {
    return expert_bytes(shape.format, shape.hidden_size, shape.width, shape.has_biases);
}

std::size_t pieces_of_expert(const LayerShape& shape) {
    return (bytes_of_expert(shape) + kPieceBytes - 1) / kPieceBytes;
}

}  // namespace

struct ExpertLayer::Reading {
    ExpertLayer& layer;
    mutable std::atomic<std::uint64_t> words;
};

DecodeFault ExpertLayer::xor_experts(Workers& workers, const std::uint16_t* ids,
                                     std::uint64_t* words) {
    const Held layer(busy_);
    const Held pool = workers.hold();
    if (!layer || !pool) return DecodeFault::kBusy;
    const DecodeFault fault = gather(ids, 1, nullptr);
    forget(ids);
    if (fault != DecodeFault::kNone) return fault;
    next_gate_up_.store(0, std::memory_order_relaxed);
    const Reading reading{*this, {0}};
    const auto task = [](const void* context, unsigned) {
        const Reading& given = *static_cast<const Reading*>(context);
        given.layer.read(given);
    };
    workers.run(task, &reading);
    *words = reading.words.load();
    return DecodeFault::kNone;
}

void ExpertLayer::read(const Reading& reading) {
    const std::size_t size = bytes_of_expert(shape_);
    const std::size_t pieces = pieces_of_expert(shape_);
    std::uint64_t words = 0;
    for (;;) {
        const std::size_t piece = next_gate_up_.fetch_add(1, std::memory_order_relaxed);
        if (piece >= num_jobs_ * pieces) break;
        const std::size_t start = piece % pieces * kPieceBytes;
        const std::uint8_t* bytes = jobs_[piece / pieces].packed + start;
        words ^= path_.xor_words(bytes, std::min(kPieceBytes, size - start));
    }
    reading.words.fetch_xor(words);
}

}  // namespace moeprof
