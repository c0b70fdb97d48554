// What the parts of the binding share: arrays, checks and names.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <string>
#include <vector>

#include "aligned.hpp"
#include "layer_shape.hpp"
#include "paths.hpp"

namespace moeprof {

template <typename Scalar, int kDims>
using Input = nanobind::ndarray<const Scalar, nanobind::numpy, nanobind::ndim<kDims>,
                                nanobind::c_contig, nanobind::device::cpu>;
template <typename Scalar, int kDims>
using Output = nanobind::ndarray<Scalar, nanobind::numpy, nanobind::ndim<kDims>, nanobind::c_contig,
                                 nanobind::device::cpu>;

[[noreturn]] void refuse(const std::string& message);
void expect(const char* what, std::size_t got, std::size_t expected);
void expect_blocks(const char* what, std::size_t size);
Format format_of(const std::string& name);
FloatType float_type_of(const std::string& name);
UnitKind unit_of(const std::string& name);
LayerShape layer_shape(std::size_t hidden_size, std::size_t width, std::size_t num_experts,
                       std::size_t top_k, const std::string& weight_format);
std::vector<std::string> paths();

// The named path, or the last and fastest.
const Path& path_of(const std::optional<std::string>& name);

template <typename Scalar>
nanobind::ndarray<Scalar, nanobind::numpy> owned(AlignedBytes bytes,
                                                 std::vector<std::size_t> shape) {
    auto* data = bytes.release();
    nanobind::capsule owner(
        data, [](void* p) noexcept { AlignedDelete{}(static_cast<std::uint8_t*>(p)); });
    return nanobind::ndarray<Scalar, nanobind::numpy>(reinterpret_cast<Scalar*>(data), shape.size(),
                                                      shape.data(), owner);
}

// Memory that Python names by its address.
template <typename T>
T* at_address(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace moeprof
