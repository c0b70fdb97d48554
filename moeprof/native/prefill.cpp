#include "prefill.hpp"

#include <algorithm>
#include <cstring>

#include "counting.hpp"
#include "plain_floats.hpp"

namespace moeprof {
namespace {

// What slots gave in one piece of `down` should stay in a core's own cache.
constexpr std::size_t kColumnBytes = std::size_t{1} << 20;

std::size_t tokens_of_a_pass(std::size_t num_tokens, std::size_t top_k) {
    return std::min(num_tokens, std::max<std::size_t>(1, kPassSlots / top_k));
}

void add_bias(const float* bias, float* values) {
    for (std::size_t i = 0; i < kBlockSize; ++i) values[i] += bias[i];
}

}  // namespace

struct Prefill::Worker {
    float (*sums)[kTile][kBlockSize];  // [2]
    float* columns;                    // [slots of a pass, column_blocks_ * 32]
    std::uint8_t* scratch;             // of ManyTokens::project
};

Prefill::Prefill(const LayerShape& shape, const Path& path, const std::uint8_t* const* experts,
                 std::size_t num_tokens, unsigned num_threads)
    : shape_(shape),
      path_(path),
      experts_(experts),
      num_threads_(num_threads),
      format_(static_cast<std::size_t>(shape.format)),
      pass_tokens_(tokens_of_a_pass(num_tokens, shape.top_k)),
      row_bytes_(path.many.row_bytes(shape.format, shape.hidden_size)),
      hidden_bytes_(path.many.row_bytes(shape.format, shape.width)),
      column_blocks_(std::max<std::size_t>(
          1, kColumnBytes / std::max<std::size_t>(
                                1, pass_tokens_ * shape.top_k * kBlockSize * sizeof(float)))),
      count_at_(reserve(shape.num_experts * sizeof(std::uint32_t))),
      last_at_(reserve(shape.num_experts * sizeof(std::uint32_t))),
      jobs_at_(reserve(shape.num_experts * sizeof(Job))),
      place_at_(reserve(pass_tokens_ * shape.top_k * sizeof(std::uint32_t))),
      slot_at_(reserve(pass_tokens_ * shape.top_k * sizeof(std::uint32_t))),
      rows_at_(reserve((pass_tokens_ * shape.top_k + kRowsBehind) * row_bytes_)),
      hidden_at_(reserve((pass_tokens_ * shape.top_k + kRowsBehind) * hidden_bytes_)),
      worker_bytes_(2 * kTile * kBlockSize * sizeof(float) +
                    padded(std::max(path.many.scratch_bytes(shape.format, shape.hidden_size),
                                    path.many.scratch_bytes(shape.format, shape.width))) +
                    pass_tokens_ * shape.top_k * column_blocks_ * kBlockSize * sizeof(float)),
      workers_at_(reserve(num_threads * worker_bytes_)) {}

std::size_t Prefill::reserve(std::size_t num_bytes) {
    const std::size_t start = end_;
    end_ += padded(num_bytes);
    return start;
}

DecodeFault Prefill::run(Workers& workers, const Tokens& tokens, const Results& results,
                         std::uint8_t* scratch) {
    scratch_ = scratch;
    PlainFloats floats;
    for (std::size_t first = 0; first < tokens.num_tokens; first += pass_tokens_) {
        const std::size_t slots = first * shape_.top_k;
        const std::size_t values = first * shape_.hidden_size;
        tokens_ = tokens;
        tokens_.rows =
            static_cast<const std::uint8_t*>(tokens.rows) + values * float_bytes(tokens.type);
        tokens_.ids += slots;
        tokens_.weights += tokens.weights ? slots : 0;
        tokens_.num_tokens = std::min(pass_tokens_, tokens.num_tokens - first);
        results_ = results;
        if (results.outputs) results_.outputs += slots * shape_.hidden_size;
        if (results.sums) {
            results_.sums =
                static_cast<std::uint8_t*>(results.sums) + values * float_bytes(results.type);
        }
        const DecodeFault fault = gather();
        if (fault != DecodeFault::kNone) return fault;
        const std::size_t gate_up_pieces = num_jobs_ * (shape_.width / kBlockSize);
        ready_pieces_.open(tokens_.num_tokens, num_threads_, tokens_.num_tokens);
        gate_up_pieces_.open(gate_up_pieces, num_threads_, gate_up_pieces);
        down_pieces_.open(shape_.hidden_size / kBlockSize, num_threads_, column_blocks_);
        not_finite_.store(false, std::memory_order_relaxed);
        struct Pass {
            Prefill& prefill;
            Workers& workers;
        } const pass{*this, workers};
        const auto task = [](const void* context, unsigned worker) {
            const Pass& given = *static_cast<const Pass*>(context);
            given.prefill.work(given.workers, worker);
        };
        workers.run(task, &pass);
        if (not_finite_.load(std::memory_order_relaxed)) return DecodeFault::kNotFinite;
    }
    return DecodeFault::kNone;
}

DecodeFault Prefill::gather() {
    auto* counts = at<std::uint32_t>(count_at_);
    auto* last = at<std::uint32_t>(last_at_);
    auto* jobs = at<Job>(jobs_at_);
    auto* places = at<std::uint32_t>(place_at_);
    auto* slots = at<std::uint32_t>(slot_at_);
    std::memset(counts, 0, shape_.num_experts * sizeof *counts);
    std::memset(last, 0, shape_.num_experts * sizeof *last);
    for (std::size_t slot = 0; slot < tokens_.num_tokens * shape_.top_k; ++slot) {
        const std::uint16_t id = tokens_.ids[slot];
        if (id == kNoExpert) continue;
        if (id >= shape_.num_experts || experts_[id] == nullptr) return DecodeFault::kUnknownExpert;
        const auto token = static_cast<std::uint32_t>(slot / shape_.top_k + 1);
        if (last[id] == token) return DecodeFault::kRepeatedExpert;
        last[id] = token;
        ++counts[id];
    }
    num_jobs_ = 0;
    std::uint32_t first = 0;
    for (std::size_t id = 0; id < shape_.num_experts; ++id) {
        if (counts[id] == 0) continue;
        jobs[num_jobs_++] = {experts_[id], first, counts[id]};
        first += counts[id];
        counts[id] = first - counts[id];  // from here on: the next place
    }
    for (std::size_t slot = 0; slot < tokens_.num_tokens * shape_.top_k; ++slot) {
        const std::uint16_t id = tokens_.ids[slot];
        if (id == kNoExpert) continue;
        places[slot] = counts[id]++;
        slots[places[slot]] = static_cast<std::uint32_t>(slot);
    }
    return DecodeFault::kNone;
}

void Prefill::work(Workers& workers, unsigned worker) {
    std::uint8_t* memory = at<std::uint8_t>(workers_at_) + worker * worker_bytes_;
    Worker mine;
    mine.sums = reinterpret_cast<float (*)[kTile][kBlockSize]>(memory);
    mine.columns = reinterpret_cast<float*>(memory + 2 * sizeof *mine.sums);
    mine.scratch = memory + 2 * sizeof *mine.sums +
                   pass_tokens_ * shape_.top_k * column_blocks_ * kBlockSize * sizeof(float);
    const std::size_t width_blocks = shape_.width / kBlockSize;
    std::size_t first = 0;
    std::size_t end = 0;
    while (ready_pieces_.take(&first, &end)) {
        for (std::size_t token = first; token < end; ++token) ready_token(token);
    }
    workers.barrier();
    // Another worker may find the next value that is not finite right now, so what is read here may
    // differ from worker to worker: all of them go on to the same barrier.
    const bool goes_on = !not_finite_.load(std::memory_order_relaxed);
    while (goes_on && gate_up_pieces_.take(&first, &end)) {
        for (std::size_t piece = first; piece < end; ++piece) {
            gate_up(at<Job>(jobs_at_)[piece / width_blocks], piece % width_blocks, mine);
        }
    }
    workers.barrier();
    if (not_finite_.load(std::memory_order_relaxed)) return;
    while (down_pieces_.take(&first, &end)) down(first, end - first, mine);
}

void Prefill::ready_token(std::size_t token) {
    const auto* rows = static_cast<const std::uint8_t*>(tokens_.rows) +
                       token * shape_.hidden_size * float_bytes(tokens_.type);
    const auto* places = at<std::uint32_t>(place_at_);
    const std::uint8_t* ready = nullptr;
    for (std::size_t slot = token * shape_.top_k; slot < (token + 1) * shape_.top_k; ++slot) {
        if (tokens_.ids[slot] == kNoExpert) continue;
        std::uint8_t* row = at<std::uint8_t>(rows_at_) + places[slot] * row_bytes_;
        if (ready != nullptr) {
            std::memcpy(row, ready, row_bytes_);
            continue;
        }
        ready = row;
        const std::size_t num_blocks = shape_.hidden_size / kBlockSize;
        for (std::size_t block = 0; block < num_blocks; ++block) {
            float values[kBlockSize];
            path_.widen(tokens_.type, rows + block * kBlockSize * float_bytes(tokens_.type),
                        kBlockSize, values);
            if (!path_.many.ready_block[format_](values, block, num_blocks, row)) {
                not_finite_.store(true, std::memory_order_relaxed);
                return;
            }
        }
    }
}

void Prefill::gate_up(const Job& job, std::size_t block, const Worker& mine) {
    const std::size_t stride = quad_bytes(shape_.format, shape_.hidden_size);
    const std::uint8_t* quads = job.packed + block * (kBlockSize / kQuad) * 2 * stride;
    const auto* biases = reinterpret_cast<const float*>(
        job.packed + expert_bytes(shape_.format, shape_.hidden_size, shape_.width, false));
    for (std::size_t start = 0; start < job.num_tokens; start += kTile) {
        const std::size_t num_tokens = std::min(kTile, job.num_tokens - start);
        const std::size_t place = job.first + start;
        path_.many.project[format_](quads, 2, shape_.hidden_size,
                                    at<std::uint8_t>(rows_at_) + place * row_bytes_, num_tokens,
                                    mine.sums, mine.scratch);
        for (std::size_t t = 0; t < num_tokens; ++t) {
            float* gate = mine.sums[0][t];
            float* up = mine.sums[1][t];
            if (shape_.has_biases) {
                add_bias(biases + block * kBlockSize, gate);
                add_bias(biases + shape_.width + block * kBlockSize, up);
            }
            float values[kBlockSize];
            path_.unit_block(shape_.unit, gate, up, values);
            std::uint8_t* row = at<std::uint8_t>(hidden_at_) + (place + t) * hidden_bytes_;
            if (!path_.many.ready_block[format_](values, block, shape_.width / kBlockSize, row)) {
                not_finite_.store(true, std::memory_order_relaxed);
            }
        }
    }
}

void Prefill::down(std::size_t first_block, std::size_t num_blocks, const Worker& mine) {
    const std::size_t quads_at =
        2 * num_quads(shape_.width) * quad_bytes(shape_.format, shape_.hidden_size);
    const std::size_t block_stride = (kBlockSize / kQuad) * quad_bytes(shape_.format, shape_.width);
    const std::size_t biases_at =
        expert_bytes(shape_.format, shape_.hidden_size, shape_.width, false);
    const std::size_t columns = num_blocks * kBlockSize;
    const std::size_t stride = results_.outputs ? shape_.hidden_size : columns;
    float* outputs = results_.outputs ? results_.outputs + first_block * kBlockSize : mine.columns;
    for (std::size_t j = 0; j < num_jobs_; ++j) {
        const Job& job = at<Job>(jobs_at_)[j];
        const auto* biases =
            reinterpret_cast<const float*>(job.packed + biases_at) + 2 * shape_.width;
        for (std::size_t start = 0; start < job.num_tokens; start += kTile) {
            const std::size_t num_tokens = std::min(kTile, job.num_tokens - start);
            const std::size_t place = job.first + start;
            const auto* slots = at<std::uint32_t>(slot_at_) + place;
            for (std::size_t block = 0; block < num_blocks; ++block) {
                path_.many.project[format_](
                    job.packed + quads_at + (first_block + block) * block_stride, 1, shape_.width,
                    at<std::uint8_t>(hidden_at_) + place * hidden_bytes_, num_tokens, mine.sums,
                    mine.scratch);
                for (std::size_t t = 0; t < num_tokens; ++t) {
                    float* values = mine.sums[0][t];
                    if (shape_.has_biases) {
                        add_bias(biases + (first_block + block) * kBlockSize, values);
                    }
                    std::memcpy(outputs + slots[t] * stride + block * kBlockSize, values,
                                kBlockSize * sizeof(float));
                }
            }
        }
    }
    if (results_.sums) sum(first_block * kBlockSize, columns, outputs, stride);
}

void Prefill::sum(std::size_t first, std::size_t num_columns, float* outputs, std::size_t stride) {
    const std::size_t value_bytes = float_bytes(results_.type);
    for (std::size_t t = 0; t < tokens_.num_tokens; ++t) {
        for (std::size_t column = 0; column < num_columns; column += kBlockSize) {
            float total[kBlockSize] = {};
            for (std::size_t slot = t * shape_.top_k; slot < (t + 1) * shape_.top_k; ++slot) {
                float* output = outputs + slot * stride + column;
                if (tokens_.ids[slot] == kNoExpert) {
                    if (results_.outputs) std::memset(output, 0, kBlockSize * sizeof(float));
                    continue;
                }
                const float weight = tokens_.weights[slot];
                for (std::size_t i = 0; i < kBlockSize; ++i) {
                    total[i] = total[i] + weight * output[i];
                }
            }
            const std::size_t value = t * shape_.hidden_size + first + column;
            path_.narrow(results_.type, total, kBlockSize,
                         static_cast<std::uint8_t*>(results_.sums) + value * value_bytes);
        }
    }
}

}  // namespace moeprof
