// All kernels for one instruction set, INTERLACE_ISA; CMakeLists.txt compiles this file once for each.
#ifdef _OPENMP
#include <omp.h>
#endif

#include "arguments.h"
#include "gemm.h"
#include "parallel.h"
#include "simd.h"
#include "quantised.h"

#include "attention.cpp"
#include "cross_entropy.cpp"
#include "decay_gate.cpp"
#include "gated_delta_chunk.h"
#include "gated_delta.cpp"
#include "kimi_delta.cpp"
#include "state_space.cpp"
#include "linear.cpp"
#include "experts.cpp"
#include "mixer_step.cpp"
#include "rms_norm.cpp"
#include "rope.cpp"
#include "selective_scan.cpp"
#include "short_convolution.cpp"
#include "swiglu.cpp"

#define NAME_OF(isa) #isa
#define NAME(isa) NAME_OF(isa)
#define TABLE_OF(isa) kernels_##isa
#define TABLE(isa) TABLE_OF(isa)

extern const Kernels TABLE(INTERLACE_ISA);
const Kernels TABLE(INTERLACE_ISA) = {
    NAME(INTERLACE_ISA),
    INTERLACE_ISA::gated_delta_forward,
    INTERLACE_ISA::gated_delta_backward,
    INTERLACE_ISA::gated_delta_step,
    INTERLACE_ISA::state_space_forward,
    INTERLACE_ISA::state_space_step,
    INTERLACE_ISA::kimi_delta_forward,
    INTERLACE_ISA::kimi_delta_step,
    INTERLACE_ISA::selective_scan,
    INTERLACE_ISA::short_convolution_forward,
    INTERLACE_ISA::short_convolution_backward,
    INTERLACE_ISA::rms_norm_forward,
    INTERLACE_ISA::rms_norm_backward,
    INTERLACE_ISA::swiglu_forward,
    INTERLACE_ISA::swiglu_backward,
    INTERLACE_ISA::rope,
    INTERLACE_ISA::decay_gate,
    INTERLACE_ISA::cross_entropy,
    INTERLACE_ISA::linear,
    INTERLACE_ISA::experts,
    INTERLACE_ISA::mixer_step,
    INTERLACE_ISA::attention_step,
    INTERLACE_ISA::attention_forward,
    INTERLACE_ISA::attention_backward,
};
