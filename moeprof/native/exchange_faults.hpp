// What the host's faults are called in an exchange.
#pragma once

#include "exchange.hpp"
#include "layer_shape.hpp"

namespace moeprof {

constexpr std::uint32_t fault_bit(DecodeFault fault) {
    switch (fault) {
        case DecodeFault::kNone:
            return 0;
        case DecodeFault::kUnknownExpert:
            return kFaultUnknownExpert;
        case DecodeFault::kRepeatedExpert:
            return kFaultRepeatedExpert;
        case DecodeFault::kNotFinite:
            return kFaultNotFinite;
        default:
            return kFaultBusy;
    }
}

}  // namespace moeprof
