// Included before a file for VNNI, this makes it compile for AVX2 alone: SIMDe computes VPDPBUSD. The compiler is then told
// that it knows what SIMDe has already found missing.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#define __AVX512VL__ 1
#define __AVX512VNNI__ 1
#define __AVXVNNI__ 1
