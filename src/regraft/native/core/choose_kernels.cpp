#include <cstring>

#include "kernels.hpp"

namespace regraft {
namespace {

bool runs_avx2() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

}  // namespace

const Kernels* choose_kernels(const char* name) {
  const Kernels* avx2 = runs_avx2() ? avx2_kernels() : nullptr;
  const Kernels* const known[] = {avx2, portable_kernels()};  // the fastest first
  for (const Kernels* kernels : known)
    if (kernels && (!*name || std::strcmp(name, kernels->name) == 0)) return kernels;
  return nullptr;
}

}  // namespace regraft
