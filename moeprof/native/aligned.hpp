// Memory that begins on a cache line.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "layout.hpp"

namespace moeprof {

struct AlignedDelete {
    void operator()(std::uint8_t* memory) const { std::free(memory); }
};
using AlignedBytes = std::unique_ptr<std::uint8_t[], AlignedDelete>;

// `size` bytes to be written before they are read; many of them on huge pages, where the system has
// some, so that it need not be asked for every 4 KiB.
inline AlignedBytes unwritten_bytes(std::size_t size) {
    constexpr std::size_t kHugePage = std::size_t{2} << 20;
    const std::size_t alignment = size < 2 * kHugePage ? kLine : kHugePage;
    const std::size_t rounded = (size / alignment + 1) * alignment;
    AlignedBytes bytes(static_cast<std::uint8_t*>(std::aligned_alloc(alignment, rounded)));
    if (!bytes) throw std::bad_alloc();
#if defined(__linux__)
    if (alignment == kHugePage) madvise(bytes.get(), rounded, MADV_HUGEPAGE);
#endif
    return bytes;
}

// `size` zero bytes.
inline AlignedBytes aligned_bytes(std::size_t size) {
    AlignedBytes bytes = unwritten_bytes(size);
    std::memset(bytes.get(), 0, size);
    return bytes;
}

}  // namespace moeprof
