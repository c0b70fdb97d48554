#include "answerer.hpp"

#include <algorithm>
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
      hidden_size_(hidden_size),
      top_k_(top_k),
      workers_(workers),
      core_(core),
      ids_words_(kExchangeTokens * top_k),
      ids_(ids_words_.size()),
      weights_(ids_words_.size()),
      rows_(aligned_bytes(kExchangeTokens * exchanged_row_bytes(hidden_size))) {}

void Answerer::set_layer(std::uint32_t index, ExpertLayer* layer) {
    if (index >= layers_.size()) {
        layers_.resize(index + 1, nullptr);
        nanoseconds_.resize(index + 1, 0);
    }
    layers_[index] = layer;
}

std::uint64_t Answerer::take_nanoseconds(std::uint32_t index) {
    if (index >= nanoseconds_.size()) return 0;
    return __atomic_exchange_n(&nanoseconds_[index], std::uint64_t{0}, __ATOMIC_RELAXED);
}

void Answerer::start() {
    if (is_running()) return;
    is_stopping_.store(false);
    store(header_->answered, number_of(load(header_->posted)));
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
        const Question question = Question::of(load(header_->posted));
        if (question.number != answered) {
            answer(question);
            answered = question.number;
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

void Answerer::answer(const Question& question) {
    const Clock::time_point begun = question.is_timed ? Clock::now() : Clock::time_point();
    if (const std::uint32_t fault = compute(question)) {
        __atomic_fetch_or(&header_->host_fault, fault, __ATOMIC_RELAXED);
        give_nothing(question);
    }
    if (question.is_timed && question.layer < nanoseconds_.size()) {
        const std::chrono::nanoseconds spent = Clock::now() - begun;
        __atomic_fetch_add(&nanoseconds_[question.layer], static_cast<std::uint64_t>(spent.count()),
                           __ATOMIC_RELAXED);
    }
}

std::uint32_t Answerer::compute(const Question& question) {
    ExpertLayer* layer = question.layer < layers_.size() ? layers_[question.layer] : nullptr;
    if (layer == nullptr || question.num_tokens > kExchangeTokens) return kFaultUnknownLayer;
    if (!take(question, layer->shape())) return kFaultNoAnswer;
    TaggedResults results;
    results.number = question.number;
    results.outputs = words(layout_.outputs);
    if (question.wants_sums) results.sums = words(layout_.sums);
    results.faults = &header_->host_fault;
    const Asked asked{rows_.get(), ids_.data(), weights_.data(), question.num_tokens};
    return fault_bit(layer->answer(workers_, asked, results));
}

// The words of a question, as they come; false if the thread is to stop.
bool Answerer::take(const Question& question, const LayerShape& shape) {
    const std::size_t num_slots = question.num_tokens * shape.top_k;
    const std::size_t row_bytes = ready_bytes(shape.format, shape.hidden_size);
    auto* weights = reinterpret_cast<std::uint32_t*>(weights_.data());
    auto* rows = reinterpret_cast<std::uint32_t*>(rows_.get());
    if (!take_words(layout_.ids, num_slots, question.number, ids_words_.data()) ||
        !take_words(layout_.weights, num_slots, question.number, weights) ||
        !take_words(layout_.rows, question.num_tokens * row_bytes / sizeof *rows, question.number,
                    rows)) {
        return false;
    }
    std::copy_n(ids_words_.begin(), num_slots, ids_.begin());
    return true;
}

bool Answerer::take_words(std::size_t part, std::size_t num_words, std::uint32_t number,
                          std::uint32_t* data) {
    const std::uint64_t* from = words(part);
    for (std::size_t i = 0; i < num_words; ++i) {
        std::uint64_t word = load(from[i]);
        while (number_of(word) != number) {
            if (is_stopping_.load(std::memory_order_relaxed)) return false;
            pause();
            word = load(from[i]);
        }
        data[i] = static_cast<std::uint32_t>(word);
    }
    return true;
}

// Zeros wherever a device may wait for words of this question.
void Answerer::give_nothing(const Question& question) {
    const std::size_t num_tokens = std::min<std::size_t>(question.num_tokens, kExchangeTokens);
    const std::size_t num_sums = num_tokens * hidden_size_;
    for (std::size_t i = 0; i < num_sums * top_k_; ++i) {
        store(words(layout_.outputs)[i], tagged(0, question.number));
    }
    for (std::size_t i = 0; i < num_sums; ++i) {
        store(words(layout_.sums)[i], tagged(0, question.number));
    }
}

}  // namespace moeprof
