// Which kernels this machine runs.
#include <cstring>

#include "kernels.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace regraft {
namespace {

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

bool has_avxvnni() {  // not all compilers know its name
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

#else

bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avxvnni() { return false; }

#endif

bool has_dotprod() {
#if defined(__aarch64__) && defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__aarch64__) && defined(__APPLE__)
  int found = 0;
  std::size_t size = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found;
#else
  return false;
#endif
}

}  // namespace

std::vector<BuiltKernels> built_kernels() {
  const BuiltKernels known[] = {  // the fastest first
      {avx512_kernels(), has_avx512()},
      {avxvnni_kernels(), has_avxvnni()},
      {avx2_kernels(), has_avx2()},
      {neon_dotprod_kernels(), has_dotprod()},
      {neon_kernels(), true},
      {portable_kernels(), true},
  };
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
