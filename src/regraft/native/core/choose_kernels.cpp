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

std::vector<const Kernels*> runnable_kernels() {
  const Kernels* const known[] = {
      has_avx512() ? avx512_kernels() : nullptr, has_avxvnni() ? avxvnni_kernels() : nullptr,
      has_avx2() ? avx2_kernels() : nullptr,     has_dotprod() ? neon_dotprod_kernels() : nullptr,
      neon_kernels(),                            portable_kernels(),
  };
  std::vector<const Kernels*> runnable;
  for (const Kernels* kernels : known)
    if (kernels) runnable.push_back(kernels);
  return runnable;
}

const Kernels* choose_kernels(const char* name) {
  for (const Kernels* kernels : runnable_kernels())
    if (!*name || std::strcmp(name, kernels->name) == 0) return kernels;
  return nullptr;
}

}  // namespace regraft
