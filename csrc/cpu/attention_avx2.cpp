// The kernels for x86-64 CPUs with AVX2, FMA and F16C.
#if defined(__x86_64__)

#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "intrinsics.h"

#define ATTN_AVX2
#define ATTN_ISA avx2
#include "attention.inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
