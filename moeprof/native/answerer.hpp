// The host's side of an exchange: one thread that waits for questions and answers them.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "aligned.hpp"
#include "exchange.hpp"
#include "experts.hpp"
#include "workers.hpp"

namespace moeprof {

// Between `start` and `stop` a thread looks at `posted` without a pause; after some time without a
// question it sleeps a little between two looks. It is the first of the workers while a layer is
// computed. Nothing is allocated for a question.
class Answerer {
  public:
    // `exchange` points to an ExchangeHeader and its parts, laid out for these sizes; it and the
    // workers must outlive the answerer. The thread is pinned to `core` unless that is negative.
    Answerer(void* exchange, std::size_t hidden_size, std::size_t top_k, Workers& workers,
             int core);
    ~Answerer() { stop(); }
    Answerer(const Answerer&) = delete;
    Answerer& operator=(const Answerer&) = delete;

    // The layer asked for as `index`; it must outlive the answerer and fit the exchange's sizes.
    // Only while stopped.
    void set_layer(std::uint32_t index, ExpertLayer* layer);

    bool is_running() const { return thread_.joinable(); }
    void start();

    // Nanoseconds that timed questions to a layer took to answer since the last call.
    std::uint64_t take_nanoseconds(std::uint32_t index);

    // Returns when the thread has ended; questions after that get kAborted.
    void stop();

  private:
    void answer_until_stopped();
    void answer(const Question& question);
    bool take(const Question& question, const LayerShape& shape);
    bool take_words(std::size_t part, std::size_t num_words, std::uint32_t number,
                    std::uint32_t* data);
    std::uint32_t compute(const Question& question);
    void give_nothing(const Question& question);

    std::uint64_t* words(std::size_t part) const {
        return reinterpret_cast<std::uint64_t*>(parts_ + part);
    }

    ExchangeHeader* const header_;
    std::uint8_t* const parts_;
    const ExchangeLayout layout_;
    const std::size_t hidden_size_;
    const std::size_t top_k_;
    Workers& workers_;
    const int core_;
    std::vector<ExpertLayer*> layers_;
    std::vector<std::uint64_t> nanoseconds_;  // [layers]
    // Of the question at hand.
    std::vector<std::uint32_t> ids_words_;
    std::vector<std::uint16_t> ids_;
    std::vector<float> weights_;
    const AlignedBytes rows_;
    std::atomic<bool> is_stopping_{false};
    std::thread thread_;
};

}  // namespace moeprof
