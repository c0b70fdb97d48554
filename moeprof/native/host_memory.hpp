// Memory for weights and scratch: huge pages where the system grants them, spread over the nodes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moeprof {

class HostMemory {
  public:
    // `num_bytes` zero bytes on a 2 MiB boundary. Huge pages are asked for, not required; with more
    // than one NUMA node the pages are interleaved over all of them, so that every worker finds the
    // same bandwidth wherever it is pinned. Throws std::bad_alloc where the system refuses.
    explicit HostMemory(std::size_t num_bytes);
    ~HostMemory();
    HostMemory(const HostMemory&) = delete;
    HostMemory& operator=(const HostMemory&) = delete;

    std::uint8_t* data() const { return data_; }
    std::size_t num_bytes() const { return num_bytes_; }

    // Bytes that lie in huge pages now: 0 before they are first written, and where the system does
    // not tell.
    std::size_t huge_bytes() const;

  private:
    void* reserved_ = nullptr;
    std::size_t reserved_bytes_ = 0;
    std::uint8_t* data_ = nullptr;
    const std::size_t num_bytes_;
};

}  // namespace moeprof
