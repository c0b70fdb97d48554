#include "answerer.hpp"

#include <chrono>

#include "exchange_faults.hpp"
#include "threads.hpp"

namespace moeprof {
namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned kLooksPerClock = 256;
constexpr auto kAttention = std::chrono::milliseconds(100);
constexpr auto kNap = std::chrono::microseconds(50);

// Numbers in memory that a device writes, too.
std::uint64_t load(const std::uint64_t& number) {
    return __atomic_load_n(&number, __ATOMIC_ACQUIRE);
}

void store(std::uint64_t& number, std::uint64_t value) {
    __atomic_store_n(&number, value, __ATOMIC_RELEASE);
}

}  // namespace

Answerer::Answerer(void* exchange, std::size_t hidden_size, std::size_t top_k, Workers& workers,
                   int core)
    : header_(static_cast<ExchangeHeader*>(exchange)),
      parts_(static_cast<std::uint8_t*>(exchange)),
      layout_(exchange_layout(hidden_size, top_k)),
      workers_(workers),
      core_(core) {}

void Answerer::set_layer(std::uint32_t index, ExpertLayer* layer) {
    if (index >= layers_.size()) layers_.resize(index + 1, nullptr);
    layers_[index] = layer;
}

void Answerer::start() {
    if (is_running()) return;
    is_stopping_.store(false);
    store(header_->answered, load(header_->posted));
    thread_ = std::thread(&Answerer::answer_until_stopped, this);
}

void Answerer::stop() {
    if (!is_running()) return;
    is_stopping_.store(true);
    thread_.join();
    store(header_->answered, kAborted);
}

void Answerer::answer_until_stopped() {
    if (core_ >= 0) pin(core_);
    std::uint64_t answered = load(header_->answered);
    Clock::time_point last = Clock::now();
    for (unsigned looks = 1; !is_stopping_.load(std::memory_order_relaxed); ++looks) {
        const std::uint64_t posted = load(header_->posted);
        if (posted != answered) {
            answer();
            answered = posted;
            store(header_->answered, answered);
            last = Clock::now();
            continue;
        }
        pause();
        if (looks % kLooksPerClock == 0 && Clock::now() - last > kAttention) {
            std::this_thread::sleep_for(kNap);
        }
    }
}

void Answerer::answer() {
    const std::uint32_t index = header_->layer;
    ExpertLayer* layer = index < layers_.size() ? layers_[index] : nullptr;
    std::uint32_t fault = kFaultUnknownLayer;
    if (layer != nullptr) {
        fault = fault_bit(
            layer->decode(workers_, reinterpret_cast<const float*>(parts_ + layout_.rows),
                          reinterpret_cast<const std::uint16_t*>(parts_ + layout_.ids),
                          reinterpret_cast<const float*>(parts_ + layout_.weights),
                          header_->num_tokens, reinterpret_cast<float*>(parts_ + layout_.outputs),
                          reinterpret_cast<float*>(parts_ + layout_.sums)));
    }
    if (fault != 0) __atomic_fetch_or(&header_->host_fault, fault, __ATOMIC_RELAXED);
}

}  // namespace moeprof
