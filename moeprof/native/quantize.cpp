#include "quantize.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "plain_floats.hpp"

namespace moeprof {
namespace {

struct Matrix {
    const void* values;
    std::size_t num_rows;
    std::size_t row_size;
    std::uint8_t* packed;
    std::size_t stride;  // between quads
};

struct Task {
    const LayerShape& shape;
    const Path& path;
    FloatType type;
    Matrix matrices[3];
    std::uint8_t* scratch;
    std::size_t scratch_bytes;  // of one worker
    mutable std::atomic<std::size_t> next{0};
    mutable std::atomic<WeightFault> fault{WeightFault::kNone};
};

// Rows 4 q to 4 q + 3 of a matrix.
WeightFault quantize_quad(const Task& task, const Matrix& matrix, std::size_t quad,
                          std::uint8_t* stored) {
    const Format format = task.shape.format;
    const auto quantize_block = task.path.quantize_weights[static_cast<std::size_t>(format)];
    const std::size_t first = quad * kQuad;
    const std::size_t rows = std::min(kQuad, matrix.num_rows - first);
    const std::size_t num_blocks = rows * (matrix.row_size / kBlockSize);
    const auto* from = static_cast<const std::uint8_t*>(matrix.values) +
                       first * matrix.row_size * float_bytes(task.type);
    for (std::size_t block = 0; block < num_blocks; ++block) {
        float values[kBlockSize];
        task.path.widen(task.type, from + block * kBlockSize * float_bytes(task.type), kBlockSize,
                        values);
        const WeightFault fault = quantize_block(values, stored + block * block_bytes(format));
        if (fault != WeightFault::kNone) return fault;
    }
    pack_rows(format, stored, rows, matrix.row_size, matrix.packed + quad * matrix.stride,
              matrix.stride);
    return WeightFault::kNone;
}

void work(const void* context, unsigned worker) {
    const Task& task = *static_cast<const Task*>(context);
    std::uint8_t* stored = task.scratch + worker * task.scratch_bytes;
    while (task.fault.load(std::memory_order_relaxed) == WeightFault::kNone) {
        std::size_t quad = task.next.fetch_add(1, std::memory_order_relaxed);
        const Matrix* matrix = task.matrices;
        const Matrix* const end = task.matrices + 3;
        while (matrix != end && quad >= num_quads(matrix->num_rows)) {
            quad -= num_quads(matrix->num_rows);
            ++matrix;
        }
        if (matrix == end) return;
        const WeightFault fault = quantize_quad(task, *matrix, quad, stored);
        if (fault != WeightFault::kNone) task.fault.store(fault, std::memory_order_relaxed);
    }
}

void place_biases(const LayerShape& shape, const Path& path, const ExpertValues& values,
                  std::uint8_t* packed) {
    const std::size_t start = expert_bytes(shape.format, shape.hidden_size, shape.width, false);
    const std::size_t end = expert_bytes(shape.format, shape.hidden_size, shape.width, true);
    std::memset(packed + start, 0, end - start);
    auto* biases = reinterpret_cast<float*>(packed + start);
    path.widen(values.type, values.gate_bias, shape.width, biases);
    path.widen(values.type, values.up_bias, shape.width, biases + shape.width);
    path.widen(values.type, values.down_bias, shape.hidden_size, biases + 2 * shape.width);
}

}  // namespace

WeightFault quantize_matrix(Format format, const Path& path, const void* values, FloatType type,
                            std::size_t num_rows, std::size_t row_size, Workers& workers,
                            std::uint8_t* packed) {
    LayerShape shape;
    shape.format = format;
    const std::size_t stride = quad_bytes(format, row_size);
    const Matrix none{nullptr, 0, row_size, nullptr, 0};
    const Task task{shape,
                    path,
                    type,
                    {{values, num_rows, row_size, packed, stride}, none, none},
                    workers.scratch(workers.num_threads() * stride),
                    stride};
    PlainFloats floats;
    workers.run(&work, &task);
    return task.fault.load();
}

WeightFault quantize_expert(const LayerShape& shape, const Path& path, const ExpertValues& values,
                            Workers& workers, std::uint8_t* packed) {
    const std::size_t gate_up = quad_bytes(shape.format, shape.hidden_size);
    const std::size_t down = quad_bytes(shape.format, shape.width);
    std::uint8_t* down_at = packed + 2 * num_quads(shape.width) * gate_up;
    const std::size_t scratch_bytes = std::max(gate_up, down);
    const Task task{shape,
                    path,
                    values.type,
                    {{values.gate, shape.width, shape.hidden_size, packed, 2 * gate_up},
                     {values.up, shape.width, shape.hidden_size, packed + gate_up, 2 * gate_up},
                     {values.down, shape.hidden_size, shape.width, down_at, down}},
                    workers.scratch(workers.num_threads() * scratch_bytes),
                    scratch_bytes};
    PlainFloats floats;
    workers.run(&work, &task);
    if (shape.has_biases) place_biases(shape, path, values, packed);
    return task.fault.load();
}

}  // namespace moeprof
