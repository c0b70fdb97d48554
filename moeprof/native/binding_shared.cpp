#include "binding_shared.hpp"

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

std::vector<std::string> paths() {
    std::vector<std::string> names;
    visit_paths([&](const Path& path) { names.emplace_back(path.name); });
    return names;
}

const Path& path_of(const std::optional<std::string>& name) {
    const Path* found = nullptr;
    visit_paths([&](const Path& path) {
        if (!name || *name == path.name) found = &path;
    });
    if (found == nullptr) {
        std::string known;
        for (const std::string& path : paths()) known += (known.empty() ? "" : ", ") + path;
        refuse("path: '" + *name + "', this machine has " + known);
    }
    return *found;
}

}  // namespace moeprof
