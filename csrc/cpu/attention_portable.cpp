// The kernels for any CPU: the compiler's vectors of 16 bytes.
#include <cstdint>

#define ATTN_ISA portable
#include "attention.inl.h"
