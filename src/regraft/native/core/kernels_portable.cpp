// The kernels for whatever the compiler targets.
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels.hpp"

namespace regraft::portable {
namespace {

#include "kernels.inl"

constexpr Kernels kernels = make_kernels("portable");

}  // namespace
}  // namespace regraft::portable

const regraft::Kernels* regraft::portable_kernels() { return &regraft::portable::kernels; }
