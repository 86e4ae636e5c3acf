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

std::vector<BuiltKernels> built_kernels() {
  const BuiltKernels known[] = {{avx2_kernels(), runs_avx2()}, {portable_kernels(), true}};  // the fastest first
  std::vector<BuiltKernels> built;
  for (const BuiltKernels& one : known)
    if (one.kernels) built.push_back(one);
  return built;
}

const Kernels* choose_kernels(const char* name) {
  for (const BuiltKernels& built : built_kernels())
    if (built.runs_here && (!*name || std::strcmp(name, built.kernels->name) == 0)) return built.kernels;
  return nullptr;
}

}  // namespace regraft
