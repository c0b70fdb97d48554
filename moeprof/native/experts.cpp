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

std::size_t bytes_of_expert(const LayerShape& shape) {
    return expert_bytes(shape.format, shape.hidden_size, shape.width, shape.has_biases);
}

std::size_t pieces_of_expert(const LayerShape& shape) {
    return (bytes_of_expert(shape) + kPieceBytes - 1) / kPieceBytes;
}

// Zero counters that workers share.
std::unique_ptr<std::atomic<std::uint32_t>[]> counters(std::size_t size) {
    return std::unique_ptr<std::atomic<std::uint32_t>[]>(new std::atomic<std::uint32_t>[size]());
}

void clear(std::atomic<std::uint32_t>* counters, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) counters[i].store(0, std::memory_order_relaxed);
}

void store_tagged(const float* values, std::uint32_t number, std::uint64_t* words) {
    for (std::size_t i = 0; i < kBlockSize; ++i) {
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
      blocks_done_(counters(jobs_.size())),
      quads_done_(counters(jobs_.size() * (shape.width / kBlockSize))),
      jobs_done_(counters(shape.hidden_size / kBlockSize)),
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
    auto* projections = reinterpret_cast<float*>(workers.scratch(projections_bytes(num_tokens)));
    return run({*this, workers, ids, weights, num_tokens, outputs, sums, projections}, rows);
}

DecodeFault ExpertLayer::answer(Workers& workers, const Asked& asked,
                                const TaggedResults& results) {
    const Held layer(busy_);
    const Held pool = workers.hold();
    if (!layer || !pool) return DecodeFault::kBusy;
    PlainFloats floats;
    const std::size_t num_values = asked.num_tokens * shape_.top_k * shape_.hidden_size;
    const std::size_t first = projections_bytes(asked.num_tokens);
    std::uint8_t* memory = workers.scratch(first + num_values * sizeof(float));
    return run_ready({*this,
                      workers,
                      asked.ids,
                      asked.weights,
                      asked.num_tokens,
                      reinterpret_cast<float*>(memory + first),
                      nullptr,
                      reinterpret_cast<float*>(memory),
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
    const std::size_t blocks = shape_.hidden_size / kBlockSize;
    if (num_jobs_ == 0) {
        if (call.tagged != nullptr && call.tagged->sums == nullptr) return DecodeFault::kNone;
        for (std::size_t block = 0; block < blocks; ++block) sum(call, block);
        return DecodeFault::kNone;
    }
    const std::size_t quads = num_jobs_ * num_quads(shape_.width);
    const unsigned num_workers = call.workers.num_threads();
    gate_up_pieces_.open(quads, num_workers, quads);
    down_pieces_.open(num_jobs_ * blocks, num_workers, num_jobs_ * blocks);
    clear(blocks_done_.get(), num_jobs_);
    clear(quads_done_.get(), quads / kQuadsPerBlock);
    clear(jobs_done_.get(), blocks);
    not_finite_.store(false, std::memory_order_relaxed);
    const auto task = [](const void* context, unsigned) {
        const Call& given = *static_cast<const Call*>(context);
        given.layer.work(given);
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

void ExpertLayer::work(const Call& call) {
    const std::size_t width_quads = num_quads(shape_.width);
    const std::size_t width_blocks = shape_.width / kBlockSize;
    const std::size_t hidden_blocks = shape_.hidden_size / kBlockSize;
    std::size_t first = 0;
    std::size_t end = 0;
    while (gate_up_pieces_.take(&first, &end)) {
        while (first < end) {  // what the run has of a block
            const std::size_t job = first / width_quads;
            const std::size_t quad = first % width_quads;
            const std::size_t block = quad / kQuadsPerBlock;
            const std::size_t count = std::min(end - first, (block + 1) * kQuadsPerBlock - quad);
            const Timed timed(call, jobs_[job]);
            gate_up(call, jobs_[job], quad, quad + count);
            // Who completes a block goes on with it; the counter passes the others' rows on.
            const auto added = static_cast<std::uint32_t>(count);
            std::atomic<std::uint32_t>& done = quads_done_[job * width_blocks + block];
            if (done.fetch_add(added, std::memory_order_acq_rel) + added == kQuadsPerBlock) {
                finish_block(call, job, block);
            }
            first += count;
        }
    }
    while (down_pieces_.take(&first, &end)) {
        for (; first < end; ++first) {
            const std::size_t job = first / hidden_blocks;
            const std::size_t block = first % hidden_blocks;
            spin_until(
                [&] { return blocks_done_[job].load(std::memory_order_acquire) == width_blocks; });
            const Timed timed(call, jobs_[job]);
            down(call, jobs_[job], block);
            if (call.tagged != nullptr && call.tagged->sums == nullptr) continue;
            const std::uint32_t before = jobs_done_[block].fetch_add(1, std::memory_order_acq_rel);
            if (before + 1 == num_jobs_) sum(call, block);
        }
    }
}

DecodeFault ExpertLayer::xor_experts(Workers& workers, const std::uint16_t* ids,
                                     std::uint64_t* words) {
    const Held layer(busy_);
    const Held pool = workers.hold();
    if (!layer || !pool) return DecodeFault::kBusy;
    const DecodeFault fault = gather(ids, 1, nullptr);
    forget(ids);
    if (fault != DecodeFault::kNone) return fault;
    gate_up_pieces_.open(num_jobs_ * pieces_of_expert(shape_), workers.num_threads(), 1);
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
    std::size_t piece = 0;
    std::size_t end = 0;
    while (gate_up_pieces_.take(&piece, &end)) {
        const std::size_t start = piece % pieces * kPieceBytes;
        const std::uint8_t* bytes = jobs_[piece / pieces].packed + start;
        words ^= path_.xor_words(bytes, std::min(kPieceBytes, size - start));
    }
    reading.words.fetch_xor(words);
}

void ExpertLayer::gate_up(const Call& call, const Job& job, std::size_t first_quad,
                          std::size_t end) {
    const std::size_t stride = quad_bytes(shape_.format, shape_.hidden_size);
    const auto dot_quad = path_.dot_quad[index_of(shape_.format)];
    const std::uint8_t* bytes = job.packed + first_quad * 2 * stride;
    float sums[kMaxTokens * kQuad];
    for (std::size_t quad = first_quad; quad < end; ++quad) {
        for (std::size_t matrix = 0; matrix < 2; ++matrix, bytes += stride) {
            dot_quad(bytes, shape_.hidden_size, job.rows, job.num_tokens, sums);
            for (std::size_t t = 0; t < job.num_tokens; ++t) {
                float* row = call.projections + (job.pairs[t] * 2 + matrix) * shape_.width;
                std::memcpy(row + quad * kQuad, sums + t * kQuad, kQuad * sizeof(float));
            }
        }
    }
}

// From the projections of a block to what `down` reads of it.
void ExpertLayer::finish_block(const Call& call, std::size_t job_index, std::size_t block) {
    const Job& job = jobs_[job_index];
    const auto* biases = reinterpret_cast<const float*>(
        job.packed + expert_bytes(shape_.format, shape_.hidden_size, shape_.width, false));
    float values[kBlockSize];
    for (std::size_t t = 0; t < job.num_tokens; ++t) {
        float* gate = call.projections + job.pairs[t] * 2 * shape_.width + block * kBlockSize;
        float* up = gate + shape_.width;
        if (shape_.has_biases) {
            add_bias(biases + block * kBlockSize, gate);
            add_bias(biases + shape_.width + block * kBlockSize, up);
        }
        path_.unit_block(shape_.unit, gate, up, values);
        if (path_.ready_block[index_of(shape_.format)](values, block, job.hidden[t])) continue;
        not_finite_.store(true, std::memory_order_relaxed);
        if (call.tagged == nullptr) continue;
        __atomic_fetch_or(call.tagged->faults, kFaultNotFinite, __ATOMIC_RELAXED);
    }
    blocks_done_[job_index].fetch_add(1, std::memory_order_release);
}

void ExpertLayer::down(const Call& call, const Job& job, std::size_t block) const {
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
        const std::size_t place = job.pairs[t] * shape_.hidden_size + block * kBlockSize;
        if (call.tagged != nullptr && call.tagged->sums == nullptr) {
            store_tagged(values[t], call.tagged->number, call.tagged->outputs + place);
        } else {
            std::memcpy(call.outputs + place, values[t], sizeof values[t]);
        }
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
        const std::size_t place = t * shape_.hidden_size + block * kBlockSize;
        if (call.tagged != nullptr) {
            store_tagged(total, call.tagged->number, call.tagged->sums + place);
        } else {
            std::memcpy(call.sums + place, total, sizeof total);
        }
    }
}

}  // namespace moeprof
