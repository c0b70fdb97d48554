// One layer of experts on the CPU; the definition is decode_layer in reference/experts.py.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "aligned.hpp"
#include "counting.hpp"
#include "layer_shape.hpp"
#include "paths.hpp"
#include "workers.hpp"

namespace moeprof {

constexpr std::size_t kMaxTokens = 8;  // of one decode

// Where a decode that is timed adds the nanoseconds that its workers spend on the experts of each
// group, summed over the workers.
struct GroupTimes {
    const std::uint8_t* group_of = nullptr;  // [num_experts]; null where nothing is timed
    std::uint64_t* nanoseconds = nullptr;    // [num_groups]
};

// What `forward` is given. hidden [num_tokens, hidden_size] and weights [num_tokens, top_k] of
// their types, ids [num_tokens, top_k]: an id outside [0, num_experts) and a weight of 0 mean no
// expert. output [num_tokens, hidden_size] of the hidden type, rounded half to even from the
// float32 sum. assignments and reads [num_experts], or null: the slots of each expert, and 1 for
// each expert used, are added. Of `times`, only few tokens are timed.
struct Routed {
    const void* hidden = nullptr;
    FloatType hidden_type = FloatType::kFloat32;
    const std::int64_t* ids = nullptr;
    const void* weights = nullptr;
    FloatType weights_type = FloatType::kFloat32;
    std::size_t num_tokens = 0;
    void* output = nullptr;
    std::int64_t* assignments = nullptr;
    std::int64_t* reads = nullptr;
    GroupTimes times;
};

// A device's question to a layer: rows ready for its format, one behind the other, and the routing
// of `Tokens`.
struct Asked {
    const std::uint8_t* ready_rows = nullptr;
    const std::uint16_t* ids = nullptr;
    const float* weights = nullptr;
    std::size_t num_tokens = 0;
};

// Where its answer goes, as words of an exchange: `sums` alone unless that is null, otherwise
// `outputs` of all but kNoExpert. Faults that can only be seen on the way are set before words
// that they spoil are written.
struct TaggedResults {
    std::uint32_t number = 0;
    std::uint64_t* outputs = nullptr;
    std::uint64_t* sums = nullptr;
    std::uint32_t* faults = nullptr;
};

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
    // memory for few tokens. Cut into pieces which the workers take as they come free: 32 rows of
    // gate and of up, then 32 to 128 rows of down of an expert as soon as what lies between is
    // complete; no value depends on who computes it.
    DecodeFault decode(Workers& workers, const float* rows, const std::uint16_t* ids,
                       const float* weights, std::size_t num_tokens, float* outputs, float* sums);

    // The same for a device. Words are written as they come, from any worker; after a fault some or
    // all of them are not.
    DecodeFault answer(Workers& workers, const Asked& asked, const TaggedResults& results);

    // As decode for any number of tokens, in passes of some thousand slots (prefill.hpp). `outputs`
    // or `sums` may be null; without sums, outputs of kNoExpert stay as they are.
    DecodeFault prefill(Workers& workers, const Tokens& tokens, const Results& results);

    // What a model's layer is given and wants: few tokens by decode, more by prefill.
    DecodeFault forward(Workers& workers, const Routed& routed);

    // XOR of the 64-bit words of one row's experts: the plain read of the bytes that `decode` of
    // that row reads, by the same workers (plain_read.cpp). ids [top_k].
    DecodeFault xor_experts(Workers& workers, const std::uint16_t* ids, std::uint64_t* words);

  private:
    struct Job {  // one expert and the tokens that chose it
        const std::uint8_t* packed;
        std::size_t num_tokens;
        std::size_t pairs[kMaxTokens];  // token * top_k + slot
        const std::uint8_t* rows[kMaxTokens];
        std::uint8_t* hidden[kMaxTokens];
    };
    struct Progress {  // of a job; who waits for the flag does not disturb who counts
        alignas(64) std::atomic<std::size_t> blocks_done{0};  // between the projections
        alignas(64) std::atomic<bool> is_between_done{false};
    };
    struct Call {  // the arguments of one decode
        ExpertLayer& layer;
        Workers& workers;
        const std::uint16_t* ids;
        const float* weights;
        std::size_t num_tokens;
        float* outputs;
        float* sums;
        GroupTimes times = {};
        const TaggedResults* tagged = nullptr;

        bool sums_up() const { return tagged == nullptr || tagged->sums != nullptr; }
    };
    struct Quads {  // of an expert's down
        std::size_t first;
        std::size_t end;
    };
    class Timed;
    struct Reading;

    DecodeFault gather(const std::uint16_t* ids, std::size_t num_tokens,
                       const std::uint8_t* ready_rows);
    bool ready_rows(const float* rows, std::size_t num_tokens);
    DecodeFault run(const Call& call, const float* rows);
    DecodeFault run_ready(const Call& call, const std::uint8_t* ready_rows);
    void forget(const std::uint16_t* ids);
    std::size_t down_quads(std::size_t num_workers) const;
    void gate_up_pieces(const Call& call);
    void down_pieces(const Call& call);
    void read(const Reading& reading);
    void gate_up(const Call& call, const Job& job, std::size_t block);
    void down(const Call& call, const Job& job, const Quads& quads) const;
    void sum(const Call& call, std::size_t first, std::size_t size) const;  // rows of outputs

    const LayerShape shape_;
    const Path& path_;
    std::vector<const std::uint8_t*> experts_;
    std::vector<std::uint32_t> job_of_;  // by expert id; kNoJob between calls
    std::vector<Job> jobs_;
    std::size_t num_jobs_ = 0;
    std::size_t down_quads_ = 0;                  // of a piece of down
    const std::unique_ptr<Progress[]> progress_;  // by job
    const std::unique_ptr<std::atomic<std::size_t>[]>
        jobs_done_;  // of each piece of an expert's down
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
