// The parts of the binding, one file each.
#pragma once

#include <nanobind/nanobind.h>

namespace moeprof {

void bind_kernels(nanobind::module_& m);   // packing and single operations
void bind_layer(nanobind::module_& m);     // the workers and a layer of experts
void bind_answerer(nanobind::module_& m);  // the host's side of an exchange with a device
void bind_linear(nanobind::module_& m);    // one matrix
void bind_loading(nanobind::module_& m);   // memory, and weights that come to lie in it
void bind_policies(nanobind::module_& m);  // lookups, policies and their replay
void bind_tokens(nanobind::module_& m);    // statistics over routed tokens

}  // namespace moeprof
