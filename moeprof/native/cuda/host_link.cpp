#include "host_link.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace moeprof {

void fail(const char* call, int error) {
    throw std::runtime_error(std::string(call) + ": " +
                             cudaGetErrorString(static_cast<cudaError_t>(error)));
}

void check(const char* call, int error) {
    if (error != cudaSuccess) fail(call, error);
}

HostPin::HostPin(std::uintptr_t address, std::size_t num_bytes)
    : host_(reinterpret_cast<void*>(address)) {
    check("cudaHostRegister",
          cudaHostRegister(host_, num_bytes, cudaHostRegisterMapped | cudaHostRegisterPortable));
    const cudaError_t error = cudaHostGetDevicePointer(&device_, host_, 0);
    if (error == cudaSuccess) return;
    cudaHostUnregister(host_);
    fail("cudaHostGetDevicePointer", error);
}

HostRoom::HostRoom(std::size_t hidden_size, std::size_t top_k, void (*answer)(void*),
                   void* answerer)
    : hidden_size_(hidden_size), top_k_(top_k), answer_(answer), answerer_(answerer) {
    check("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    check("cudaEventCreateWithFlags", cudaEventCreateWithFlags(&asked_, cudaEventDisableTiming));
    check("cudaEventCreateWithFlags", cudaEventCreateWithFlags(&answered_, cudaEventDisableTiming));
}

HostRoom::~HostRoom() {
    cudaStreamSynchronize(stream_);
    cudaEventDestroy(asked_);
    cudaEventDestroy(answered_);
    cudaStreamDestroy(stream_);
    cudaFreeHost(host_);
}

void HostRoom::reserve(std::size_t num_tokens) {
    if (num_tokens <= num_tokens_) return;
    const PrefillRoomLayout layout = prefill_room_layout(hidden_size_, top_k_, num_tokens);
    check("cudaDeviceSynchronize", cudaDeviceSynchronize());
    check("cudaFreeHost", cudaFreeHost(host_));
    host_ = nullptr;
    num_tokens_ = 0;
    check("cudaHostAlloc",
          cudaHostAlloc(&host_, layout.num_bytes, cudaHostAllocMapped | cudaHostAllocPortable));
    check("cudaHostGetDevicePointer", cudaHostGetDevicePointer(&device_, host_, 0));
    auto* bytes = static_cast<std::uint8_t*>(host_);
    auto& room = *static_cast<PrefillRoom*>(host_);
    room = {};
    room.answer = answer_;
    room.answerer = answerer_;
    room.rows = bytes + layout.rows;
    room.ids = reinterpret_cast<const std::uint16_t*>(bytes + layout.ids);
    room.outputs = reinterpret_cast<float*>(bytes + layout.outputs);
    num_tokens_ = num_tokens;
}

std::uint16_t* HostRoom::ids() const {
    const PrefillRoomLayout layout = prefill_room_layout(hidden_size_, top_k_, num_tokens_);
    return reinterpret_cast<std::uint16_t*>(static_cast<std::uint8_t*>(device_) + layout.ids);
}

const float* HostRoom::outputs() const {
    const PrefillRoomLayout layout = prefill_room_layout(hidden_size_, top_k_, num_tokens_);
    return reinterpret_cast<const float*>(static_cast<std::uint8_t*>(device_) + layout.outputs);
}

int HostRoom::begin(const void* rows, std::size_t num_bytes, cudaStream_t stream) {
    auto& room = *static_cast<PrefillRoom*>(host_);
    cudaError_t error = cudaEventRecord(asked_, stream);
    if (error == cudaSuccess) error = cudaStreamWaitEvent(stream_, asked_, 0);
    if (error == cudaSuccess) {
        error = cudaMemcpyAsync(const_cast<void*>(room.rows), rows, num_bytes,
                                cudaMemcpyDeviceToHost, stream_);
    }
    if (error == cudaSuccess) error = cudaLaunchHostFunc(stream_, answer_, host_);
    if (error == cudaSuccess) error = cudaEventRecord(answered_, stream_);
    return error;
}

HostAnswer HostRoom::answer() {
    return {[](void* self, const void* rows, std::size_t num_bytes, void* stream) {
                return static_cast<HostRoom*>(self)->begin(rows, num_bytes,
                                                           static_cast<cudaStream_t>(stream));
            },
            [](void* self, void* stream) -> int {
                return cudaStreamWaitEvent(static_cast<cudaStream_t>(stream),
                                           static_cast<HostRoom*>(self)->answered_, 0);
            },
            this};
}

}  // namespace moeprof
