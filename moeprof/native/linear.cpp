#include "linear.hpp"

#include <algorithm>
#include <atomic>

#include "experts.hpp"
#include "plain_floats.hpp"

namespace moeprof {
namespace {

constexpr std::size_t kQuadsPerBlock = kBlockSize / kQuad;

struct Task {
    const PackedMatrix& matrix;
    const Path& path;
    Workers& workers;
    const std::uint8_t* rows;
    FloatType type;
    std::size_t num_tokens;
    std::uint8_t* output;
    bool is_few;
    std::size_t ready_stride;
    std::uint8_t* ready;  // [num_tokens + kRowsBehind]
    std::size_t worker_bytes;
    std::uint8_t* worker_memory;  // [num_threads]
    mutable std::atomic<std::size_t> next_row{0};
    mutable std::atomic<std::size_t> next_block{0};
    mutable std::atomic<bool> not_finite{false};

    std::size_t format() const { return static_cast<std::size_t>(matrix.format); }
};

bool make_ready(const Task& task, std::size_t token) {
    const std::size_t num_blocks = task.matrix.row_size / kBlockSize;
    const std::size_t block_bytes = kBlockSize * float_bytes(task.type);
    const std::uint8_t* row = task.rows + token * num_blocks * block_bytes;
    std::uint8_t* ready = task.ready + token * task.ready_stride;
    for (std::size_t block = 0; block < num_blocks; ++block) {
        float values[kBlockSize];
        task.path.widen(task.type, row + block * block_bytes, kBlockSize, values);
        const bool is_finite =
            task.is_few
                ? task.path.ready_block[task.format()](values, block, ready)
                : task.path.many.ready_block[task.format()](values, block, num_blocks, ready);
        if (!is_finite) return false;
    }
    return true;
}

// Adds the bias of 32 rows and writes them as the output of one token.
void write(const Task& task, std::size_t token, std::size_t block, float* values) {
    if (task.matrix.bias != nullptr) {
        const float* bias = task.matrix.bias + block * kBlockSize;
        for (std::size_t i = 0; i < kBlockSize; ++i) values[i] += bias[i];
    }
    const std::size_t at = token * task.matrix.num_rows + block * kBlockSize;
    task.path.narrow(task.type, values, kBlockSize, task.output + at * float_bytes(task.type));
}

void multiply_few(const Task& task, std::size_t block) {
    const std::size_t stride = quad_bytes(task.matrix.format, task.matrix.row_size);
    const std::uint8_t* quad = task.matrix.packed + block * kQuadsPerBlock * stride;
    const std::uint8_t* ready[kMaxTokens];
    for (std::size_t t = 0; t < task.num_tokens; ++t) ready[t] = task.ready + t * task.ready_stride;
    float values[kMaxTokens][kBlockSize];
    float sums[kMaxTokens * kQuad];
    for (std::size_t at = 0; at < kBlockSize; at += kQuad, quad += stride) {
        task.path.dot_quad[task.format()](quad, task.matrix.row_size, ready, task.num_tokens, sums);
        for (std::size_t t = 0; t < task.num_tokens; ++t) {
            std::copy_n(sums + t * kQuad, kQuad, values[t] + at);
        }
    }
    for (std::size_t t = 0; t < task.num_tokens; ++t) write(task, t, block, values[t]);
}

void multiply_many(const Task& task, std::size_t block, std::uint8_t* memory) {
    const std::size_t stride = quad_bytes(task.matrix.format, task.matrix.row_size);
    const std::uint8_t* quads = task.matrix.packed + block * kQuadsPerBlock * stride;
    auto* sums = reinterpret_cast<float (*)[kTile][kBlockSize]>(memory);
    for (std::size_t start = 0; start < task.num_tokens; start += kTile) {
        const std::size_t num_tokens = std::min(kTile, task.num_tokens - start);
        task.path.many.project[task.format()](quads, 1, task.matrix.row_size,
                                              task.ready + start * task.ready_stride, num_tokens,
                                              sums, memory + sizeof *sums);
        for (std::size_t t = 0; t < num_tokens; ++t) write(task, start + t, block, sums[0][t]);
    }
}

void work(const void* context, unsigned worker) {
    const Task& task = *static_cast<const Task*>(context);
    for (;;) {
        const std::size_t token = task.next_row.fetch_add(1, std::memory_order_relaxed);
        if (token >= task.num_tokens) break;
        if (!make_ready(task, token)) task.not_finite.store(true, std::memory_order_relaxed);
    }
    task.workers.barrier();
    if (task.not_finite.load(std::memory_order_relaxed)) return;
    std::uint8_t* memory = task.worker_memory + worker * task.worker_bytes;
    for (;;) {
        const std::size_t block = task.next_block.fetch_add(1, std::memory_order_relaxed);
        if (block >= task.matrix.num_rows / kBlockSize) return;
        if (task.is_few) {
            multiply_few(task, block);
        } else {
            multiply_many(task, block, memory);
        }
    }
}

}  // namespace

DecodeFault multiply(const PackedMatrix& matrix, const Path& path, Workers& workers,
                     const void* rows, FloatType type, std::size_t num_tokens, void* output) {
    const bool is_few = num_tokens <= kMaxTokens;
    const std::size_t stride = is_few ? ready_bytes(matrix.format, matrix.row_size)
                                      : path.many.row_bytes(matrix.format, matrix.row_size);
    const std::size_t ready_bytes = padded((num_tokens + kRowsBehind) * stride);
    const std::size_t worker_bytes =
        is_few ? 0
               : kTile * kBlockSize * sizeof(float) +
                     padded(path.many.scratch_bytes(matrix.format, matrix.row_size));
    std::uint8_t* memory = workers.scratch(ready_bytes + workers.num_threads() * worker_bytes);
    const Task task{matrix,
                    path,
                    workers,
                    static_cast<const std::uint8_t*>(rows),
                    type,
                    num_tokens,
                    static_cast<std::uint8_t*>(output),
                    is_few,
                    stride,
                    memory,
                    worker_bytes,
                    memory + ready_bytes};
    PlainFloats floats;
    workers.run(&work, &task);
    return task.not_finite.load() ? DecodeFault::kNotFinite : DecodeFault::kNone;
}

}  // namespace moeprof
