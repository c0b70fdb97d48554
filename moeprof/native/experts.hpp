// Decoding one layer of experts on the CPU; the definition is decode_layer in reference/experts.py.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "counting.hpp"
#include "paths.hpp"
#include "workers.hpp"

namespace moeprof {

constexpr std::size_t kMaxTokens = 8;  // of one decode

struct LayerShape {
    std::size_t hidden_size = 0;  // both sizes are multiples of 32
    std::size_t width = 0;
    std::size_t num_experts = 0;
    std::size_t top_k = 0;
    Format format = Format::kQ8_0;
    bool has_biases = false;
    GatedUnit unit;
};

constexpr std::size_t kPieceBytes = 128 * 1024;

enum class DecodeFault { kNone, kUnknownExpert, kRepeatedExpert, kNotFinite, kBusy };

struct AlignedDelete {
    void operator()(std::uint8_t* memory) const;
};
using AlignedBytes = std::unique_ptr<std::uint8_t[], AlignedDelete>;

// `size` zero bytes that begin on a cache line.
AlignedBytes aligned_bytes(std::size_t size);

class ExpertLayer {
  public:
    ExpertLayer(const LayerShape& shape, const Path& path);

    const LayerShape& shape() const { return shape_; }
    const Path& path() const { return path_; }

    // Bytes of one packed expert, on a 64-byte boundary; they must outlive the layer.
    void set_expert(std::size_t expert_id, const std::uint8_t* packed) {
        experts_[expert_id] = packed;
    }

    // rows [num_tokens, hidden_size], ids and weights [num_tokens, top_k], outputs [num_tokens,
    // top_k, hidden_size] (what each slot's expert gave, 0 for kNoExpert), sums [num_tokens,
    // hidden_size] (weighted, in slot order). num_tokens <= kMaxTokens. After a fault the last two
    // hold nothing of use.
    //
    // Reads the packed bytes of every distinct expert once, and nothing else of size: bound by
    // memory for few tokens. Two phases, each cut into pieces which the workers take as
    // they come free: 32 rows of gate and of up, then 128 rows of down; no value depends on who
    // computes it.
    DecodeFault decode(Workers& workers, const float* rows, const std::uint16_t* ids,
                       const float* weights, std::size_t num_tokens, float* outputs, float* sums);

    // XOR of the 64-bit words of one row's experts: the plain read of the bytes that `decode` of
    // that row reads, by the same workers, in pieces of `kPieceBytes`. ids [top_k].
    DecodeFault xor_experts(Workers& workers, const std::uint16_t* ids, std::uint64_t* words);

  private:
    struct Job {  // one expert and the tokens that chose it
        const std::uint8_t* packed;
        std::size_t num_tokens;
        std::size_t pairs[kMaxTokens];  // token * top_k + slot
        const std::uint8_t* rows[kMaxTokens];
        std::uint8_t* hidden[kMaxTokens];
    };
    struct Call;  // the arguments of one decode
    struct Reading;

    DecodeFault gather(const std::uint16_t* ids, std::size_t num_tokens);
    bool ready_rows(const float* rows, std::size_t num_tokens);
    bool enter() { return !busy_.test_and_set(std::memory_order_acquire); }
    DecodeFault leave(DecodeFault fault) {
        busy_.clear(std::memory_order_release);
        return fault;
    }
    DecodeFault run(Workers& workers, const Call& call, const float* rows);
    void forget(const std::uint16_t* ids);
    void work(const Call& call);
    void read(const Reading& reading);
    void gate_up(const Job& job, std::size_t block);
    void down(const Job& job, std::size_t block, float* outputs) const;
    void sum(const Call& call, std::size_t block) const;

    const LayerShape shape_;
    const Path& path_;
    std::vector<const std::uint8_t*> experts_;
    std::vector<std::uint32_t> job_of_;  // by expert id; kNoJob between calls
    std::vector<Job> jobs_;
    std::size_t num_jobs_ = 0;
    const std::size_t num_chunks_;
    const std::unique_ptr<std::atomic<std::size_t>[]> done_;  // [num_chunks], experts finished
    const std::size_t row_stride_;
    const std::size_t hidden_stride_;
    const AlignedBytes ready_rows_;    // [kMaxTokens]
    const AlignedBytes ready_hidden_;  // [kMaxTokens, top_k]
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    alignas(64) std::atomic<std::size_t> next_gate_up_{0};
    alignas(64) std::atomic<std::size_t> next_down_{0};
    std::atomic<bool> not_finite_{false};
};

}  // namespace moeprof
