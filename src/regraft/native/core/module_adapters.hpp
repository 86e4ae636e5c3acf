// Adapters as Python sees them.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <vector>

#include "packing.hpp"

inline void require(bool condition, const std::string& message) {
  if (!condition) throw nanobind::value_error(message.c_str());
}

// An adapter that keeps the pages alive that it lies in.
struct PyAdapter {
  regraft::PagedAdapter paged;
  std::vector<nanobind::object> pages;
  std::size_t page_bytes = 0;
};

void bind_adapters(nanobind::module_& m);
