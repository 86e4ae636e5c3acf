// The Python face of packing: factors in numpy's arrays into pages, while other threads go on.
#include "module_adapters.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <tuple>

namespace nb = nanobind;
using namespace nb::literals;
using namespace regraft;

namespace {

using Factor = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;
using Page = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Item = std::tuple<int, int, std::string, Factor, Factor, float>;  // layer, slot, kind, down, up, scale

Matrix matrix_of(const Factor& factor) {
  require(factor.dtype().code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) && factor.dtype().bits <= 32,
          "a factor is of float16 or float32");
  return {factor.data(), factor.dtype().bits == 16, static_cast<int>(factor.shape(0)), static_cast<int>(factor.shape(1)),
          factor.stride(0), factor.stride(1)};
}

using Pages = std::vector<nb::object>;

std::vector<std::uint8_t*> memory_of(const Pages& pages, std::size_t count, std::size_t page_bytes) {
  require(pages.size() == count, "expected " + std::to_string(count) + " pages, found " + std::to_string(pages.size()));
  std::vector<std::uint8_t*> memory;
  for (const nb::object& object : pages) {
    const auto page = nb::cast<Page>(object);
    require(page.size() == page_bytes, "a page is of a wrong size");
    require(reinterpret_cast<std::uintptr_t>(page.data()) % 32 == 0, "a page is not aligned to 32 bytes");
    memory.push_back(page.data());
  }
  return memory;
}

// The arrays stay until the last page is filled.
struct PyPacking {
  std::vector<Item> items;
  std::unique_ptr<Packing> packing;

  PyPacking(int layers, std::vector<Item> given, int bits, std::size_t page_bytes) : items(std::move(given)) {
    require(bits == 8 || bits == 16, "factors are kept in 8 or 16 bits");
    std::vector<FactorPair> pairs;
    for (const auto& [layer, slot, name, down, up, scale] : items) {
      require(layer >= 0 && layer < layers && slot >= 0 && slot < kSlots, "no such slot");
      const BypassKind* kind = bypass_kind(name);
      require(kind != nullptr, "no such kind of bypass: " + name);
      pairs.push_back({layer, slot, matrix_of(down), matrix_of(up), scale, kind});
      const FactorPair& pair = pairs.back();
      require(pair.down.rows == pair.up.columns, "the factors' ranks do not agree");
      require(pair.down.columns > 0 && pair.up.rows > 0, "a factor has no size");
    }
    packing = std::make_unique<Packing>(layers, pairs, bits, page_bytes);
  }

  PyAdapter fill(const Pages& pages) const {
    const auto memory = memory_of(pages, packing->pages(), packing->page_bytes());
    PyAdapter filled{{}, pages, packing->page_bytes()};
    nb::gil_scoped_release release;
    filled.paged = packing->fill(memory);
    return filled;
  }
};

PyAdapter copy_to(const PyAdapter& self, const Pages& pages) {
  const auto from = memory_of(self.pages, self.pages.size(), self.page_bytes);
  const auto to = memory_of(pages, self.pages.size(), self.page_bytes);
  PyAdapter copy{self.paged, pages, self.page_bytes};
  nb::gil_scoped_release release;
  copy.paged.point_to(to);
  for (std::size_t i = 0; i < to.size(); ++i) std::memcpy(to[i], from[i], self.page_bytes);
  return copy;
}

std::size_t first_not_finite_of(const std::vector<nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>>& arrays) {
  std::vector<Numbers> numbers;
  for (const auto& array : arrays) {
    require(array.dtype().code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) && array.dtype().bits <= 32,
            "expected float16 or float32");
    numbers.push_back({array.data(), array.dtype().bits == 16, array.size()});
  }
  nb::gil_scoped_release release;
  return first_not_finite(numbers);
}

}  // namespace

void bind_adapters(nb::module_& m) {
  nb::class_<PyAdapter>(m, "Adapter")
      .def("copy_to", &copy_to, "pages"_a)
      .def_prop_ro("pages", [](const PyAdapter& self) { return self.pages; })
      .def_prop_ro("nbytes", [](const PyAdapter& self) { return self.paged.adapter.nbytes(); });
  nb::class_<PyPacking>(m, "Packing")
      .def(nb::init<int, std::vector<Item>, int, std::size_t>(), "layers"_a, "bypasses"_a, "bits"_a, "page_bytes"_a)
      .def_prop_ro("pages", [](const PyPacking& self) { return self.packing->pages(); })
      .def_prop_ro("page_bytes", [](const PyPacking& self) { return self.packing->page_bytes(); })
      .def("fill", &PyPacking::fill, "pages"_a);
  m.def("bypass_kinds", [] {
    std::vector<std::string> names;
    for (const BypassKind& kind : kBypassKinds) names.emplace_back(kind.name);
    return names;
  });
  m.def("first_not_finite", &first_not_finite_of, "arrays"_a);
}
