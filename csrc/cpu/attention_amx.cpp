// The kernels for x86-64 CPUs with AMX tiles of bfloat16, and AVX-512 (F, BW, DQ, VL, BF16):
// bfloat16, and float16 as split pairs. Floats as three parts would be as exact as in
// attention_avx512.cpp, and no faster.
#if defined(__x86_64__)

#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif
#include "intrinsics.h"
// GCC's header leaves the masked-out lanes of unmasked forms undefined on purpose, and warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define ATTN_AVX512
#define ATTN_AVX512_BF16
#define ATTN_AMX
#define ATTN_ISA amx
#include "attention.inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
