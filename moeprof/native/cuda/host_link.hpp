// Host memory and a stream of its own, through which a prefill works together with the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "prefill.hpp"

namespace moeprof {

// Throws std::runtime_error with the name of the call.
[[noreturn]] void fail(const char* call, int error);
void check(const char* call, int error);

// Memory of somebody else, pinned and seen by the device for as long as this lives.
class HostPin {
  public:
    HostPin(std::uintptr_t address, std::size_t num_bytes);
    ~HostPin() { cudaHostUnregister(host_); }
    HostPin(const HostPin&) = delete;
    HostPin& operator=(const HostPin&) = delete;

    std::uintptr_t device_address() const { return reinterpret_cast<std::uintptr_t>(device_); }

  private:
    void* const host_;
    void* device_ = nullptr;
};

// The room of all layers of a model, as large as the longest pass so far, and the stream on which
// it is asked and answered.
class HostRoom {
  public:
    // `answer` and `answerer` as in PrefillRoom; the latter must outlive this.
    HostRoom(std::size_t hidden_size, std::size_t top_k, void (*answer)(void*), void* answerer);
    ~HostRoom();
    HostRoom(const HostRoom&) = delete;
    HostRoom& operator=(const HostRoom&) = delete;

    // Makes room; waits for the device where it must grow.
    void reserve(std::size_t num_tokens);

    // The room and its parts as the device sees them.
    PrefillRoom* room() const { return static_cast<PrefillRoom*>(device_); }
    std::uint16_t* ids() const;
    const float* outputs() const;

    HostAnswer answer();

  private:
    int begin(const void* rows, std::size_t num_bytes, cudaStream_t stream);

    const std::size_t hidden_size_;
    const std::size_t top_k_;
    void (*const answer_)(void*);
    void* const answerer_;
    std::size_t num_tokens_ = 0;
    void* host_ = nullptr;
    void* device_ = nullptr;
    cudaStream_t stream_ = nullptr;
    cudaEvent_t asked_ = nullptr;
    cudaEvent_t answered_ = nullptr;
};

}  // namespace moeprof
