// A layer as Python holds it.
#pragma once

#include <vector>

#include "binding_shared.hpp"
#include "experts.hpp"

namespace moeprof {

// A layer and the Python objects whose memory it reads.
struct BoundLayer {
    ExpertLayer layer;
    std::vector<Input<std::uint8_t, 1>> packed;
};

}  // namespace moeprof
