// The host's side of a prefill on a device: computes what the question in a room asks for.
#pragma once

#include <cstdint>
#include <vector>

#include "exchange.hpp"
#include "experts.hpp"
#include "prefill_room.hpp"
#include "workers.hpp"

namespace moeprof {

// Called by the device's stream, on whatever thread that is; faults go to the exchange's header.
class PrefillAnswerer {
  public:
    // The header and the workers must outlive the answerer.
    PrefillAnswerer(ExchangeHeader* header, Workers& workers)
        : header_(header), workers_(workers) {}
    PrefillAnswerer(const PrefillAnswerer&) = delete;
    PrefillAnswerer& operator=(const PrefillAnswerer&) = delete;

    // The layer asked for as `index`; it must outlive the answerer. Not while there is a question.
    void set_layer(std::uint32_t index, ExpertLayer* layer);

    // PrefillRoom::answer, for rooms whose answerer is one of these.
    static void answer(void* room);

  private:
    std::uint32_t compute(const PrefillRoom& room);

    ExchangeHeader* const header_;
    Workers& workers_;
    std::vector<ExpertLayer*> layers_;
};

}  // namespace moeprof
