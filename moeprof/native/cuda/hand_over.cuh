// What a launch asks the host and takes from it, word by word; see ../exchange.hpp.
#pragma once

#include "decode_call.cuh"

namespace moeprof {
namespace {

// Word `at` of a row that is ready on this device, as it lies in the host's ready rows.
template <Format kFormat>
__device__ std::uint32_t host_ready_word(const std::uint8_t* ready, std::uint32_t at,
                                         std::uint32_t num_blocks) {
    if constexpr (kFormat == Format::kBf16) {
        const auto word =
            *reinterpret_cast<const std::uint32_t*>(ready + at / 16 * 32 + at % 8 * 4);
        return at % 16 < 8 ? word << 16 : word & 0xFFFF0000u;
    } else {
        constexpr std::uint32_t kGroupWords = sizeof(ActivationGroup) / 4;
        constexpr int kOffsetShift = kFormat == Format::kQ8_0 ? 4 : 0;  // 128 instead of 8
        const std::uint8_t* group = ready + at / kGroupWords * GroupOf<kFormat>::kReadyBytes;
        const std::uint32_t part = at % kGroupWords / kBlocksAbreast;
        const std::uint32_t block = at % kBlocksAbreast;
        if (at / kGroupWords * kBlocksAbreast + block >= num_blocks) return 0;
        if (part < 8) {
            return *reinterpret_cast<const std::uint32_t*>(group + part / 4 * 128 + block * 16 +
                                                           part % 4 * 4);
        }
        if (part == 8) {
            return *reinterpret_cast<const std::uint32_t*>(group + kReadyScales + block * 4);
        }
        const int offset = *reinterpret_cast<const int*>(group + kReadyOffsets + block * 4);
        return static_cast<std::uint32_t>(offset >> kOffsetShift);
    }
}

// One block: asks for the pairs that are not on this device; `ready` are the launch's rows.
template <Format kFormat>
__device__ void post(const DecodeCall& call, const Pair* pairs, std::uint32_t num_here,
                     const std::uint8_t* ready, std::uint32_t number, bool wants_sums) {
    const ExchangeView& exchange = call.exchange;
    const DeviceLayer& layer = call.layer;
    const std::uint32_t num_tokens = call.input.num_tokens;
#pragma unroll 1
    for (std::uint32_t at = threadIdx.x; at < num_tokens * layer.top_k; at += blockDim.x) {
        const Pair pair = pairs[at];
        const std::uint32_t id = pair.number < num_here ? kNoExpertId : pair.id;
        store_to_host(exchange.ids + at, tagged(id, number));
        store_to_host(exchange.weights + at, tagged(bits_of(pair.weight), number));
    }
    const auto num_words =
        static_cast<std::uint32_t>(ready_bytes(kFormat, layer.hidden_size) / sizeof(float));
    std::uint64_t* words = exchange.rows;
#pragma unroll 1
    for (std::uint32_t token = 0; token < num_tokens; ++token) {
#pragma unroll 1
        for (std::uint32_t at = threadIdx.x; at < num_words; at += blockDim.x) {
            const std::uint32_t word =
                host_ready_word<kFormat>(ready, at, layer.hidden_size / kBlock);
            store_to_host(words + at, tagged(word, number));
        }
        words += num_words;
        ready += ready_row_bytes<kFormat>(layer.hidden_size);
    }
    if (threadIdx.x != 0) return;
    const bool is_timed = call.counts.nanoseconds != nullptr;
    const Question question{number, layer.index, num_tokens, wants_sums, is_timed};
    store_to_host(&exchange.header->posted, question.word());
}

// Takes words of the answer to one question; a thread's own.
class Answer {
  public:
    __device__ Answer(const ExchangeView& exchange, std::uint32_t number)
        : exchange_(exchange), number_(number) {}

    // The value of a word; 0 once there is no answer to wait for.
    __device__ float take(const std::uint64_t* word) {
        std::uint64_t loaded = load_from_host(word);
        while (number_of(loaded) != number_) {
            if (!goes_on()) return 0.0f;
            loaded = load_from_host(word);
        }
        return float_of(static_cast<std::uint32_t>(loaded));
    }

  private:
    static constexpr std::uint32_t kLooksPerCheck = 64;
    static constexpr std::uint64_t kLongestPause = 1000;  // nanoseconds

    // Pauses for a small part of the time that passed: the looks of all blocks go through the
    // memory in which the host computes. False once there is no answer to wait for.
    __device__ bool goes_on() {
        if (has_given_up_) return false;
        const std::uint64_t now = nanoseconds();
        if (begun_ == 0) begun_ = now;
        const std::uint64_t waited = now - begun_;
        pause(static_cast<unsigned>(min(waited / 32, kLongestPause)));
        if (++num_looks_ % kLooksPerCheck != 0) return true;
        const bool is_late = waited > exchange_.timeout_ns;
        if (!is_late && load_from_host(&exchange_.header->answered) != kAborted) return true;
        report(exchange_, kFaultNoAnswer);
        if (is_late) store_to_host(&exchange_.header->answered, kAborted);
        has_given_up_ = true;
        return false;
    }

    const ExchangeView& exchange_;
    const std::uint32_t number_;
    std::uint32_t num_looks_ = 0;
    std::uint64_t begun_ = 0;
    bool has_given_up_ = false;
};

}  // namespace
}  // namespace moeprof
