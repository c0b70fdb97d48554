#pragma once

#include <nanobind/nanobind.h>

namespace moeprof::cuda {

/// Adds the layers of experts, the exchange with the host and the plain read to the module.
void bind_experts(nanobind::module_& m);

}  // namespace moeprof::cuda
