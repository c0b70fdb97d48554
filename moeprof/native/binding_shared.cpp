#include "binding_shared.hpp"

#include "counting.hpp"

namespace moeprof {

void refuse(const std::string& message) { throw nanobind::value_error(message.c_str()); }

void expect(const char* what, std::size_t got, std::size_t expected) {
    if (got == expected) return;
    refuse(std::string(what) + ": " + std::to_string(expected) + " expected, got " +
           std::to_string(got));
}

void expect_blocks(const char* what, std::size_t size) {
    if (size == 0 || size % kBlockSize != 0) {
        refuse(std::string(what) + ": " + std::to_string(size) +
               ", expected a positive multiple of 32");
    }
}

Format format_of(const std::string& name) {
    if (name == "q8_0") return Format::kQ8_0;
    if (name == "q4_0") return Format::kQ4_0;
    if (name == "bf16") return Format::kBf16;
    refuse("weight format: '" + name + "', expected one of q8_0, q4_0, bf16");
}

FloatType float_type_of(const std::string& name) {
    if (name == "float32") return FloatType::kFloat32;
    if (name == "bfloat16") return FloatType::kBfloat16;
    if (name == "float16") return FloatType::kFloat16;
    refuse("number type: '" + name + "', expected one of float32, bfloat16, float16");
}

UnitKind unit_of(const std::string& name) {
    if (name == "silu") return UnitKind::kSilu;
    if (name == "gelu_tanh") return UnitKind::kGeluTanh;
    if (name == "clamped") return UnitKind::kClamped;
    if (name == "clamped_silu") return UnitKind::kClampedSilu;
    refuse("gated unit: '" + name + "', expected one of silu, gelu_tanh, clamped, clamped_silu");
}

LayerShape layer_shape(std::size_t hidden_size, std::size_t width, std::size_t num_experts,
                       std::size_t top_k, const std::string& weight_format) {
    expect_blocks("hidden size", hidden_size);
    expect_blocks("width", width);
    if (num_experts == 0 || num_experts > kNoExpert) {
        refuse("num_experts: " + std::to_string(num_experts) + ", expected 1 to 65535");
    }
    if (top_k == 0 || top_k > num_experts) {
        refuse("top_k: " + std::to_string(top_k) + ", expected 1 to " +
               std::to_string(num_experts));
    }
    LayerShape shape;
    shape.hidden_size = hidden_size;
    shape.width = width;
    shape.num_experts = num_experts;
    shape.top_k = top_k;
    shape.format = format_of(weight_format);
    return shape;
}

}  // namespace moeprof
