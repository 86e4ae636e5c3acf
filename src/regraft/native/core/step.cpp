// One step of a decoder over a ragged batch: prefill chunks and single tokens together, each sequence with its own mix of
// adapters (S-LoRA, arXiv 2311.03285, section 5: the base's product for all rows at once, bypasses by adapter beside it).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.hpp"

namespace regraft {
namespace {

constexpr int kQueryRows = 8;    // rows of a sequence that one attention task takes
constexpr int kTasksPerThread = 6;

int padded(int width, int to) { return (width + to - 1) / to * to; }

// The rows of the batch that an adapter acts on.
struct Group {
  const Adapter* adapter;
  std::vector<std::int32_t> rows;
  std::vector<float> weights;
  bool consecutive;
  std::vector<float> gathered;  // their inputs, where they are not consecutive
  std::vector<float> hidden;    // [slots of a call][rows][stride], what comes out of `down`
  int stride;
};

class Step {
 public:
  Step(const Model& model, const Batch& batch, const Kernels& kernels, Team& team)
      : model_(model), batch_(batch), kernels_(kernels), team_(team), rows_(batch.rows) {
    int widest = padded(model.hidden, kBlock), attention = 0, kv = 0, mlp = 0;
    for (const Layer& layer : model.layers) {
      attention = std::max(attention, layer.heads * model.head_dim);
      kv = std::max(kv, layer.kv_heads * model.head_dim);
      mlp = std::max(mlp, layer.slots[kGate].out);
      group_ = std::max(group_, layer.heads / layer.kv_heads);
    }
    hidden_width_ = widest;
    attention_width_ = padded(attention, kBlock), kv_width_ = padded(kv, kTile), mlp_width_ = padded(mlp, kBlock);
    widest = std::max({widest, attention_width_, mlp_width_});
    const auto floats = [&](int width) { return std::vector<float>(static_cast<std::size_t>(rows_) * width); };
    x_ = floats(hidden_width_), normed_ = floats(hidden_width_), added_ = floats(hidden_width_);
    query_ = floats(attention_width_), key_ = floats(kv_width_), value_ = floats(kv_width_), seen_ = floats(attention_width_);
    gate_ = floats(mlp_width_), up_ = floats(mlp_width_);
    codes_.resize(static_cast<std::size_t>(rows_) * widest);
    scales_ = floats(widest / kBlock), sums_ = floats(widest / kBlock);
    const std::size_t unpacked = static_cast<std::size_t>(kTile) * widest + kAlignment;
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
    groups_.resize(batch_.adapters.size());
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      Group& group = groups_[i];
      group.adapter = batch_.adapters[i];
      group.stride = padded(group.adapter->widest, kTile);
    }
    for (int s = 0; s < batch_.sequences; ++s)
      for (int m = batch_.first_mix[s]; m < batch_.first_mix[s + 1]; ++m) {
        Group& group = groups_[batch_.mix_adapter[m]];
        for (int row = batch_.first_row[s]; row < batch_.first_row[s + 1]; ++row) {
          group.rows.push_back(row);
          group.weights.push_back(batch_.mix_weight[m]);
        }
      }
    groups_.erase(std::remove_if(groups_.begin(), groups_.end(), [](const Group& g) { return g.rows.empty(); }), groups_.end());
    for (Group& group : groups_) {
      group.consecutive = group.rows.back() - group.rows.front() + 1 == static_cast<int>(group.rows.size());
      group.hidden.resize(3 * group.rows.size() * group.stride);
    }
  }

  // ---- linear maps with their bypasses ----

  struct Part {
    int slot;
    float* y;
    int stride;
  };

  // The linears of one input: `prepare` makes a row of it, then all parts read it.
  template <class Prepare>
  void linears(int layer, const float* x, int width, const std::vector<Part>& parts, const Prepare& prepare) {
    team_.run(rows_, [&](int row, int) {
      prepare(row);
      if (!batch_.float_activations) quantize_row(x, width, row);
    });
    for (Group& group : groups_) shrink_inputs(group, x, width);
    shrink(layer, x, width, parts);
    const Rows rows = rows_of(x, width, rows_);
    std::vector<std::array<int, 3>> tasks;  // part, first tile, last tile
    int tiles = 0;
    for (const Part& part : parts) tiles += model_.layers[layer].slots[part.slot].tiles();
    const int chunk = std::max(1, tiles / (kTasksPerThread * team_.size()));
    for (int p = 0; p < static_cast<int>(parts.size()); ++p) {
      const int end = model_.layers[layer].slots[parts[p].slot].tiles();
      for (int first = 0; first < end; first += chunk) tasks.push_back({p, first, std::min(end, first + chunk)});
    }
    team_.run(static_cast<int>(tasks.size()), [&](int task, int thread) {
      const auto [p, first, last] = tasks[task];
      const Part& part = parts[p];
      const Out out{part.y, part.stride};
      kernels_.matmul(model_.layers[layer].slots[part.slot], rows, out, first, last, unpacked(thread));
      expand(layer, part, p, first, last, unpacked(thread));
    });
  }

  void quantize_row(const float* x, int width, int row) {
    const std::size_t blocks = static_cast<std::size_t>(row) * (width / kBlock), begin = static_cast<std::size_t>(row) * width;
    kernels_.quantize(x + begin, width, codes_.data() + begin, scales_.data() + blocks, sums_.data() + blocks);
  }

  Rows rows_of(const float* x, int width, int count) const {
    Rows rows{count, x, width};
    if (!batch_.float_activations) rows.q = codes_.data(), rows.scale = scales_.data(), rows.sum = sums_.data();
    return rows;
  }

  void shrink_inputs(Group& group, const float* x, int width) {
    if (group.consecutive) return;
    group.gathered.resize(group.rows.size() * width);
    for (std::size_t i = 0; i < group.rows.size(); ++i)
      std::memcpy(group.gathered.data() + i * width, x + static_cast<std::size_t>(group.rows[i]) * width, sizeof(float) * width);
  }

  struct Range {
    const Bypass* begin;
    const Bypass* end;
  };
  Range bypasses(const Group& group, int layer, int slot) const {
    const Adapter& adapter = *group.adapter;
    const int key = layer * kSlots + slot;
    return {adapter.bypasses.data() + adapter.first[key], adapter.bypasses.data() + adapter.first[key + 1]};
  }

  float* hidden_of(Group& group, int part) {
    return group.hidden.data() + static_cast<std::size_t>(part) * group.rows.size() * group.stride;
  }

  // hidden = weight * scale * f(down x), each tile of ranks a task.
  void shrink(int layer, const float* x, int width, const std::vector<Part>& parts) {
    struct Task {
      Group* group;
      const Bypass* bypass;
      float* hidden;
      int tile;
    };
    std::vector<Task> tasks;
    for (Group& group : groups_)
      for (int p = 0; p < static_cast<int>(parts.size()); ++p) {
        const Range range = bypasses(group, layer, parts[p].slot);
        float* hidden = hidden_of(group, p);
        for (const Bypass* bypass = range.begin; bypass < range.end; hidden += padded(bypass->down.out, kTile), ++bypass)
          for (int tile = 0; tile < bypass->down.tiles(); ++tile) tasks.push_back({&group, bypass, hidden, tile});
      }
    team_.run(static_cast<int>(tasks.size()), [&](int number, int thread) {
      const Task& task = tasks[number];
      Group& group = *task.group;
      const int count = static_cast<int>(group.rows.size());
      const float* input = group.consecutive ? x + static_cast<std::size_t>(group.rows[0]) * width : group.gathered.data();
      const Out out{task.hidden, group.stride};
      kernels_.matmul(task.bypass->down, Rows{count, input, width}, out, task.tile, task.tile + 1, unpacked(thread));
      for (int row = 0; row < count; ++row) {
        float* h = task.hidden + static_cast<std::size_t>(row) * group.stride + kTile * task.tile;
        const float factor = group.weights[row] * task.bypass->scale;
        for (int r = 0; r < kTile; ++r) {
          const float active = task.bypass->gelu ? 0.5f * h[r] * (1 + std::erf(h[r] * 0.70710678f)) : h[r];
          h[r] = factor * active;
        }
      }
    });
  }

  // y += up hidden, for the tiles [first, last) of a part.
  void expand(int layer, const Part& part, int p, int first, int last, std::uint8_t* scratch) {
    for (Group& group : groups_) {
      const Range range = bypasses(group, layer, part.slot);
      const float* hidden = hidden_of(group, p);
      Out out{part.y, part.stride, group.rows.data(), true};
      for (const Bypass* bypass = range.begin; bypass < range.end; hidden += padded(bypass->down.out, kTile), ++bypass) {
        const Rows rows{static_cast<int>(group.rows.size()), hidden, group.stride};
        kernels_.matmul(bypass->up, rows, out, first, last, scratch);
      }
    }
  }

  // ---- blocks ----

  void attention(int number) {
    const Layer& layer = model_.layers[number];
    linears(number, normed_.data(), hidden_width_,
            {{kQuery, query_.data(), attention_width_}, {kKey, key_.data(), kv_width_}, {kValue, value_.data(), kv_width_}},
            [&](int row) { norm(layer.attention_norm, row); });
    std::size_t offset = 0;
    for (int before = 0; before < number; ++before) offset += 2 * model_.key_bytes(model_.layers[before]);
    team_.run(rows_, [&](int row, int) { rotate_and_keep(layer, row, offset); });
    attend(layer, offset);
    linears(number, seen_.data(), attention_width_, {{kOutput, added_.data(), hidden_width_}}, [&](int row) {
      float* seen = at(seen_, row, attention_width_);  // a layer with more heads may have been before
      std::fill(seen + layer.heads * model_.head_dim, seen + attention_width_, 0.0f);
    });
    team_.run(rows_, [&](int row, int) { add(layer.attention_post_norm, row); });
  }

  void norm(const float* weight, int row) {
    kernels_.rms_norm(at(x_, row, hidden_width_), weight, model_.hidden, model_.epsilon, at(normed_, row, hidden_width_));
  }

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

  // Normalise and turn a row's queries and keys, and write its keys and values to its page.
  void rotate_and_keep(const Layer& layer, int row, std::size_t offset) {
    const int head_dim = model_.head_dim, place = position_[row] % kPageTokens;
    const float* cosine = at(angles_[layer.rope], row, head_dim);
    const auto turn = [&](float* heads, int count, const float* weight) {
      for (int h = 0; h < count; ++h) {
        if (weight) kernels_.rms_norm(heads + h * head_dim, weight, head_dim, model_.epsilon, heads + h * head_dim);
        rotate(heads + h * head_dim, cosine);
      }
    };
    float *key = at(key_, row, kv_width_), *value = at(value_, row, kv_width_);
    turn(at(query_, row, attention_width_), layer.heads, layer.query_norm);
    turn(key, layer.kv_heads, layer.key_norm);
    const std::int32_t page = batch_.pages[batch_.first_page[sequence_[row]] + position_[row] / kPageTokens];
    auto* keys = reinterpret_cast<Half*>(batch_.arena + page * batch_.page_bytes + offset);
    auto* values = reinterpret_cast<Half*>(batch_.arena + page * batch_.page_bytes + offset + model_.key_bytes(layer));
    for (int i = 0; i < layer.kv_heads * head_dim; ++i) keys[i * kPageTokens + place] = to_half(key[i]);
    for (int h = 0; h < layer.kv_heads; ++h)
      for (int d = 0; d < head_dim; ++d)
        values[(h * kPageTokens + place) * head_dim + d] = to_half(value[h * head_dim + d]);
  }

  void attend(const Layer& layer, std::size_t offset) {
    std::vector<std::array<int, 3>> tasks;  // sequence, first row, KV head
    for (int s = 0; s < batch_.sequences; ++s)
      for (int row = batch_.first_row[s]; row < batch_.first_row[s + 1]; row += kQueryRows)
        for (int head = 0; head < layer.kv_heads; ++head) tasks.push_back({s, row, head});
    const int head_dim = model_.head_dim, group = layer.heads / layer.kv_heads;
    team_.run(static_cast<int>(tasks.size()), [&](int number, int thread) {
      const auto [sequence, row, head] = tasks[number];
      AttentionTask task;
      task.q = at(query_, row, attention_width_) + head * group * head_dim;
      task.out = at(seen_, row, attention_width_) + head * group * head_dim;
      task.q_stride = attention_width_;
      task.rows = std::min(kQueryRows, batch_.first_row[sequence + 1] - row);
      task.group = group, task.head_dim = head_dim;
      task.first_position = position_[row], task.window = layer.window, task.scale = model_.attention_scale;
      task.arena = batch_.arena, task.page_bytes = batch_.page_bytes;
      task.pages = batch_.pages + batch_.first_page[sequence];
      task.key_offset = offset + sizeof(Half) * kPageTokens * head_dim * static_cast<std::size_t>(head);
      task.value_offset = task.key_offset + model_.key_bytes(layer);
      kernels_.attend(task, attention_[thread].data());
    });
  }

  void mlp(int number) {
    const Layer& layer = model_.layers[number];
    const int width = padded(layer.slots[kGate].out, kBlock);
    linears(number, normed_.data(), hidden_width_, {{kGate, gate_.data(), width}, {kUp, up_.data(), width}},
            [&](int row) { norm(layer.mlp_norm, row); });
    const auto activate = model_.activation == Activation::silu ? kernels_.silu_mul : kernels_.gelu_tanh_mul;
    linears(number, gate_.data(), width, {{kDown, added_.data(), hidden_width_}}, [&](int row) {
      float* gate = at(gate_, row, width);
      activate(gate, at(up_, row, width), layer.slots[kGate].out);
      std::fill(gate + layer.slots[kGate].out, gate + width, 0.0f);
    });
    team_.run(rows_, [&](int row, int) { add(layer.mlp_post_norm, row); });
  }

  void head(float* logits) {
    const int count = batch_.logit_count, tiles = model_.head.tiles();
    if (count == 0) return;
    std::vector<float> last(static_cast<std::size_t>(count) * hidden_width_);
    team_.run(count, [&](int i, int) {
      float* row = at(last, i, hidden_width_);
      kernels_.rms_norm(at(x_, batch_.logit_rows[i], hidden_width_), model_.final_norm, model_.hidden, model_.epsilon, row);
      if (!batch_.float_activations) quantize_row(last.data(), hidden_width_, i);
    });
    const Rows rows = rows_of(last.data(), hidden_width_, count);
    const Out out{logits, kTile * tiles};
    const int chunk = std::max(1, tiles / (kTasksPerThread * team_.size()));
    team_.run((tiles + chunk - 1) / chunk, [&](int task, int thread) {
      kernels_.matmul(model_.head, rows, out, task * chunk, std::min(tiles, (task + 1) * chunk), unpacked(thread));
    });
  }

  const Model& model_;
  const Batch& batch_;
  const Kernels& kernels_;
  Team& team_;
  int rows_, group_ = 1;
  int hidden_width_, attention_width_, kv_width_, mlp_width_;
  std::vector<float> x_, normed_, added_, query_, key_, value_, seen_, gate_, up_;
  std::vector<std::int8_t> codes_;
  std::vector<float> scales_, sums_;
  std::vector<std::int32_t> sequence_, position_;
  std::vector<std::vector<float>> angles_;
  std::vector<Group> groups_;
  std::vector<std::vector<std::uint8_t>> unpacked_;
  std::vector<std::vector<float>> attention_;
};

}  // namespace

void run_step(const Model& model, const Batch& batch, const Kernels& kernels, Team& team, float* logits) {
  Step(model, batch, kernels, team).run(logits);
}

}  // namespace regraft
