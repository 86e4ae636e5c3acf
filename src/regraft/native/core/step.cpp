// One step of a decoder over a ragged batch: prefill chunks and single tokens together, each sequence with its own mix of
// adapters (S-LoRA, arXiv 2311.03285, section 5: the base's product for all rows at once, bypasses by adapter beside it).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "experts.hpp"
#include "model.hpp"

namespace regraft {
namespace {

constexpr int kQueryRows = 8;    // rows of a sequence that one attention task takes
constexpr int kRunRows = 4;      // rows that are prepared together: as many as the kernels take in one pass
constexpr int kTasksPerThread = 6;

constexpr int kLine = 64;

// Ask for memory that is read soon: factors are short pieces here and there, which the hardware does not foresee.
void prefetch(const void* begin, std::size_t bytes) {
#if defined(__GNUC__) || defined(__clang__)
  for (std::size_t at = 0; at < bytes; at += kLine) __builtin_prefetch(static_cast<const std::uint8_t*>(begin) + at);
#endif
}

void prefetch_tiles(const Linear& w, int first, int last) {
  prefetch(w.data + first * w.tile_bytes(), (last - first) * w.tile_bytes());
  if (w.scale) prefetch(w.scale + first * w.groups() * kTile, static_cast<std::size_t>(last - first) * w.groups() * kTile * sizeof(Half));
}

int padded(int width, int to) { return (width + to - 1) / to * to; }

// Activations in 8 bits, by blocks of kBlock.
struct Quantized {
  std::vector<std::int8_t> codes;
  std::vector<float> scales, sums;
  std::vector<std::int32_t> centres;

  explicit Quantized(std::size_t count = 0)
      : codes(count), scales(count / kBlock), sums(count / kBlock), centres(count / kBlock) {}

  void put(const Kernels& kernels, const float* x, std::size_t begin, int count) {
    const std::size_t block = begin / kBlock;
    kernels.quantize(x, count, codes.data() + begin, scales.data() + block, sums.data() + block, centres.data() + block);
  }
  // `count` rows of `x`, which begin there.
  Rows rows(const float* x, std::size_t begin, int count, int stride) const {
    const std::size_t block = begin / kBlock;
    return {count, x, stride, codes.data() + begin, scales.data() + block, sums.data() + block, centres.data() + block};
  }
};

// The rows of the batch that an adapter acts on, and what its `down` factors make of them. Those that it alone acts on
// come first: their `up` products are done for all at once, while a mix is added up in its own order, row by row.
struct Group {
  const Adapter* adapter;
  std::vector<std::int32_t> rows;
  int alone = 0;
  std::vector<float> hidden;  // [linears of one input][rows][stride]
  Quantized quantized;        // the same
  int stride;

  std::size_t begin(int part, int row) const { return (static_cast<std::size_t>(part) * rows.size() + row) * stride; }
};

// Consecutive rows of the batch with one mix of adapters.
struct Run {
  struct Member {
    int group;
    int first;  // of the group's rows
    float weight;
  };
  int first;
  int count;
  std::vector<Member> mix;
};

class Step {
 public:
  Step(const Model& model, const Batch& batch, const Kernels& kernels, Team& team)
      : model_(model), batch_(batch), kernels_(kernels), team_(team), rows_(batch.rows) {
    int widest = padded(model.hidden, kBlock), attention = 0, kv = 0, mlp = 0, experts = 0;
    for (const Layer& layer : model.layers) {
      attention = std::max(attention, layer.heads * model.head_dim);
      kv = std::max(kv, layer.kv_heads * model.head_dim);
      mlp = std::max(mlp, layer.slots[kGate].out);
      experts = std::max(experts, layer.experts.second.in);
      group_ = std::max(group_, layer.heads / layer.kv_heads);
    }
    hidden_width_ = widest;
    attention_width_ = padded(attention, kBlock), kv_width_ = padded(kv, kTile), mlp_width_ = padded(mlp, kBlock);
    widest = std::max({widest, attention_width_, mlp_width_});
    const auto floats = [&](int width) { return std::vector<float>(static_cast<std::size_t>(rows_) * width); };
    x_ = floats(hidden_width_), normed_ = floats(hidden_width_), added_ = floats(hidden_width_);
    query_ = floats(attention_width_), key_ = floats(kv_width_), value_ = floats(kv_width_), seen_ = floats(attention_width_);
    gate_ = floats(mlp_width_), up_ = floats(mlp_width_);
    routed_ = floats(experts), scores_ = floats(experts);
    quantized_ = Quantized(static_cast<std::size_t>(rows_) * widest);
    const std::size_t unpacked = static_cast<std::size_t>(kMostTiles) * kTile * widest + kAlignment;
    unpacked_.assign(team.size(), std::vector<std::uint8_t>(unpacked));
    attention_.assign(team.size(), std::vector<float>(attention_scratch(kQueryRows, group_, model.head_dim)));
    place_rows();
    turn_angles();
    make_groups();
  }

  void run(float* logits) {
    team_.run(rows_, [&](int row, int) {
      float* x = at(x_, row, hidden_width_);
      read_row(model_.embedding, batch_.tokens[row], x);
      for (int i = 0; i < model_.hidden; ++i) x[i] *= model_.embedding_scale;
    });
    for (std::size_t layer = 0; layer < model_.layers.size(); ++layer) {
      attention(static_cast<int>(layer));
      mlp(static_cast<int>(layer));
    }
    head(logits);
  }

 private:
  static constexpr std::size_t kAlignment = 64;

  static float* at(std::vector<float>& v, int row, int width) { return v.data() + static_cast<std::size_t>(row) * width; }

  std::uint8_t* unpacked(int thread) {
    auto address = reinterpret_cast<std::uintptr_t>(unpacked_[thread].data());
    return reinterpret_cast<std::uint8_t*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }

  void place_rows() {
    sequence_.resize(rows_), position_.resize(rows_);
    for (int s = 0; s < batch_.sequences; ++s)
      for (int row = batch_.first_row[s]; row < batch_.first_row[s + 1]; ++row) {
        sequence_[row] = s;
        position_[row] = batch_.first_position[s] + row - batch_.first_row[s];
      }
  }

  // Cosine and sine of each row's position, for each of the model's tables.
  void turn_angles() {
    const int half = model_.head_dim / 2;
    angles_.resize(model_.ropes.size());
    for (std::size_t rope = 0; rope < model_.ropes.size(); ++rope) {
      const Rope& table = model_.ropes[rope];
      angles_[rope].resize(static_cast<std::size_t>(rows_) * model_.head_dim);
      team_.run(rows_, [&](int row, int) {
        float* cosine = at(angles_[rope], row, model_.head_dim);
        for (int i = 0; i < half; ++i) {
          const float angle = static_cast<float>(position_[row]) * table.inverse_frequency[i];
          cosine[i] = std::cos(angle) * table.factor;
          cosine[half + i] = std::sin(angle) * table.factor;
        }
      });
    }
  }

  void make_groups() {
    for (const Adapter* adapter : batch_.adapters) groups_.push_back({adapter, {}, 0, {}, Quantized(), padded(adapter->widest, kBlock)});
    run_of_.resize(rows_);
    const auto is_mix = [&](int s) { return batch_.first_mix[s + 1] - batch_.first_mix[s] > 1; };
    for (int s = 0; s < batch_.sequences; ++s)
      if (!is_mix(s)) make_runs(s);
    for (Group& group : groups_) group.alone = static_cast<int>(group.rows.size());
    num_alone_ = runs_.size();
    for (int s = 0; s < batch_.sequences; ++s)
      if (is_mix(s)) make_runs(s);
    for (Group& group : groups_) {
      const std::size_t size = group.begin(kMostParts, 0);
      group.hidden.resize(size);
      group.quantized = Quantized(size);
    }
  }

  // Cuts a sequence's rows in runs; the first joins the run made before it if that ends there and has the same mix.
  void make_runs(int s) {
    for (int row = batch_.first_row[s]; row < batch_.first_row[s + 1]; ++row) {
      Run next{row, 1, {}};
      for (int m = batch_.first_mix[s]; m < batch_.first_mix[s + 1]; ++m) {
        Group& group = groups_[batch_.mix_adapter[m]];
        next.mix.push_back({batch_.mix_adapter[m], static_cast<int>(group.rows.size()), batch_.mix_weight[m]});
        group.rows.push_back(row);
      }
      if (!runs_.empty() && runs_.back().first + runs_.back().count == row && runs_.back().count < kRunRows && same_mix(runs_.back(), next))
        ++runs_.back().count;
      else
        runs_.push_back(std::move(next));
      run_of_[row] = static_cast<int>(runs_.size()) - 1;
    }
  }

  static bool same_mix(const Run& a, const Run& b) {
    return std::equal(a.mix.begin(), a.mix.end(), b.mix.begin(), b.mix.end(),
                      [](const Run::Member& x, const Run::Member& y) { return x.group == y.group && x.weight == y.weight; });
  }

  // ---- linear maps with their bypasses ----

  struct Part {
    int slot;
    float* y;
    int stride;
  };
  static constexpr int kMostParts = 3;  // linears of one input: query, key and value

  // The linears of one input: `prepare` makes a row of it, then all parts read it.
  template <class Prepare>
  void linears(int layer, const float* x, int width, const std::vector<Part>& parts, const Prepare& prepare) {
    enter(layer, x, width, parts, prepare);
    leave(layer, x, width, parts);
  }

  // An input's rows, in 8 bits where these are wanted, and what the parts' `down` factors make of them.
  template <class Prepare>
  void enter(int layer, const float* x, int width, const std::vector<Part>& parts, const Prepare& prepare) {
    team_.run(static_cast<int>(runs_.size()), [&](int number, int thread) {
      const Run& run = runs_[number];
      for (int row = run.first; row < run.first + run.count; ++row) prepare(row);
      const std::size_t begin = static_cast<std::size_t>(run.first) * width;
      if (!batch_.float_activations) quantized_.put(kernels_, x + begin, begin, run.count * width);
      for (const Run::Member& member : run.mix)
        shrink(layer, rows_of(quantized_, x + begin, begin, run.count, width), parts, member, unpacked(thread));
    });
  }

  void leave(int layer, const float* x, int width, const std::vector<Part>& parts) {
    const Rows rows = rows_of(quantized_, x, 0, rows_, width);
    std::vector<std::array<int, 3>> tasks;  // part, first tile, last tile
    int tiles = 0;
    for (const Part& part : parts) tiles += model_.layers[layer].slots[part.slot].tiles();
    const int chunk = std::max(1, tiles / (kTasksPerThread * team_.size()));
    for (int p = 0; p < static_cast<int>(parts.size()); ++p) {
      const int end = model_.layers[layer].slots[parts[p].slot].tiles();
      for (int first = 0; first < end; first += chunk) tasks.push_back({p, first, std::min(end, first + chunk)});
    }
    const std::vector<const Linear*> next = next_downs(layer, parts.back().slot + 1);
    team_.run(static_cast<int>(tasks.size()), [&](int task, int thread) {
      const auto [p, first, last] = tasks[task];
      const Part& part = parts[p];
      for (const Group& group : groups_) {
        const Range range = bypasses(*group.adapter, layer, part.slot);
        for (const Bypass* bypass = range.begin; bypass < range.end; ++bypass) prefetch_tiles(bypass->up, first, last);
      }
      for (std::size_t i = task; i < next.size(); i += tasks.size()) prefetch_tiles(*next[i], 0, next[i]->tiles());
      const Out out{part.y, part.stride};
      kernels_.matmul(model_.layers[layer].slots[part.slot], rows, out, first, last, unpacked(thread));
      expand(layer, part, p, first, last, unpacked(thread));
    });
  }

  // The `down` factors that follow: those of the linears whose first slot this is.
  std::vector<const Linear*> next_downs(int layer, int slot) const {
    if (slot == kSlots) ++layer, slot = kQuery;
    std::vector<const Linear*> downs;
    if (layer == static_cast<int>(model_.layers.size())) return downs;
    const int last = slot == kQuery ? kValue : slot == kGate ? kUp : slot;
    for (const Group& group : groups_)
      for (int s = slot; s <= last; ++s) {
        const Range range = bypasses(*group.adapter, layer, s);
        for (const Bypass* bypass = range.begin; bypass < range.end; ++bypass) downs.push_back(&bypass->down);
      }
    return downs;
  }

  // Rows of `x`; with their codes too, where these are wanted.
  Rows rows_of(const Quantized& quantized, const float* x, std::size_t begin, int count, int stride) const {
    return batch_.float_activations ? Rows{count, x, stride} : quantized.rows(x, begin, count, stride);
  }

  struct Range {
    const Bypass* begin;
    const Bypass* end;
  };
  static Range bypasses(const Adapter& adapter, int layer, int slot) {
    const int key = layer * kSlots + slot;
    return {adapter.bypasses.data() + adapter.first[key], adapter.bypasses.data() + adapter.first[key + 1]};
  }

  // hidden = weight * scale * f(down x), for the rows of a run.
  void shrink(int layer, const Rows& x, const std::vector<Part>& parts, const Run::Member& member, std::uint8_t* scratch) {
    Group& group = groups_[member.group];
    for (int p = 0; p < static_cast<int>(parts.size()); ++p) {
      const Range range = bypasses(*group.adapter, layer, parts[p].slot);
      std::size_t begin = group.begin(p, member.first);
      for (const Bypass* bypass = range.begin; bypass < range.end; begin += padded(bypass->down.out, kBlock), ++bypass) {
        const Out out{group.hidden.data() + begin, group.stride};
        kernels_.matmul(bypass->down, x, out, 0, bypass->down.tiles(), scratch);
        for (int row = 0; row < x.count; ++row) activate(*bypass, member.weight, group, begin + static_cast<std::size_t>(row) * group.stride);
      }
    }
  }

  void activate(const Bypass& bypass, float weight, Group& group, std::size_t begin) const {
    float* hidden = group.hidden.data() + begin;
    const float factor = weight * bypass.scale;
    const int ranks = kTile * bypass.down.tiles(), width = padded(ranks, kBlock);
    if (bypass.gelu) kernels_.gelu(hidden, ranks);
    for (int r = 0; r < ranks; ++r) hidden[r] *= factor;
    std::fill(hidden + ranks, hidden + width, 0.0f);  // of another layer's higher rank
    if (!batch_.float_activations) group.quantized.put(kernels_, hidden, begin, width);
  }

  // y += up hidden, for the tiles [first, last) of a part.
  void expand(int layer, const Part& part, int p, int first, int last, std::uint8_t* scratch) const {
    for (const Group& group : groups_)
      if (group.alone) expand(layer, group, part, p, 0, {group.alone, first, last}, {part.y, part.stride, group.rows.data(), true}, scratch);
    for (std::size_t i = num_alone_; i < runs_.size(); ++i) {
      const Run& run = runs_[i];
      const Out out{part.y + static_cast<std::ptrdiff_t>(run.first) * part.stride, part.stride, nullptr, true};
      for (const Run::Member& member : run.mix)
        expand(layer, groups_[member.group], part, p, member.first, {run.count, first, last}, out, scratch);
    }
  }

  struct Stretch {
    int rows;
    int first, last;  // tiles
  };
  // The same for rows of one group, from its row `row` on.
  void expand(int layer, const Group& group, const Part& part, int p, int row, Stretch stretch, const Out& out, std::uint8_t* scratch) const {
    const Range range = bypasses(*group.adapter, layer, part.slot);
    std::size_t begin = group.begin(p, row);
    for (const Bypass* bypass = range.begin; bypass < range.end; begin += padded(bypass->down.out, kBlock), ++bypass) {
      const Rows rows = rows_of(group.quantized, group.hidden.data() + begin, begin, stretch.rows, group.stride);
      kernels_.matmul(bypass->up, rows, out, stretch.first, stretch.last, scratch);
    }
  }

  // The same for one row.
  void expand_row(int layer, int row, const Part& part, int p, int first, int last, std::uint8_t* scratch) const {
    const Run& run = runs_[run_of_[row]];
    const Out out{part.y + static_cast<std::ptrdiff_t>(row) * part.stride, part.stride, nullptr, true};
    for (const Run::Member& member : run.mix)
      expand(layer, groups_[member.group], part, p, member.first + row - run.first, {1, first, last}, out, scratch);
  }

  // ---- blocks ----

  auto activation() const { return model_.activation == Activation::silu ? kernels_.silu_mul : kernels_.gelu_tanh_mul; }

  void attention(int number) {
    const Layer& layer = model_.layers[number];
    const float* post_norm = number > 0 ? model_.layers[number - 1].mlp_post_norm : nullptr;
    linears(number, normed_.data(), hidden_width_,
            {{kQuery, query_.data(), attention_width_}, {kKey, key_.data(), kv_width_}, {kValue, value_.data(), kv_width_}},
            [&](int row) {
              if (number > 0) add(post_norm, row);
              norm(layer.attention_norm, row);
            });
    std::size_t offset = 0;
    for (int before = 0; before < number; ++before) offset += 2 * model_.key_bytes(model_.layers[before]);
    attend(layer, offset);
    linears(number, seen_.data(), attention_width_, {{kOutput, added_.data(), hidden_width_}}, [&](int row) {
      float* seen = at(seen_, row, attention_width_);  // a layer with more heads may have been before
      std::fill(seen + layer.heads * model_.head_dim, seen + attention_width_, 0.0f);
    });
  }

  void norm(const float* weight, int row) {
    kernels_.rms_norm(at(x_, row, hidden_width_), weight, model_.hidden, model_.epsilon, at(normed_, row, hidden_width_));
  }

  // What the block before has computed for a row goes on top of what came into it.
  void add(const float* post_norm, int row) {
    float* y = at(added_, row, hidden_width_);
    if (post_norm) kernels_.rms_norm(y, post_norm, model_.hidden, model_.epsilon, y);
    kernels_.add(at(x_, row, hidden_width_), y, model_.hidden);
  }

  void rotate(float* head, const float* cosine) const {
    const int half = model_.head_dim / 2;
    const float* sine = cosine + half;
    for (int i = 0; i < half; ++i) {
      const float a = head[i], b = head[half + i];
      head[i] = a * cosine[i] - b * sine[i];
      head[half + i] = b * cosine[i] + a * sine[i];
    }
  }

  // Normalise and turn a row's queries and key of one KV head, and write its key and value to its page.
  void rotate_and_keep(const Layer& layer, int row, int head, std::size_t offset) {
    const int head_dim = model_.head_dim, group = layer.heads / layer.kv_heads, place = position_[row] % kPageTokens;
    const float* cosine = at(angles_[layer.rope], row, head_dim);
    const auto turn = [&](float* x, const float* weight) {
      if (weight) kernels_.rms_norm(x, weight, head_dim, model_.epsilon, x);
      rotate(x, cosine);
    };
    float *key = at(key_, row, kv_width_) + head * head_dim, *value = at(value_, row, kv_width_) + head * head_dim;
    for (int h = head * group; h < (head + 1) * group; ++h) turn(at(query_, row, attention_width_) + h * head_dim, layer.query_norm);
    turn(key, layer.key_norm);
    const std::int32_t page = batch_.pages[batch_.first_page[sequence_[row]] + position_[row] / kPageTokens];
    std::uint8_t* memory = batch_.arena + page * batch_.page_bytes + offset;
    std::uint8_t *keys = memory + head * model_.head_bytes(), *values = keys + model_.key_bytes(layer);
    keep(key, keys, place, kPageTokens);
    keep(value, values, place * head_dim, 1);
  }

  // A head's numbers of one token, to every `stride`-th place from `first` on.
  void keep(const float* x, std::uint8_t* memory, int first, int stride) const {
    const int count = model_.head_dim;
    if (model_.kv_bits == 16) {
      Half* halves = reinterpret_cast<Half*>(memory) + first;
      for (int d = 0; d < count; ++d) halves[d * stride] = to_half(x[d]);
      return;
    }
    float peak = 0;
    for (int d = 0; d < count; ++d) peak = std::max(peak, std::fabs(x[d]));
    const Half scale = to_half(peak / 127);
    const float inverse = to_float(scale) > 0 ? 1 / to_float(scale) : 0;
    auto* codes = reinterpret_cast<std::int8_t*>(memory) + first;
    for (int d = 0; d < count; ++d)
      codes[d * stride] = static_cast<std::int8_t>(std::clamp(std::round(x[d] * inverse), -127.0f, 127.0f));
    const int token = stride == 1 ? first / count : first;
    reinterpret_cast<Half*>(memory + static_cast<std::size_t>(kPageTokens) * count)[token] = scale;
  }

  void attend(const Layer& layer, std::size_t offset) {
    const bool is_decoding = rows_ == batch_.sequences;  // a row sees no key of another row, so it need not wait for it
    if (!is_decoding)
      team_.run(rows_, [&](int row, int) {
        for (int head = 0; head < layer.kv_heads; ++head) rotate_and_keep(layer, row, head, offset);
      });
    std::vector<std::array<int, 3>> tasks;  // sequence, first row, KV head
    for (int s = 0; s < batch_.sequences; ++s)
      for (int row = batch_.first_row[s]; row < batch_.first_row[s + 1]; row += kQueryRows)
        for (int head = 0; head < layer.kv_heads; ++head) tasks.push_back({s, row, head});
    const int head_dim = model_.head_dim, group = layer.heads / layer.kv_heads;
    team_.run(static_cast<int>(tasks.size()), [&](int number, int thread) {
      const auto [sequence, row, head] = tasks[number];
      if (is_decoding) rotate_and_keep(layer, row, head, offset);
      AttentionTask task;
      task.q = at(query_, row, attention_width_) + head * group * head_dim;
      task.out = at(seen_, row, attention_width_) + head * group * head_dim;
      task.q_stride = attention_width_;
      task.rows = std::min(kQueryRows, batch_.first_row[sequence + 1] - row);
      task.group = group, task.head_dim = head_dim;
      task.first_position = position_[row], task.window = layer.window, task.scale = model_.attention_scale;
      task.arena = batch_.arena, task.page_bytes = batch_.page_bytes;
      task.pages = batch_.pages + batch_.first_page[sequence];
      task.in_bytes = model_.kv_bits == 8;
      task.key_offset = offset + model_.head_bytes() * head;
      task.value_offset = task.key_offset + model_.key_bytes(layer);
      kernels_.attend(task, attention_[thread].data());
    });
  }

  void mlp(int number) {
    const Layer& layer = model_.layers[number];
    if (layer.experts.count) return mlp_of_experts(number);
    const int width = padded(layer.slots[kGate].out, kBlock);
    linears(number, normed_.data(), hidden_width_, {{kGate, gate_.data(), width}, {kUp, up_.data(), width}},
            [&](int row) {
              add(layer.attention_post_norm, row);
              norm(layer.mlp_norm, row);
            });
    const auto activate = activation();
    linears(number, gate_.data(), width, {{kDown, added_.data(), hidden_width_}}, [&](int row) {
      float* gate = at(gate_, row, width);
      activate(gate, at(up_, row, width), layer.slots[kGate].out);
      std::fill(gate + layer.slots[kGate].out, gate + width, 0.0f);
    });
  }

  // As above, for the experts that a row takes; its other neurons are zero. A row's experts are added in their order, so
  // that its result does not depend on what the rows beside it take.
  void mlp_of_experts(int number) {
    const Layer& layer = model_.layers[number];
    const Experts& experts = layer.experts;
    const int width = layer.slots[kGate].out;
    const std::vector<Part> parts{{kGate, gate_.data(), width}, {kUp, up_.data(), width}}, down{{kDown, added_.data(), hidden_width_}};
    enter(number, normed_.data(), hidden_width_, parts, [&](int row) {
      add(layer.attention_post_norm, row);
      norm(layer.mlp_norm, row);
    });
    if (!experts.active) leave(number, normed_.data(), hidden_width_, {parts[0]});
    const Taken taken = experts.active ? route(experts) : take_above(experts, sum_gates(experts, width).data(), rows_);
    rise(number, taken, parts, experts.active ? 0 : 1);
    const auto activate = activation();
    enter(number, gate_.data(), width, down, [&](int row) {
      for (int e = 0; e < experts.count; ++e) {
        float* gate = at(gate_, row, width) + e * experts.size;
        if (taken.is_taken[static_cast<std::size_t>(row) * experts.count + e])
          activate(gate, at(up_, row, width) + e * experts.size, experts.size);
        else
          std::fill(gate, gate + experts.size, 0.0f);
      }
    });
    fall(number, taken, down[0], width);
  }

  // The experts by the router's scores of the normed rows.
  Taken route(const Experts& experts) {
    const int stride = experts.second.in;
    std::fill(routed_.begin(), routed_.end(), 0.0f);
    const Rows rows = rows_of(quantized_, normed_.data(), 0, rows_, hidden_width_);
    team_.run(experts.first.tiles(), [&](int tile, int thread) {
      kernels_.matmul(experts.first, rows, {routed_.data(), stride}, tile, tile + 1, unpacked(thread));
    });
    team_.run(rows_, [&](int row, int thread) {
      float* x = at(routed_, row, stride);
      for (int e = 0; e < experts.count; ++e) x[e] = std::tanh(x[e]);
      kernels_.matmul(experts.second, {1, x, stride}, {at(scores_, row, stride), stride}, 0, experts.second.tiles(), unpacked(thread));
    });
    return take_highest(experts, scores_.data(), stride, rows_);
  }

  // Of each row and expert, the sum of its gates, absolute.
  std::vector<float> sum_gates(const Experts& experts, int width) {
    std::vector<float> sums(static_cast<std::size_t>(rows_) * experts.count);
    const std::vector<float> ones(experts.size, 1.0f);
    const auto activate = activation();
    team_.run(rows_, [&](int row, int) {
      std::vector<float> gates(experts.size);
      for (int e = 0; e < experts.count; ++e) {
        const float* gate = at(gate_, row, width) + e * experts.size;
        std::copy(gate, gate + experts.size, gates.begin());
        activate(gates.data(), ones.data(), experts.size);
        for (float g : gates) sums[static_cast<std::size_t>(row) * experts.count + e] += std::abs(g);
      }
    });
    return sums;
  }

  // Parts from `from` on of gate and up, for the experts that are taken.
  void rise(int number, const Taken& taken, const std::vector<Part>& parts, int from) {
    const Layer& layer = model_.layers[number];
    const int tiles = layer.experts.size / kTile;
    team_.run(static_cast<int>(taken.experts.size()), [&](int task, int thread) {
      const Taken::Expert& expert = taken.experts[task];
      const int first = expert.number * tiles, last = first + tiles;
      for (int p = from; p < static_cast<int>(parts.size()); ++p)
        for (const Taken::Run& run : expert.runs) {
          const std::size_t begin = static_cast<std::size_t>(run.first) * hidden_width_;
          const Rows rows = rows_of(quantized_, normed_.data() + begin, begin, run.count, hidden_width_);
          const Out out{parts[p].y + static_cast<std::ptrdiff_t>(run.first) * parts[p].stride, parts[p].stride};
          kernels_.matmul(layer.slots[parts[p].slot], rows, out, first, last, unpacked(thread));
          for (int row = run.first; row < run.first + run.count; ++row)
            expand_row(number, row, parts[p], p, first, last, unpacked(thread));
        }
    });
  }

  // Down, expert by expert.
  void fall(int number, const Taken& taken, const Part& part, int width) {
    const Layer& layer = model_.layers[number];
    const int tiles = model_.hidden / kTile, chunk = (tiles + 2 * team_.size() - 1) / (2 * team_.size());
    team_.run((tiles + chunk - 1) / chunk, [&](int task, int thread) {
      const int first = task * chunk, last = std::min(tiles, first + chunk);
      for (int row = 0; row < rows_; ++row) {
        float* y = at(added_, row, hidden_width_);
        if (const float* bias = layer.experts.down_bias)
          std::copy(bias + first * kTile, bias + last * kTile, y + first * kTile);
        else
          std::fill(y + first * kTile, y + last * kTile, 0.0f);
      }
      for (std::size_t i = 0; i < taken.experts.size(); ++i) {
        const auto columns = [&](std::size_t at) {
          const int expert = taken.experts[at].number;
          return tiles_of(layer.slots[kDown], expert * tiles, (expert + 1) * tiles);
        };
        if (i + 1 < taken.experts.size()) prefetch_tiles(columns(i + 1), first, last);
        const Linear w = columns(i);
        for (const Taken::Run& run : taken.experts[i].runs) {
          const std::size_t begin = static_cast<std::size_t>(run.first) * width + taken.experts[i].number * layer.experts.size;
          const Out out{at(added_, run.first, hidden_width_), hidden_width_, nullptr, true};
          kernels_.matmul(w, rows_of(quantized_, gate_.data() + begin, begin, run.count, width), out, first, last, unpacked(thread));
        }
      }
      expand(number, part, 0, first, last, unpacked(thread));
    });
  }

  void head(float* logits) {
    const int count = batch_.logit_count, tiles = model_.head.tiles();
    if (count == 0) return;
    std::vector<float> last(static_cast<std::size_t>(count) * hidden_width_);
    team_.run(count, [&](int i, int) {
      float* row = at(last, i, hidden_width_);
      const int from = batch_.logit_rows[i];
      add(model_.layers.back().mlp_post_norm, from);
      kernels_.rms_norm(at(x_, from, hidden_width_), model_.final_norm, model_.hidden, model_.epsilon, row);
      if (batch_.hidden) std::copy(row, row + model_.hidden, at_hidden(i));
      if (!batch_.float_activations) quantized_.put(kernels_, row, static_cast<std::size_t>(i) * hidden_width_, hidden_width_);
    });
    const Rows rows = rows_of(quantized_, last.data(), 0, count, hidden_width_);
    const Out out{logits, kTile * tiles};
    const int chunk = std::max(1, tiles / (kTasksPerThread * team_.size()));
    team_.run((tiles + chunk - 1) / chunk, [&](int task, int thread) {
      kernels_.matmul(model_.head, rows, out, task * chunk, std::min(tiles, (task + 1) * chunk), unpacked(thread));
    });
  }

  float* at_hidden(int i) const { return batch_.hidden + static_cast<std::size_t>(i) * model_.hidden; }

  const Model& model_;
  const Batch& batch_;
  const Kernels& kernels_;
  Team& team_;
  int rows_, group_ = 1;
  int hidden_width_, attention_width_, kv_width_, mlp_width_;
  std::vector<float> x_, normed_, added_, query_, key_, value_, seen_, gate_, up_, routed_, scores_;
  Quantized quantized_;
  std::vector<std::int32_t> sequence_, position_;
  std::vector<std::vector<float>> angles_;
  std::vector<Group> groups_;
  std::vector<Run> runs_;      // first those with one adapter or none
  std::size_t num_alone_ = 0;  // how many these are
  std::vector<int> run_of_;    // of each row
  std::vector<std::vector<std::uint8_t>> unpacked_;
  std::vector<std::vector<float>> attention_;
};

}  // namespace

void run_step(const Model& model, const Batch& batch, const Kernels& kernels, Team& team, float* logits) {
  Step(model, batch, kernels, team).run(logits);
}

}  // namespace regraft
