// The part of the binding that decodes experts.
#pragma once

#include <nanobind/nanobind.h>

namespace moeprof {

void bind_experts(nanobind::module_& m);

}  // namespace moeprof
