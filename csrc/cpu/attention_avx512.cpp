// The kernels for x86-64 CPUs with AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)

#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#include "intrinsics.h"
// GCC's header leaves the masked-out lanes of unmasked forms undefined on purpose, and warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define ATTN_AVX512
#define ATTN_ISA avx512
#include "attention.inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
