#include "host_memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moeprof {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

#if defined(__linux__)
constexpr int kMostNodes = 1024;
constexpr int kBitsPerWord = 8 * sizeof(unsigned long);
constexpr int kInterleave = 3;                // MPOL_INTERLEAVE of linux/mempolicy.h
constexpr unsigned long kAllowed = 1ul << 2;  // MPOL_F_MEMS_ALLOWED

void interleave(void* memory, std::size_t num_bytes) {
    unsigned long nodes[kMostNodes / kBitsPerWord] = {};
    if (syscall(SYS_get_mempolicy, nullptr, nodes, kMostNodes, nullptr, kAllowed) != 0) return;
    int num_nodes = 0;
    for (const unsigned long word : nodes) num_nodes += __builtin_popcountl(word);
    if (num_nodes < 2) return;
    syscall(SYS_mbind, memory, num_bytes, kInterleave, nodes, kMostNodes, 0);
}
#endif

}  // namespace

HostMemory::HostMemory(std::size_t num_bytes) : num_bytes_(num_bytes) {
    const std::size_t usable = (num_bytes + kHugePage - 1) / kHugePage * kHugePage;
    // An unusable page stays on both sides, so that the system accounts this memory on its own.
    reserved_bytes_ = usable + 2 * kHugePage;
    reserved_ = mmap(nullptr, reserved_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (reserved_ == MAP_FAILED) throw std::bad_alloc();
    const auto start = reinterpret_cast<std::uintptr_t>(reserved_) + 4096;
    data_ = reinterpret_cast<std::uint8_t*>((start + kHugePage - 1) / kHugePage * kHugePage);
    if (usable != 0 && mprotect(data_, usable, PROT_READ | PROT_WRITE) != 0) {
        munmap(reserved_, reserved_bytes_);
        throw std::bad_alloc();
    }
#if defined(__linux__)
    if (usable != 0) {
        madvise(data_, usable, MADV_HUGEPAGE);
        interleave(data_, usable);
    }
#endif
}

HostMemory::~HostMemory() { munmap(reserved_, reserved_bytes_); }

std::size_t HostMemory::huge_bytes() const {
    std::FILE* maps = std::fopen("/proc/self/smaps", "r");
    if (maps == nullptr) return 0;
    char line[512];
    bool inside = false;
    std::size_t kilobytes = 0;
    while (std::fgets(line, sizeof line, maps) != nullptr) {
        std::uintptr_t begin = 0;
        std::uintptr_t end = 0;
        std::size_t size = 0;
        if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2) {
            const auto here = reinterpret_cast<std::uintptr_t>(data_);
            inside = begin >= here && begin < here + num_bytes_;
        } else if (inside && std::sscanf(line, "AnonHugePages: %zu kB", &size) == 1) {
            kilobytes += size;
        }
    }
    std::fclose(maps);
    return std::min(kilobytes * 1024, num_bytes_);
}

}  // namespace moeprof
