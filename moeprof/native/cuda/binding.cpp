#include <nanobind/nanobind.h>

#include "binding_dense.hpp"
#include "binding_experts.hpp"

NB_MODULE(_cuda, m) {
    m.doc() = "Operations compiled for CUDA devices; addresses, sizes and streams are integers.";
    moeprof::cuda::bind_dense(m);
    moeprof::cuda::bind_experts(m);
}
