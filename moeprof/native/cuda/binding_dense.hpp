#pragma once

#include <nanobind/nanobind.h>

namespace moeprof::cuda {

/// Adds decode attention, row products and the plain router to the module.
void bind_dense(nanobind::module_& m);

}  // namespace moeprof::cuda
