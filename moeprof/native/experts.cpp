#include "experts.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "plain_floats.hpp"

namespace moeprof {
namespace {

constexpr std::uint32_t kNoJob = 0xFFFFFFFFu;
constexpr std::size_t kChunkBlocks = 4;  // of 32 rows of down: a piece of work
constexpr std::size_t kQuadsPerBlock = kBlockSize / kQuad;

std::size_t index_of(Format format) { return static_cast<std::size_t>(format); }

// A quad's sums [token][4] into 32-value rows [token][32] at column `at`.
void spread(const float* sums, std::size_t num_tokens, std::size_t at, float (*rows)[kBlockSize]) {
    for (std::size_t t = 0; t < num_tokens; ++t) {
        std::memcpy(rows[t] + at, sums + t * kQuad, kQuad * sizeof(float));
    }
}

void add_bias(const float* bias, float* values) {
    for (std::size_t i = 0; i < kBlockSize; ++i) values[i] += bias[i];
}

}  // namespace

// Adds the time of its scope to the group of a job's expert, where a call is timed.
class ExpertLayer::Timed {
  public:
    Timed(const Call& call, const Job& job) {
        if (call.times.group_of == nullptr) return;
        const std::uint8_t group = call.times.group_of[call.ids[job.pairs[0]]];
        nanoseconds_ = call.times.nanoseconds + group;
        begun_ = Clock::now();
    }
    ~Timed() {
        if (nanoseconds_ == nullptr) return;
        const std::chrono::nanoseconds spent = Clock::now() - begun_;
        __atomic_fetch_add(nanoseconds_, static_cast<std::uint64_t>(spent.count()),
                           __ATOMIC_RELAXED);
    }
    Timed(const Timed&) = delete;
    Timed& operator=(const Timed&) = delete;

  private:
    using Clock = std::chrono::steady_clock;
    std::uint64_t* nanoseconds_ = nullptr;
    Clock::time_point begun_;
};

struct ExpertLayer::Reading {
    ExpertLayer& layer;
    mutable std::atomic<std::uint64_t> words;
};

ExpertLayer::ExpertLayer(const LayerShape& shape, const Path& path)
    : shape_(shape),
      path_(path),
      experts_(shape.num_experts, nullptr),
      job_of_(shape.num_experts, kNoJob),
      jobs_(kMaxTokens * shape.top_k),
      num_chunks_((shape.hidden_size / kBlockSize + kChunkBlocks - 1) / kChunkBlocks),
      done_(std::make_unique<std::atomic<std::size_t>[]>(num_chunks_)),
      row_stride_(ready_bytes(shape.format, shape.hidden_size)),
      hidden_stride_(ready_bytes(shape.format, shape.width)),
      ready_rows_(aligned_bytes(kMaxTokens * row_stride_)),
      ready_hidden_(aligned_bytes(kMaxTokens * shape.top_k * hidden_stride_)) {}

DecodeFault ExpertLayer::decode(Workers& workers, const float* rows, const std::uint16_t* ids,
                                const float* weights, std::size_t num_tokens, float* outputs,
                                float* sums) {
    const Held layer(busy_);
    const Held pool = workers.hold();
    if (!layer || !pool) return DecodeFault::kBusy;
    PlainFloats floats;
    return run(workers, {*this, workers, ids, weights, num_tokens, outputs, sums, {}}, rows);
}

DecodeFault ExpertLayer::run(Workers& workers, const Call& call, const float* rows) {
    const DecodeFault fault = gather(call.ids, call.num_tokens);
    forget(call.ids);
    if (fault != DecodeFault::kNone) return fault;
    if (!ready_rows(rows, call.num_tokens)) return DecodeFault::kNotFinite;
    if (num_jobs_ == 0) {
        const std::size_t blocks = shape_.hidden_size / kBlockSize;
        for (std::size_t block = 0; block < blocks; ++block) sum(call, block);
        return DecodeFault::kNone;
    }
    next_gate_up_.store(0, std::memory_order_relaxed);
    next_down_.store(0, std::memory_order_relaxed);
    for (std::size_t chunk = 0; chunk < num_chunks_; ++chunk) {
        done_[chunk].store(0, std::memory_order_relaxed);
    }
    not_finite_.store(false, std::memory_order_relaxed);
    const auto task = [](const void* context, unsigned) {
        const Call& given = *static_cast<const Call*>(context);
        given.layer.work(given);
    };
    workers.run(task, &call);
    return not_finite_.load(std::memory_order_relaxed) ? DecodeFault::kNotFinite
                                                       : DecodeFault::kNone;
}

DecodeFault ExpertLayer::gather(const std::uint16_t* ids, std::size_t num_tokens) {
    num_jobs_ = 0;
    for (std::size_t pair = 0; pair < num_tokens * shape_.top_k; ++pair) {
        const std::uint16_t id = ids[pair];
        if (id == kNoExpert) continue;
        if (id >= shape_.num_experts || experts_[id] == nullptr) return DecodeFault::kUnknownExpert;
        if (job_of_[id] == kNoJob) {
            job_of_[id] = static_cast<std::uint32_t>(num_jobs_);
            jobs_[num_jobs_].packed = experts_[id];
            jobs_[num_jobs_++].num_tokens = 0;
        }
        Job& job = jobs_[job_of_[id]];
        const std::size_t token = pair / shape_.top_k;
        const std::size_t n = job.num_tokens;
        if (n > 0 && job.pairs[n - 1] / shape_.top_k == token) return DecodeFault::kRepeatedExpert;
        job.pairs[n] = pair;
        job.rows[n] = ready_rows_.get() + token * row_stride_;
        job.hidden[n] = ready_hidden_.get() + pair * hidden_stride_;
        ++job.num_tokens;
    }
    return DecodeFault::kNone;
}

void ExpertLayer::forget(const std::uint16_t* ids) {
    for (std::size_t j = 0; j < num_jobs_; ++j) job_of_[ids[jobs_[j].pairs[0]]] = kNoJob;
}

bool ExpertLayer::ready_rows(const float* rows, std::size_t num_tokens) {
    const auto ready_block = path_.ready_block[index_of(shape_.format)];
    for (std::size_t t = 0; t < num_tokens; ++t) {
        for (std::size_t block = 0; block < shape_.hidden_size / kBlockSize; ++block) {
            const float* values = rows + t * shape_.hidden_size + block * kBlockSize;
            if (!ready_block(values, block, ready_rows_.get() + t * row_stride_)) return false;
        }
    }
    return true;
}

void ExpertLayer::work(const Call& call) {
    const std::size_t width_blocks = shape_.width / kBlockSize;
    const std::size_t gate_up_pieces = num_jobs_ * width_blocks;
    for (;;) {
        const std::size_t piece = next_gate_up_.fetch_add(1, std::memory_order_relaxed);
        if (piece >= gate_up_pieces) break;
        const Job& job = jobs_[piece / width_blocks];
        const Timed timed(call, job);
        gate_up(job, piece % width_blocks);
    }
    call.workers.barrier();
    if (not_finite_.load(std::memory_order_relaxed)) return;
    const std::size_t down_pieces = num_jobs_ * num_chunks_;
    for (;;) {
        const std::size_t piece = next_down_.fetch_add(1, std::memory_order_relaxed);
        if (piece >= down_pieces) break;
        const std::size_t chunk = piece % num_chunks_;
        const std::size_t first = chunk * kChunkBlocks;
        const std::size_t blocks = shape_.hidden_size / kBlockSize;
        const std::size_t end = std::min(first + kChunkBlocks, blocks);
        const Job& job = jobs_[piece / num_chunks_];
        const Timed timed(call, job);
        for (std::size_t block = first; block < end; ++block) down(job, block, call.outputs);
        // Who finishes a chunk's last expert adds up its slots; the counter passes the outputs on.
        if (done_[chunk].fetch_add(1, std::memory_order_acq_rel) + 1 < num_jobs_) continue;
        for (std::size_t block = first; block < end; ++block) sum(call, block);
    }
}

DecodeFault ExpertLayer::xor_experts(Workers& workers, const std::uint16_t* ids,
                                     std::uint64_t* words) {
    const Held layer(busy_);
    const Held pool = workers.hold();
    if (!layer || !pool) return DecodeFault::kBusy;
    const DecodeFault fault = gather(ids, 1);
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
    const std::size_t size =
        expert_bytes(shape_.format, shape_.hidden_size, shape_.width, shape_.has_biases);
    const std::size_t pieces = (size + kPieceBytes - 1) / kPieceBytes;
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

void ExpertLayer::gate_up(const Job& job, std::size_t block) {
    const std::size_t stride = quad_bytes(shape_.format, shape_.hidden_size);
    const auto dot_quad = path_.dot_quad[index_of(shape_.format)];
    const std::uint8_t* quad = job.packed + block * kQuadsPerBlock * 2 * stride;
    float gate[kMaxTokens][kBlockSize];
    float up[kMaxTokens][kBlockSize];
    float sums[kMaxTokens * kQuad];
    for (std::size_t at = 0; at < kBlockSize; at += kQuad) {
        for (auto* rows : {gate, up}) {
            dot_quad(quad, shape_.hidden_size, job.rows, job.num_tokens, sums);
            spread(sums, job.num_tokens, at, rows);
            quad += stride;
        }
    }
    const auto* biases = reinterpret_cast<const float*>(
        job.packed + expert_bytes(shape_.format, shape_.hidden_size, shape_.width, false));
    float values[kBlockSize];
    for (std::size_t t = 0; t < job.num_tokens; ++t) {
        if (shape_.has_biases) {
            add_bias(biases + block * kBlockSize, gate[t]);
            add_bias(biases + shape_.width + block * kBlockSize, up[t]);
        }
        path_.unit_block(shape_.unit, gate[t], up[t], values);
        if (!path_.ready_block[index_of(shape_.format)](values, block, job.hidden[t])) {
            not_finite_.store(true, std::memory_order_relaxed);
        }
    }
}

void ExpertLayer::down(const Job& job, std::size_t block, float* outputs) const {
    const std::size_t stride = quad_bytes(shape_.format, shape_.width);
    const auto dot_quad = path_.dot_quad[index_of(shape_.format)];
    const std::uint8_t* quad =
        job.packed + 2 * num_quads(shape_.width) * quad_bytes(shape_.format, shape_.hidden_size) +
        block * kQuadsPerBlock * stride;
    float values[kMaxTokens][kBlockSize];
    float sums[kMaxTokens * kQuad];
    for (std::size_t at = 0; at < kBlockSize; at += kQuad, quad += stride) {
        dot_quad(quad, shape_.width, job.hidden, job.num_tokens, sums);
        spread(sums, job.num_tokens, at, values);
    }
    const auto* biases = reinterpret_cast<const float*>(
        job.packed + expert_bytes(shape_.format, shape_.hidden_size, shape_.width, false));
    for (std::size_t t = 0; t < job.num_tokens; ++t) {
        if (shape_.has_biases) add_bias(biases + 2 * shape_.width + block * kBlockSize, values[t]);
        float* output = outputs + job.pairs[t] * shape_.hidden_size + block * kBlockSize;
        std::memcpy(output, values[t], sizeof values[t]);
    }
}

void ExpertLayer::sum(const Call& call, std::size_t block) const {
    for (std::size_t t = 0; t < call.num_tokens; ++t) {
        float total[kBlockSize] = {};
        for (std::size_t slot = 0; slot < shape_.top_k; ++slot) {
            const std::size_t pair = t * shape_.top_k + slot;
            float* output = call.outputs + pair * shape_.hidden_size + block * kBlockSize;
            if (call.ids[pair] == kNoExpert) {
                std::memset(output, 0, kBlockSize * sizeof(float));
                continue;
            }
            for (std::size_t i = 0; i < kBlockSize; ++i) {
                total[i] = total[i] + call.weights[pair] * output[i];
            }
        }
        std::memcpy(call.sums + t * shape_.hidden_size + block * kBlockSize, total, sizeof total);
    }
}

}  // namespace moeprof
