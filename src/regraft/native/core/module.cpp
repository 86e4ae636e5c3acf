// The Python face of the core: checks every size, index and pointer before a kernel sees it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "linears.hpp"
#include "model.hpp"
#include "module_adapters.hpp"
#include "read_memory.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace regraft;

namespace {

template <class T>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
using Bytes = Array<std::uint8_t>;
using Floats = Array<float>;
using Ints = Array<std::int32_t>;

Codes parse_codes(const std::string& name) {
  const char* names[] = {"u2", "u4", "u8", "f16", "f32"};
  for (int i = 0; i < 5; ++i)
    if (name == names[i]) return static_cast<Codes>(i);
  throw nb::value_error(("codes: expected u2, u4, u8, f16 or f32, found " + name).c_str());
}

// An array, or if `is_cut` one for each piece along a first axis, each of which is contiguous.
struct Stretches {
  const void* data = nullptr;
  std::size_t size = 0;       // elements of one
  std::ptrdiff_t stride = 0;  // bytes from one to the next
};

Stretches stretches(const nb::object& object, nb::dlpack::dtype type, bool is_cut, int count, const char* what) {
  const auto array = nb::cast<nb::ndarray<nb::ro, nb::device::cpu>>(object);
  Stretches found{array.data(), 1, 0};
  require(array.dtype() == type, std::string(what) + " are of a wrong type");
  require(!is_cut || (array.ndim() > 0 && array.shape(0) == static_cast<std::size_t>(count)), std::string(what) + " are not one for each piece");
  for (std::size_t axis = array.ndim(); axis-- > (is_cut ? 1 : 0); found.size *= array.shape(axis))
    require(array.shape(axis) == 1 || array.stride(axis) == static_cast<std::int64_t>(found.size), std::string(what) + " are not contiguous");
  if (is_cut) found.stride = array.stride(0) * static_cast<std::ptrdiff_t>(array.itemsize());
  return found;
}

// A linear map that keeps the arrays it reads alive; or as many as `data` has rows.
struct PyLinear {
  Pieces pieces;
  bool is_cut = false;
  std::vector<nb::object> kept;

  PyLinear(const std::string& codes, int out, int in, int group, const nb::object& data, const nb::object& scale, const nb::object& zero,
           const nb::object& minimum, const nb::object& bias)
      : kept{data, scale, zero, minimum, bias} {
    Linear& linear = pieces.first;
    linear.codes = parse_codes(codes), linear.out = out, linear.in = in, linear.group = group;
    require(out > 0 && in > 0 && group > 0, "a linear map has no size");
    require(in % 16 == 0 || (!(codes == "u2") && in % 8 == 0), "columns must be padded to whole words of codes");
    require(group % kBlock == 0 || group == in, "a group must be a multiple of 32 columns, or the whole row");
    require(linear.is_quantized() == !scale.is_none(), "scales belong to codes, and only to them");
    require(zero.is_none() || minimum.is_none(), "either zeros or minima");
    const auto array = nb::cast<nb::ndarray<nb::ro, nb::device::cpu>>(data);
    is_cut = array.ndim() == 2;
    pieces.count = is_cut ? static_cast<int>(array.shape(0)) : 1;
    require(pieces.count > 0, "a linear map has no pieces");
    const std::size_t rows = static_cast<std::size_t>(linear.tiles()) * kTile;
    take(data, linear.data, pieces.data, linear.tiles() * linear.tile_bytes(), "data");
    require((reinterpret_cast<std::uintptr_t>(linear.data) | static_cast<std::uintptr_t>(pieces.data)) % 32 == 0, "data is not aligned to 32 bytes");
    take(scale, linear.scale, pieces.scale, rows * linear.groups(), "scales");
    take(zero, linear.zero, pieces.zero, rows * linear.groups(), "zeros");
    take(minimum, linear.minimum, pieces.minimum, rows * linear.groups(), "minima");
    take(bias, linear.bias, pieces.bias, rows, "biases");
  }

  const Linear& whole() const {
    require(!is_cut, "expected one linear map, found pieces");
    return pieces.first;
  }

 private:
  template <class T>
  void take(const nb::object& object, const T*& data, std::ptrdiff_t& stride, std::size_t size, const char* what) {
    if (object.is_none()) return;
    constexpr auto code = std::is_integral_v<T> && sizeof(T) == 1 ? nb::dlpack::dtype_code::UInt : nb::dlpack::dtype_code::Float;
    const Stretches found = stretches(object, {static_cast<std::uint8_t>(code), 8 * sizeof(T), 1}, is_cut, pieces.count, what);
    require(found.size == size, std::string(what) + " are of a wrong size");
    data = static_cast<const T*>(found.data), stride = found.stride;
  }
};

int padded(int width) { return (width + kBlock - 1) / kBlock * kBlock; }

using Router = std::optional<std::pair<nb::object, nb::object>>;

// The GIL is held while these run, so that an array's Python owner may be kept.
struct PyModel {
  Model model;
  std::vector<nb::object> kept;

  const float* keep(const std::optional<Floats>& weight, int size, const char* what) {
    if (!weight) return nullptr;
    require(weight->size() == static_cast<std::size_t>(size), std::string(what) + " is of a wrong size");
    kept.push_back(nb::cast(*weight));
    return weight->data();
  }

  // One linear map of this shape, or `count` of them.
  Pieces keep_pieces(nb::handle linear, int count, int out, int in, const char* what) {
    const Pieces& found = nb::cast<PyLinear&>(linear).pieces;
    const auto size = [](int n, int rows, int columns) {
      return (n == 1 ? "" : std::to_string(n) + " of ") + std::to_string(rows) + " x " + std::to_string(columns);
    };
    require(found.count == count && found.first.out == out && found.first.in == in,
            std::string(what) + ": expected " + size(count, out, in) + ", found " + size(found.count, found.first.out, found.first.in));
    kept.push_back(nb::borrow(linear));
    return found;
  }
  Linear keep(nb::handle linear, int out, int in, const char* what) { return keep_pieces(linear, 1, out, in, what).first; }

  Experts cut(const std::vector<nb::object>& slots, int mlp, int size, int active, const Router& router, float threshold,
              const std::optional<Floats>& down_bias) {
    require(size > 0 && size % kBlock == 0 && mlp % size == 0, "experts are as many as there are, of whole blocks of 32 neurons");
    Experts experts;
    experts.count = mlp / size, experts.size = size, experts.active = active, experts.threshold = threshold;
    require(active >= 0 && active <= experts.count && (active > 0) == router.has_value(), "a router takes some of the experts");
    if (router) {
      experts.first = keep(router->first, experts.count, padded(model.hidden), "chooser.first");
      experts.second = keep(router->second, experts.count, padded(experts.count), "chooser.second");
    }
    experts.gate = keep_pieces(slots[kGate], experts.count, size, padded(model.hidden), "gate_proj");
    experts.up = keep_pieces(slots[kUp], experts.count, size, padded(model.hidden), "up_proj");
    experts.down = keep_pieces(slots[kDown], experts.count, model.hidden, size, "down_proj");
    require(!experts.down.first.bias, "the bias of experts' down is one for all");
    experts.down_bias = keep(down_bias, model.hidden, "down_proj.bias");
    return experts;
  }
};

void add_layer(PyModel& self, const std::vector<nb::object>& slots, int heads, int kv_heads, int mlp, int window, int rope,
               const Floats& attention_norm, const Floats& mlp_norm, const std::optional<Floats>& attention_post_norm,
               const std::optional<Floats>& mlp_post_norm, const std::optional<Floats>& query_norm,
               const std::optional<Floats>& key_norm, int expert_size, int active_experts, const Router& router,
               float threshold, const std::optional<Floats>& down_bias) {
  Model& model = self.model;
  require(slots.size() == kSlots, "a layer has seven linear maps");
  require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "heads must be a multiple of KV heads");
  require(mlp > 0 && mlp % 8 == 0, "the MLP's width must be a multiple of 8");
  require(rope >= 0 && rope < static_cast<int>(model.ropes.size()) && window >= 0, "no such RoPE table, or a negative window");
  Layer layer;
  const int q = heads * model.head_dim, kv = kv_heads * model.head_dim, hidden = model.hidden;
  if (expert_size) layer.experts = self.cut(slots, mlp, expert_size, active_experts, router, threshold, down_bias);
  const int out[kSlots] = {q, kv, kv, hidden, mlp, mlp, hidden}, in[kSlots] = {hidden, hidden, hidden, q, hidden, hidden, mlp};
  const char* names[kSlots] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  for (int slot = 0; slot < (expert_size ? kGate : kSlots); ++slot)
    layer.slots[slot] = self.keep(slots[slot], out[slot], padded(in[slot]), names[slot]);
  layer.mlp = mlp, layer.heads = heads, layer.kv_heads = kv_heads, layer.window = window, layer.rope = rope;
  layer.attention_norm = self.keep(attention_norm, hidden, "attention_norm");
  layer.mlp_norm = self.keep(mlp_norm, hidden, "mlp_norm");
  layer.attention_post_norm = self.keep(attention_post_norm, hidden, "attention_post_norm");
  layer.mlp_post_norm = self.keep(mlp_post_norm, hidden, "mlp_post_norm");
  layer.query_norm = self.keep(query_norm, model.head_dim, "query_norm");
  layer.key_norm = self.keep(key_norm, model.head_dim, "key_norm");
  model.layers.push_back(layer);
}

void check_offsets(const Ints& offsets, int count, std::size_t end, const char* what) {
  require(offsets.size() == static_cast<std::size_t>(count) + 1 && offsets.data()[0] == 0 &&
              static_cast<std::size_t>(offsets.data()[count]) == end, std::string(what) + " do not span their items");
  for (int i = 0; i < count; ++i) require(offsets.data()[i] <= offsets.data()[i + 1], std::string(what) + " fall");
}

struct Core {
  const Kernels* kernels;
  Team team;

  Core(int threads, const std::string& name) : kernels(choose_kernels(name.c_str())), team(threads) {
    require(kernels != nullptr, "no such kernels on this machine: " + name);
    require(threads >= 1, "at least one thread");
  }
};

std::vector<std::string> kernel_names(bool all) {
  std::vector<std::string> names;
  for (const BuiltKernels& built : built_kernels())
    if (all || built.runs_here) names.emplace_back(built.kernels->name);
  return names;
}

void check_adapter(const Model& model, const Adapter& adapter) {
  require(adapter.first.size() == model.layers.size() * kSlots + 1, "an adapter is of another number of layers");
  for (const Bypass& b : adapter.bypasses) {
    const Layer& layer = model.layers[b.layer];  // its slots may stand in experts
    const int out = b.slot == kDown ? model.hidden : b.slot > kOutput ? layer.mlp : layer.slots[b.slot].out;
    const int in = b.slot == kDown ? padded(layer.mlp) : b.slot > kOutput ? padded(model.hidden) : layer.slots[b.slot].in;
    require(b.up.out == out && b.down.in <= in, "an adapter's factor is of a wrong shape");
  }
}

void check_batch(const Model& model, const Batch& batch, std::size_t num_pages) {
  for (int i = 0; i < batch.rows; ++i)
    require(batch.tokens[i] >= 0 && batch.tokens[i] < model.vocabulary, "a token is outside the vocabulary");
  for (int s = 0; s < batch.sequences; ++s) {
    const int rows = batch.first_row[s + 1] - batch.first_row[s], pages = batch.first_page[s + 1] - batch.first_page[s];
    require(rows > 0 && batch.first_position[s] >= 0, "a sequence has no rows, or begins before 0");
    require(static_cast<std::int64_t>(pages) * kPageTokens >= static_cast<std::int64_t>(batch.first_position[s]) + rows,
            "a sequence has too few pages");
  }
  for (int i = 0; i < batch.first_page[batch.sequences]; ++i)
    require(batch.pages[i] >= 0 && static_cast<std::size_t>(batch.pages[i]) < num_pages, "a page is outside the arena");
  for (int i = 0; i < batch.first_mix[batch.sequences]; ++i)
    require(batch.mix_adapter[i] >= 0 && batch.mix_adapter[i] < static_cast<int>(batch.adapters.size()), "no such adapter");
  for (int s = 0; s < batch.sequences; ++s)
    for (int i = batch.first_mix[s]; i < batch.first_mix[s + 1]; ++i)
      require(std::find(batch.mix_adapter + batch.first_mix[s], batch.mix_adapter + i, batch.mix_adapter[i]) == batch.mix_adapter + i,
              "an adapter is twice in a mix");
  for (int i = 0; i < batch.wanted_count; ++i) {
    require(batch.wanted[i] >= 0 && batch.wanted[i] < batch.rows, "a row is wanted that is not in the batch");
    require(i == 0 || batch.wanted[i - 1] < batch.wanted[i], "rows that are wanted must rise");
  }
}

using Table = nb::ndarray<nb::numpy, float>;

// Rows of floats for Python: the first `columns` of each `stride`.
Table to_python(std::unique_ptr<float[]> rows, int count, int columns, std::size_t stride) {
  float* data = rows.release();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  const std::size_t shape[2] = {static_cast<std::size_t>(count), static_cast<std::size_t>(columns)};
  const std::int64_t strides[2] = {static_cast<std::int64_t>(stride), 1};
  return Table(data, 2, shape, owner, strides);
}

Table step(Core& core, PyModel& py_model, nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> arena,
             const Ints& tokens, const Ints& first_row, const Ints& first_position, const Ints& first_page, const Ints& pages,
             const Ints& wanted, const std::vector<nb::object>& adapters, const Ints& first_mix, const Ints& mix_adapter,
             const Floats& mix_weight, bool float_activations) {
  const Model& model = py_model.model;
  Batch batch;
  batch.rows = static_cast<int>(tokens.size()), batch.sequences = static_cast<int>(first_position.size());
  require(batch.rows > 0 && !model.layers.empty() && model.final_norm, "nothing to do");
  check_offsets(first_row, batch.sequences, tokens.size(), "first_row");
  check_offsets(first_page, batch.sequences, pages.size(), "first_page");
  check_offsets(first_mix, batch.sequences, mix_adapter.size(), "first_mix");
  require(mix_weight.size() == mix_adapter.size(), "each adapter of a mix has one weight");
  require(arena.shape(1) >= model.kv_page_bytes(), "a page is too small for this model's keys and values");
  batch.tokens = tokens.data(), batch.first_row = first_row.data(), batch.first_position = first_position.data();
  batch.first_page = first_page.data(), batch.pages = pages.data(), batch.first_mix = first_mix.data();
  batch.mix_adapter = mix_adapter.data(), batch.mix_weight = mix_weight.data();
  batch.wanted = wanted.data(), batch.wanted_count = static_cast<int>(wanted.size());
  batch.float_activations = float_activations, batch.arena = arena.data(), batch.page_bytes = arena.shape(1);
  for (const nb::object& adapter : adapters) {
    batch.adapters.push_back(&nb::cast<PyAdapter&>(adapter).paged.adapter);
    check_adapter(model, *batch.adapters.back());
  }
  check_batch(model, batch, arena.shape(0));
  const std::size_t width = model.hidden;
  std::unique_ptr<float[]> states(new float[width * batch.wanted_count + 1]);  // not zeroed: the step writes all of them
  {
    nb::gil_scoped_release release;
    run_step(model, batch, *core.kernels, core.team, states.get());
  }
  return to_python(std::move(states), batch.wanted_count, model.hidden, width);
}

// y = W x, as a step computes it, for rows of `width` columns.
Table multiply(Core& core, const Linear& w, const float* x, int count, int width, bool float_activations) {
  const std::size_t columns = static_cast<std::size_t>(kTile) * w.tiles();
  std::unique_ptr<float[]> y(new float[columns * count + 1]);  // not zeroed: the kernel writes all of them
  {
    nb::gil_scoped_release release;
    Quantized quantized(float_activations ? 0 : static_cast<std::size_t>(count) * width);
    if (!float_activations) quantized.put(*core.kernels, x, 0, count * width);
    const Rows rows = float_activations ? Rows{count, x, width} : quantized.rows(x, 0, count, width);
    const Out out{y.get(), static_cast<int>(columns)};
    const int chunk = std::max(1, w.tiles() / (kTasksPerThread * core.team.size()));
    std::vector<std::vector<std::uint8_t>> scratch(core.team.size(), std::vector<std::uint8_t>(kMostTiles * kTile * static_cast<std::size_t>(width) + 64));
    core.team.run((w.tiles() + chunk - 1) / chunk, [&](int task, int thread) {
      auto address = reinterpret_cast<std::uintptr_t>(scratch[thread].data());
      core.kernels->matmul(w, rows, out, task * chunk, std::min(w.tiles(), (task + 1) * chunk),
                           reinterpret_cast<std::uint8_t*>((address + 63) / 64 * 64));
    });
  }
  return to_python(std::move(y), count, w.out, columns);
}

using States = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// For tests and measurements.
Table matmul(Core& core, const PyLinear& py, const States& x, bool float_activations) {
  const Linear& w = py.whole();
  const int width = static_cast<int>(x.shape(1));
  require(width == (float_activations ? w.in : padded(w.in)), "x is of a wrong width");
  require(float_activations || w.in % kBlock == 0 || w.codes >= Codes::u8, "only bytes may end within a block of 32 columns");
  return multiply(core, w, x.data(), static_cast<int>(x.shape(0)), width, float_activations);
}

// Logits of the hidden states that a step has given.
Table head(Core& core, const PyModel& py_model, const States& states, bool float_activations) {
  const Model& model = py_model.model;
  require(model.final_norm && states.shape(1) == static_cast<std::size_t>(model.hidden), "hidden states are as wide as the model");
  const std::size_t count = states.shape(0), width = padded(model.hidden);
  std::vector<float> x(count * width);
  for (std::size_t row = 0; row < count; ++row) std::copy_n(states.data() + row * model.hidden, model.hidden, x.data() + row * width);
  return multiply(core, model.head, x.data(), static_cast<int>(count), static_cast<int>(width), float_activations);
}
}  // namespace

NB_MODULE(_core, m) {
  nb::set_leak_warnings(false);  // an interpreter that ends while an engine is open frees nothing in order

  m.attr("PAGE_TOKENS") = kPageTokens;
  m.attr("TILE") = kTile;
  m.attr("BLOCK") = kBlock;
  m.def("kernels", [] { return kernel_names(false); });
  m.def("built_kernels", [] { return kernel_names(true); });

  nb::class_<PyLinear>(m, "Linear")
      .def(nb::init<const std::string&, int, int, int, const nb::object&, const nb::object&, const nb::object&, const nb::object&, const nb::object&>(),
           "codes"_a, "out"_a, "in_"_a, "group"_a, "data"_a, "scale"_a = nb::none(), "zero"_a = nb::none(), "minimum"_a = nb::none(),
           "bias"_a = nb::none())
      .def_prop_ro("nbytes", [](const PyLinear& self) { return self.pieces.nbytes(); });

  bind_adapters(m);

  nb::class_<PyModel>(m, "Model")
      .def("__init__",
           [](PyModel* self, int hidden, int head_dim, int vocabulary, float epsilon, float embedding_scale, float attention_scale,
              const std::string& activation, const std::vector<std::pair<std::vector<float>, float>>& ropes, int kv_bits) {
             new (self) PyModel();
             Model& model = self->model;
             require(hidden > 0 && hidden % 8 == 0 && head_dim > 0 && head_dim % 8 == 0 && vocabulary > 0,
                     "hidden and head sizes must be multiples of 8");
             require(activation == "silu" || activation == "gelu_tanh", "activation: expected silu or gelu_tanh");
             require(kv_bits == 16 || kv_bits == 8, "keys and values are kept in 16 or 8 bits");
             model.kv_bits = kv_bits, model.hidden = hidden, model.head_dim = head_dim, model.vocabulary = vocabulary, model.epsilon = epsilon;
             model.embedding_scale = embedding_scale, model.attention_scale = attention_scale;
             model.activation = activation == "silu" ? Activation::silu : Activation::gelu_tanh;
             for (const auto& [frequencies, factor] : ropes) {
               require(static_cast<int>(frequencies.size()) == head_dim / 2, "a RoPE table has half as many entries as a head");
               model.ropes.push_back({frequencies, factor});
             }
           },
           "hidden"_a, "head_dim"_a, "vocabulary"_a, "epsilon"_a, "embedding_scale"_a, "attention_scale"_a, "activation"_a, "ropes"_a,
           "kv_bits"_a = 16)
      .def("add_layer", &add_layer, nb::kw_only(), "slots"_a, "heads"_a, "kv_heads"_a, "mlp"_a, "window"_a, "rope"_a, "attention_norm"_a,
           "mlp_norm"_a, "attention_post_norm"_a = nb::none(), "mlp_post_norm"_a = nb::none(), "query_norm"_a = nb::none(),
           "key_norm"_a = nb::none(), "expert_size"_a = 0, "active_experts"_a = 0, "router"_a = nb::none(), "threshold"_a = 0.0f,
           "down_bias"_a = nb::none())
      .def("set_ends",
           [](PyModel& self, nb::object embedding, nb::object head, const Floats& norm) {
             Model& model = self.model;
             model.embedding = self.keep(embedding, model.vocabulary, padded(model.hidden), "embed_tokens");
             model.head = self.keep(head, model.vocabulary, padded(model.hidden), "lm_head");
             model.final_norm = self.keep(norm, model.hidden, "norm");
           },
           "embedding"_a, "head"_a, "norm"_a)
      .def_prop_ro("vocabulary", [](const PyModel& self) { return self.model.vocabulary; })
      .def_prop_ro("kv_page_bytes", [](const PyModel& self) { return self.model.kv_page_bytes(); })
      .def_prop_ro("step_bytes", [](const PyModel& self) { return self.model.step_bytes(); })
      .def_prop_ro("expert_bytes", [](const PyModel& self) {
        std::vector<std::size_t> bytes;
        for (const Layer& layer : self.model.layers) bytes.push_back(self.model.expert_bytes(layer));
        return bytes;
      });

  nb::class_<Core>(m, "Core")
      .def(nb::init<int, const std::string&>(), "threads"_a, "kernels"_a = "")
      .def_prop_ro("kernels", [](const Core& self) { return self.kernels->name; })
      .def_prop_ro("threads", [](const Core& self) { return self.team.size(); })
      .def("read", [](Core& core, const Bytes& memory) {
        nb::gil_scoped_release release;
        return read_memory(core.team, memory.data(), memory.size());
      }, "memory"_a)
      .def("matmul", &matmul, "linear"_a, "x"_a, "float_activations"_a = false)
      .def("head", &head, "model"_a, "states"_a, "float_activations"_a = false)
      .def("step", &step, nb::kw_only(), "model"_a, "arena"_a, "tokens"_a, "first_row"_a, "first_position"_a, "first_page"_a, "pages"_a,
           "wanted"_a, "adapters"_a, "first_mix"_a, "mix_adapter"_a, "mix_weight"_a, "float_activations"_a = false);
}
