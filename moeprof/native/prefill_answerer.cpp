#include "prefill_answerer.hpp"

#include "exchange_faults.hpp"

namespace moeprof {

void PrefillAnswerer::set_layer(std::uint32_t index, ExpertLayer* layer) {
    if (index >= layers_.size()) layers_.resize(index + 1, nullptr);
    layers_[index] = layer;
}

void PrefillAnswerer::answer(void* room) {
    const auto& asked = *static_cast<const PrefillRoom*>(room);
    if (asked.num_slots == 0) return;
    auto& self = *static_cast<PrefillAnswerer*>(asked.answerer);
    const std::uint32_t fault = self.compute(asked);
    if (fault != 0) __atomic_fetch_or(&self.header_->host_fault, fault, __ATOMIC_RELAXED);
}

std::uint32_t PrefillAnswerer::compute(const PrefillRoom& room) {
    ExpertLayer* layer = room.layer < layers_.size() ? layers_[room.layer] : nullptr;
    if (layer == nullptr) return kFaultUnknownLayer;
    return fault_bit(
        layer->prefill(workers_, {room.rows, room.hidden_type, room.ids, nullptr, room.num_tokens},
                       {room.outputs, nullptr, FloatType::kFloat32}));
}

}  // namespace moeprof
