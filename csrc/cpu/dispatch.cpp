// Asks the CPU once which instruction sets it has and picks one: ATTN_KERNELS_ISA, or the best.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace attn_kernels {

#define KERNELS(name, supported, for_float, for_double, for_bfloat16, for_float16) \
  namespace name {                                                                 \
  extern const Kernels kernels_float;                                              \
  extern const Kernels kernels_double;                                             \
  extern const Kernels kernels_bfloat16;                                           \
  extern const Kernels kernels_float16;                                            \
  }
#include "kernels.inc"
#undef KERNELS

namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports also checks that the operating system saves the registers.
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
// Linux hands out the tiles' registers on request.
bool has_amx() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
  return has_avx512_bf16() && __builtin_cpu_supports("amx-tile") &&
         __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
#endif
bool has_nothing() { return true; }

#define KERNELS(name, supported, for_float, for_double, for_bfloat16, for_float16) \
  {#name, supported, &for_float, &for_double, for_bfloat16, for_float16},
const InstructionSet kSets[] = {
#include "kernels.inc"
};
#undef KERNELS

struct Selection {
  const InstructionSet* set = nullptr;
  char available[128] = "";
  char error[256] = "";

  Selection() {
    for (const InstructionSet& row : kSets) {
      if (!row.supported()) continue;
      if (available[0]) std::strcat(available, ",");
      std::strcat(available, row.name);
    }
    const char* wanted = std::getenv("ATTN_KERNELS_ISA");
    choose(wanted ? wanted : "");
  }

  void choose(const char* wanted) {
    set = nullptr, error[0] = 0;
    for (const InstructionSet& row : kSets) {
      if (row.supported() && (!*wanted || std::strcmp(wanted, row.name) == 0)) {
        set = &row;
        return;
      }
    }
    std::snprintf(error, sizeof(error),
                  "ATTN_KERNELS_ISA=%.64s is not available on this CPU, which has: %s", wanted,
                  available);
  }
};

Selection& selection() {
  static Selection only;
  return only;
}

}  // namespace

const InstructionSet* instruction_set() { return selection().set; }

}  // namespace attn_kernels

// For Python (core/backends.py), through ctypes.
#define ATTN_EXPORT extern "C" __attribute__((visibility("default")))

ATTN_EXPORT const char* attn_kernels_cpu_isa() {
  const auto* set = attn_kernels::instruction_set();
  return set ? set->name : "";
}
ATTN_EXPORT const void* attn_kernels_cpu_set() { return attn_kernels::instruction_set(); }
ATTN_EXPORT const char* attn_kernels_cpu_isas() { return attn_kernels::selection().available; }
ATTN_EXPORT const char* attn_kernels_cpu_isa_error() { return attn_kernels::selection().error; }
ATTN_EXPORT void attn_kernels_cpu_use_isa(const char* name) {
  attn_kernels::selection().choose(name);
}
