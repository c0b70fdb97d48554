#include "experts.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "exchange.hpp"
#include "plain_floats.hpp"
#include "threads.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace moeprof {
namespace {

constexpr std::uint32_t kNoJob = 0xFFFFFFFFu;
constexpr std::size_t kQuadsPerBlock = kBlockSize / kQuad;
constexpr std::size_t kMostDownQuads = 32;  // of a piece

std::size_t index_of(Format format) { return static_cast<std::size_t>(format); }

// A quad's sums [token][4] into 32-value rows [token][32] at column `at`.
void spread(const float* sums, std::size_t num_tokens, std::size_t at, float (*rows)[kBlockSize]) {
    for (std::size_t t = 0; t < num_tokens; ++t) {
        std::memcpy(rows[t] + at, sums + t * kQuad, kQuad * sizeof(float));
    }
}

// The largest of the sizes of a piece between these that still gives every worker several: who is
// late with its last one then keeps the others waiting for a small part of the whole.
std::size_t piece_size(std::size_t total, std::size_t largest, std::size_t smallest,
                       unsigned num_workers) {
    constexpr std::size_t kPiecesPerWorker = 8;
    std::size_t size = largest;
    while (size > smallest && total / size < kPiecesPerWorker * num_workers) size /= 2;
    return size;
}

// Whether a piece takes a core not much longer than fetching a line that others write, 32 KiB being
// some microseconds.
bool is_small(std::size_t piece_bytes) { return piece_bytes < 32 * 1024; }

void add_bias(const float* bias, std::size_t size, float* values) {
    for (std::size_t i = 0; i < size; ++i) values[i] += bias[i];
}

std::size_t pieces_of(std::size_t total, std::size_t size) { return (total + size - 1) / size; }

// Zero counters that workers share.
std::unique_ptr<std::atomic<std::uint32_t>[]> counters(std::size_t size) {
    return std::unique_ptr<std::atomic<std::uint32_t>[]>(new std::atomic<std::uint32_t>[size]());
}

void clear(std::atomic<std::uint32_t>* counters, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) counters[i].store(0, std::memory_order_relaxed);
}

// Written past the caches where that can be said: the device keeps looking at these lines, and each
// would have to be won back from it.
void store_tagged(const float* values, std::size_t size, std::uint32_t number,
                  std::uint64_t* words) {
    for (std::size_t i = 0; i < size; ++i) {
        const std::uint64_t word = tagged(bits_of(values[i]), number);
#if defined(__x86_64__)
        _mm_stream_si64(reinterpret_cast<long long*>(words + i), static_cast<long long>(word));
#else
        __atomic_store_n(words + i, word, __ATOMIC_RELAXED);
#endif
    }
}

// Lets words that were stored go their way now.
void flush_tagged() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
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
      quads_done_(counters(jobs_.size())),
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
    std::uint8_t* scratch = workers.scratch(scratch_bytes(workers, num_tokens));
    return run({*this, workers, ids, weights, num_tokens, outputs, sums, scratch}, rows);
}

DecodeFault ExpertLayer::answer(Workers& workers, const Asked& asked,
                                const TaggedResults& results) {
    const Held layer(busy_);
    const Held pool = workers.hold();
    if (!layer || !pool) return DecodeFault::kBusy;
    PlainFloats floats;
    const std::size_t num_values = asked.num_tokens * shape_.top_k * shape_.hidden_size;
    const std::size_t first = scratch_bytes(workers, asked.num_tokens);
    std::uint8_t* memory = workers.scratch(first + num_values * sizeof(float));
    return run_ready({*this,
                      workers,
                      asked.ids,
                      asked.weights,
                      asked.num_tokens,
                      reinterpret_cast<float*>(memory + first),
                      nullptr,
                      memory,
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
    const std::size_t gate_up_quads = num_jobs_ * num_quads(shape_.width);
    const std::size_t down_quads = num_quads(shape_.hidden_size);
    const unsigned num_workers = call.workers.num_threads();
    piece_quads_ = piece_size(gate_up_quads, kQuadsPerBlock, 1, num_workers);
    down_piece_quads_ = piece_size(num_jobs_ * down_quads, kMostDownQuads,
                                   call.sums_up() ? kQuadsPerBlock : 1, num_workers);
    const bool is_small_gate_up =
        is_small(piece_quads_ * 2 * quad_bytes(shape_.format, shape_.hidden_size));
    const bool is_small_down =
        is_small(down_piece_quads_ * quad_bytes(shape_.format, shape_.width));
    const std::size_t down_pieces = pieces_of(down_quads, down_piece_quads_);
    gate_up_pieces_.open(gate_up_quads / piece_quads_, num_workers, is_small_gate_up);
    down_pieces_.open(num_jobs_ * down_pieces, num_workers, is_small_down);
    clear(quads_done_.get(), num_jobs_);
    clear(jobs_done_.get(), std::min(down_pieces, shape_.hidden_size / kBlockSize));
    not_finite_.store(false, std::memory_order_relaxed);
    const auto task = [](const void* context, unsigned worker) {
        const Call& given = *static_cast<const Call*>(context);
        given.layer.gate_up_pieces(given, worker);
        given.layer.down_pieces(given, worker);
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

void ExpertLayer::gate_up_pieces(const Call& call, unsigned worker) {
    const std::size_t pieces = num_quads(shape_.width) / piece_quads_;  // of a job
    std::size_t last = 0;
    std::size_t num_done = 0;  // pieces of the last job, not told yet
    const auto tell = [&] {
        if (num_done == 0) return;
        const auto quads = static_cast<std::uint32_t>(num_done * piece_quads_);
        quads_done_[last].fetch_add(quads, std::memory_order_release);
        num_done = 0;
    };
    DealtPieces::Hand hand(gate_up_pieces_, worker);
    for (std::size_t piece = 0; hand.take(&piece);) {
        const std::size_t job = piece / pieces;
        if (job != last) tell();
        last = job;
        const Timed timed(call, jobs_[job]);
        gate_up(call, jobs_[job], piece % pieces * piece_quads_);
        ++num_done;
    }
    tell();
}

void ExpertLayer::down_pieces(const Call& call, unsigned worker) {
    const std::size_t quads = num_quads(shape_.hidden_size);
    const std::size_t width_blocks = shape_.width / kBlockSize;
    const std::size_t pieces = pieces_of(quads, down_piece_quads_);  // of a job
    std::uint8_t* const own =
        call.scratch + values_bytes(call.num_tokens) + worker * kMaxTokens * hidden_stride_;
    const std::uint8_t* hidden[kMaxTokens];
    std::size_t last = num_jobs_;
    DealtPieces::Hand hand(down_pieces_, worker);
    for (std::size_t piece = 0; hand.take(&piece);) {
        const Job& job = jobs_[piece / pieces];
        if (piece / pieces != last) {
            last = piece / pieces;
            spin_until([&] {
                return quads_done_[last].load(std::memory_order_acquire) == num_quads(shape_.width);
            });
            const bool is_split = piece_quads_ < kQuadsPerBlock;
            for (std::size_t t = 0; t < job.num_tokens; ++t) {
                hidden[t] = is_split ? own + t * hidden_stride_ : job.hidden[t];
                for (std::size_t block = 0; is_split && block < width_blocks; ++block) {
                    make_ready(call, values_of(call, job.pairs[t]) + block * kBlockSize, block,
                               own + t * hidden_stride_);
                }
            }
        }
        const Timed timed(call, job);
        const std::size_t first = piece % pieces * down_piece_quads_;
        const std::size_t end = std::min(first + down_piece_quads_, quads);
        down(call, job, {first, end}, hidden);
        if (!call.sums_up()) continue;
        // Who finishes a piece of the last job adds up its slots; the counter passes outputs on.
        std::atomic<std::uint32_t>& done = jobs_done_[piece % pieces];
        if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < num_jobs_) continue;
        sum(call, first * kQuad, (end - first) * kQuad);
    }
    if (call.tagged != nullptr) flush_tagged();
}

// One piece. Rows of a whole block are made ready for down here, others by everyone who reads them.
void ExpertLayer::gate_up(const Call& call, const Job& job, std::size_t first_quad) {
    const std::size_t stride = quad_bytes(shape_.format, shape_.hidden_size);
    const std::size_t row = first_quad * kQuad;
    const std::size_t num_rows = piece_quads_ * kQuad;
    const auto dot_quad = path_.dot_quad[index_of(shape_.format)];
    const std::uint8_t* quad = job.packed + first_quad * 2 * stride;
    float gate[kMaxTokens][kBlockSize] = {};
    float up[kMaxTokens][kBlockSize] = {};
    float sums[kMaxTokens * kQuad];
    for (std::size_t at = 0; at < num_rows; at += kQuad) {
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
            add_bias(biases + row, num_rows, gate[t]);
            add_bias(biases + shape_.width + row, num_rows, up[t]);
        }
        path_.unit_block(shape_.unit, gate[t], up[t], values);
        if (num_rows == kBlockSize) {
            make_ready(call, values, row / kBlockSize, job.hidden[t]);
        } else {
            std::memcpy(values_of(call, job.pairs[t]) + row, values, num_rows * sizeof(float));
        }
    }
}

void ExpertLayer::make_ready(const Call& call, const float* values, std::size_t block,
                             std::uint8_t* ready) {
    if (path_.ready_block[index_of(shape_.format)](values, block, ready)) return;
    not_finite_.store(true, std::memory_order_relaxed);
    if (call.tagged == nullptr) return;
    __atomic_fetch_or(call.tagged->faults, kFaultNotFinite, __ATOMIC_RELAXED);
}

void ExpertLayer::down(const Call& call, const Job& job, const Quads& quads,
                       const std::uint8_t* const* hidden) const {
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
        dot_quad(bytes, shape_.width, hidden, job.num_tokens, sums);
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
