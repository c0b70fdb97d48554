// Memory that begins on a cache line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "layout.hpp"

namespace moeprof {

struct AlignedDelete {
    void operator()(std::uint8_t* memory) const {
        ::operator delete[](memory, std::align_val_t{kLine});
    }
};
using AlignedBytes = std::unique_ptr<std::uint8_t[], AlignedDelete>;

// `size` zero bytes.
inline AlignedBytes aligned_bytes(std::size_t size) {
    AlignedBytes bytes(static_cast<std::uint8_t*>(::operator new[](size, std::align_val_t{kLine})));
    std::memset(bytes.get(), 0, size);
    return bytes;
}

}  // namespace moeprof
