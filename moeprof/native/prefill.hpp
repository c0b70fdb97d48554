// Many tokens through one layer of experts, grouped by expert; the definition is decode_layer in
// reference/experts.py.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "layer_shape.hpp"
#include "paths.hpp"
#include "pieces.hpp"
#include "workers.hpp"

namespace moeprof {

// Most slots of one pass over the weights, as far as a pass of one token allows.
constexpr std::size_t kPassSlots = 16384;

// Reads the packed bytes of every expert that a pass uses once: bound by memory for few tokens per
// expert, by integer arithmetic for more. Three phases with a barrier between them, each cut into
// pieces that become smaller towards its end, which the workers take as they come free:
//
// 1. rows are made ready, each once for every slot, in the order of the experts;
// 2. gate, up and unit: 32 rows of both matrices for all tokens of an expert;
// 3. down and sum: 32 columns of the output for all experts, so that what a slot gave stays in a
//    worker's cache until it is summed.
class Prefill {
  public:
    Prefill(const LayerShape& shape, const Path& path, const std::uint8_t* const* experts,
            std::size_t num_tokens, unsigned num_threads);

    // Bytes that `run` works in.
    std::size_t scratch_bytes() const { return end_; }

    // Tokens in passes of some thousand slots. The pool must be the caller's.
    DecodeFault run(Workers& workers, const Tokens& tokens, const Results& results,
                    std::uint8_t* scratch);

  private:
    struct Job {  // one expert, and its tokens' places in the order of experts
        const std::uint8_t* packed;
        std::size_t first;
        std::size_t num_tokens;
    };
    struct Worker;

    std::size_t reserve(std::size_t num_bytes);
    template <typename T>
    T* at(std::size_t offset) const {
        return reinterpret_cast<T*>(scratch_ + offset);
    }
    DecodeFault gather();
    void work(Workers& workers, unsigned worker);
    void ready_token(std::size_t token);
    void gate_up(const Job& job, std::size_t block, const Worker& mine);
    void down(std::size_t first_block, std::size_t num_blocks, const Worker& mine);
    void sum(std::size_t first, std::size_t num_columns, float* outputs, std::size_t stride);

    const LayerShape& shape_;
    const Path& path_;
    const std::uint8_t* const* const experts_;
    const unsigned num_threads_;
    const std::size_t format_;
    const std::size_t pass_tokens_;
    const std::size_t row_bytes_;
    const std::size_t hidden_bytes_;
    const std::size_t column_blocks_;  // most columns of one piece of `down`, in blocks
    std::size_t end_ = 0;              // of the scratch memory reserved so far
    // Offsets into it.
    const std::size_t count_at_;   // [num_experts] slots of each expert
    const std::size_t last_at_;    // [num_experts] the last token that chose it, plus 1
    const std::size_t jobs_at_;    // [num_experts]
    const std::size_t place_at_;   // [slots] place in the order of experts
    const std::size_t slot_at_;    // [slots] the inverse
    const std::size_t rows_at_;    // [slots] ready rows in the order of experts
    const std::size_t hidden_at_;  // [slots] ready rows between the projections
    const std::size_t worker_bytes_;
    const std::size_t workers_at_;  // [num_threads] what each worker works in

    std::uint8_t* scratch_ = nullptr;
    Tokens tokens_;
    Results results_;
    std::size_t num_jobs_ = 0;
    Pieces ready_pieces_;
    Pieces gate_up_pieces_;
    Pieces down_pieces_;
    std::atomic<bool> not_finite_{false};
};

}  // namespace moeprof
