#include "experts.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "exchange.hpp"
#include "plain_floats.hpp"
#include "threads.hpp"

namespace moeprof {
namespace {

constexpr std::uint32_t kNoJob = 0xFFFFFFFFu;
constexpr std::size_t kQuadsPerBlock = kBlockSize / kQuad;
// Pieces of down: of fewer bytes only where they are these many rows.
constexpr std::size_t kMostDownQuads = 32;
constexpr std::size_t kLeastDownBytes = 24 * 1024;

std::size_t index_of(Format format) { return static_cast<std::size_t>(format); }

// A quad's sums [token][4] into 32-value rows [token][32] at column `at`.
void spread(const float* sums, std::size_t num_tokens, std::size_t at, float (*rows)[kBlockSize]) {
    for (std::size_t t = 0; t < num_tokens; ++t) {
        std::memcpy(rows[t] + at, sums + t * kQuad, kQuad * sizeof(float));
    }
}

void add_bias(const float* bias, std::size_t size, float* values) {
    for (std::size_t i = 0; i < size; ++i) values[i] += bias[i];
}

void store_tagged(const float* values, std::size_t size, std::uint32_t number,
                  std::uint64_t* words) {
    for (std::size_t i = 0; i < size; ++i) {
        __atomic_store_n(words + i, tagged(bits_of(values[i]), number), __ATOMIC_RELAXED);
    }
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

ExpertLayer::ExpertLayer(const LayerShape& shape, const Path& path)
    : shape_(shape),
      path_(path),
      experts_(shape.num_experts, nullptr),
      job_of_(shape.num_experts, kNoJob),
      jobs_(kMaxTokens * shape.top_k),
      progress_(std::make_unique<Progress[]>(jobs_.size())),
      jobs_done_(std::make_unique<std::atomic<std::size_t>[]>(shape.hidden_size / kBlockSize)),
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
    return run({*this, workers, ids, weights, num_tokens, outputs, sums}, rows);
}

DecodeFault ExpertLayer::answer(Workers& workers, const Asked& asked,
                                const TaggedResults& results) {
    const Held layer(busy_);
    const Held pool = workers.hold();
    if (!layer || !pool) return DecodeFault::kBusy;
    PlainFloats floats;
    const std::size_t num_values = asked.num_tokens * shape_.top_k * shape_.hidden_size;
    auto* outputs = reinterpret_cast<float*>(workers.scratch(num_values * sizeof(float)));
    return run_ready({*this,
                      workers,
                      asked.ids,
                      asked.weights,
                      asked.num_tokens,
                      outputs,
                      nullptr,
                      {},
                      &results},
                     asked.ready_rows);
}

DecodeFault ExpertLayer::run(const Call& call, const float* rows) {
    if (!ready_rows(rows, call.num_tokens)) return DecodeFault::kNotFinite;
    return run_ready(call, ready_rows_.get());
}

DecodeFault ExpertLayer::run_ready(const Call& call, const std::uint8_t* ready_rows) {
    const DecodeFault fault = gather(call.ids, call.num_tokens, ready_rows);
    forget(call.ids);
    if (fault != DecodeFault::kNone) return fault;
    if (num_jobs_ == 0) {
        if (call.sums_up()) sum(call, 0, shape_.hidden_size);
        return DecodeFault::kNone;
    }
    down_quads_ = down_quads(call.workers.num_threads());
    next_gate_up_.store(0, std::memory_order_relaxed);
    next_down_.store(0, std::memory_order_relaxed);
    for (std::size_t job = 0; job < num_jobs_; ++job) {
        progress_[job].blocks_done.store(0, std::memory_order_relaxed);
        progress_[job].is_between_done.store(false, std::memory_order_relaxed);
    }
    for (std::size_t block = 0; block < shape_.hidden_size / kBlockSize; ++block) {
        jobs_done_[block].store(0, std::memory_order_relaxed);
    }
    not_finite_.store(false, std::memory_order_relaxed);
    const auto task = [](const void* context, unsigned) {
        const Call& given = *static_cast<const Call*>(context);
        given.layer.gate_up_pieces(given);
        given.layer.down_pieces(given);
    };
    call.workers.run(task, &call);
    return not_finite_.load(std::memory_order_relaxed) ? DecodeFault::kNotFinite
                                                       : DecodeFault::kNone;
}

DecodeFault ExpertLayer::gather(const std::uint16_t* ids, std::size_t num_tokens,
                                const std::uint8_t* ready_rows) {
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
        job.rows[n] = ready_rows + token * row_stride_;
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

// Quads of a piece of down: many, unless few experts would leave workers without one.
std::size_t ExpertLayer::down_quads(std::size_t num_workers) const {
    constexpr std::size_t kPiecesPerWorker = 4;
    const std::size_t bytes = quad_bytes(shape_.format, shape_.width);
    std::size_t quads = kMostDownQuads;
    while (quads > kQuadsPerBlock && quads / 2 * bytes >= kLeastDownBytes &&
           num_jobs_ * num_quads(shape_.hidden_size) / quads < kPiecesPerWorker * num_workers) {
        quads /= 2;
    }
    return quads;
}

void ExpertLayer::gate_up_pieces(const Call& call) {
    const std::size_t blocks = shape_.width / kBlockSize;
    for (;;) {
        const std::size_t piece = next_gate_up_.fetch_add(1, std::memory_order_relaxed);
        if (piece >= num_jobs_ * blocks) return;
        const std::size_t job = piece / blocks;
        const Timed timed(call, jobs_[job]);
        gate_up(call, jobs_[job], piece % blocks);
        Progress& progress = progress_[job];
        if (progress.blocks_done.fetch_add(1, std::memory_order_acq_rel) + 1 < blocks) continue;
        progress.is_between_done.store(true, std::memory_order_release);
    }
}

void ExpertLayer::down_pieces(const Call& call) {
    const std::size_t quads = num_quads(shape_.hidden_size);
    const std::size_t pieces = (quads + down_quads_ - 1) / down_quads_;  // of a job
    for (;;) {
        const std::size_t piece = next_down_.fetch_add(1, std::memory_order_relaxed);
        if (piece >= num_jobs_ * pieces) return;
        const Job& job = jobs_[piece / pieces];
        const Progress& progress = progress_[piece / pieces];
        spin_until([&] { return progress.is_between_done.load(std::memory_order_acquire); });
        const Timed timed(call, job);
        const std::size_t first = piece % pieces * down_quads_;
        const std::size_t end = std::min(first + down_quads_, quads);
        down(call, job, {first, end});
        if (!call.sums_up()) continue;
        // Who finishes a piece of the last job adds up its slots; the counter passes outputs on.
        std::atomic<std::size_t>& done = jobs_done_[piece % pieces];
        if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < num_jobs_) continue;
        sum(call, first * kQuad, (end - first) * kQuad);
    }
}

void ExpertLayer::gate_up(const Call& call, const Job& job, std::size_t block) {
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
            add_bias(biases + block * kBlockSize, kBlockSize, gate[t]);
            add_bias(biases + shape_.width + block * kBlockSize, kBlockSize, up[t]);
        }
        path_.unit_block(shape_.unit, gate[t], up[t], values);
        if (path_.ready_block[index_of(shape_.format)](values, block, job.hidden[t])) continue;
        not_finite_.store(true, std::memory_order_relaxed);
        if (call.tagged == nullptr) continue;
        __atomic_fetch_or(call.tagged->faults, kFaultNotFinite, __ATOMIC_RELAXED);
    }
}

void ExpertLayer::down(const Call& call, const Job& job, const Quads& quads) const {
    const std::size_t stride = quad_bytes(shape_.format, shape_.width);
    const auto dot_quad = path_.dot_quad[index_of(shape_.format)];
    const bool sums_up = call.sums_up();
    const std::uint8_t* bytes =
        job.packed + 2 * num_quads(shape_.width) * quad_bytes(shape_.format, shape_.hidden_size) +
        quads.first * stride;
    const auto* biases =
        reinterpret_cast<const float*>(
            job.packed + expert_bytes(shape_.format, shape_.hidden_size, shape_.width, false)) +
        2 * shape_.width;
    float sums[kMaxTokens * kQuad];
    for (std::size_t row = quads.first * kQuad; row < quads.end * kQuad; row += kQuad) {
        dot_quad(bytes, shape_.width, job.hidden, job.num_tokens, sums);
        bytes += stride;
        for (std::size_t t = 0; t < job.num_tokens; ++t) {
            float* values = sums + t * kQuad;
            if (shape_.has_biases) add_bias(biases + row, kQuad, values);
            const std::size_t place = job.pairs[t] * shape_.hidden_size + row;
            if (sums_up) {
                std::memcpy(call.outputs + place, values, kQuad * sizeof(float));
            } else {
                store_tagged(values, kQuad, call.tagged->number, call.tagged->outputs + place);
            }
        }
    }
}

void ExpertLayer::sum(const Call& call, std::size_t first, std::size_t size) const {
    for (std::size_t t = 0; t < call.num_tokens; ++t) {
        for (std::size_t at = first; at < first + size; at += kBlockSize) {
            float total[kBlockSize] = {};
            const std::size_t end = std::min(kBlockSize, first + size - at);
            for (std::size_t slot = 0; slot < shape_.top_k; ++slot) {
                const std::size_t pair = t * shape_.top_k + slot;
                float* output = call.outputs + pair * shape_.hidden_size + at;
                if (call.ids[pair] == kNoExpert) {
                    std::memset(output, 0, end * sizeof(float));
                    continue;
                }
                for (std::size_t i = 0; i < end; ++i) {
                    total[i] = total[i] + call.weights[pair] * output[i];
                }
            }
            const std::size_t place = t * shape_.hidden_size + at;
            if (call.tagged == nullptr) {
                std::memcpy(call.sums + place, total, end * sizeof(float));
            } else {
                store_tagged(total, end, call.tagged->number, call.tagged->sums + place);
            }
        }
    }
}

}  // namespace moeprof
