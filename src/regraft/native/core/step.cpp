// One step of a decoder over a ragged batch: prefill chunks and single tokens together, each sequence with its own mix of
// adapters (S-LoRA, arXiv 2311.03285, section 5: the base's product for all rows at once, bypasses by adapter beside it).
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "expert_mlp.hpp"
#include "linears.hpp"
#include "model.hpp"

namespace regraft {
namespace {

constexpr int kQueryRows = 8;  // rows of a sequence that one attention task takes

class Step {
 public:
  Step(const Model& model, const Batch& batch, const Kernels& kernels, Team& team)
      : model_(model), batch_(batch), kernels_(kernels), team_(team), linears_(model, batch, kernels, team, widest(model)), experts_(model, batch, kernels, team, linears_), rows_(batch.rows) {
    int attention = 0, kv = 0, mlp = 0;
    for (const Layer& layer : model.layers) {
      attention = std::max(attention, layer.heads * model.head_dim);
      kv = std::max(kv, layer.kv_heads * model.head_dim);
      if (!layer.experts.count) mlp = std::max(mlp, layer.mlp);
      group_ = std::max(group_, layer.heads / layer.kv_heads);
    }
    hidden_width_ = padded(model.hidden, kBlock), attention_width_ = padded(attention, kBlock);
    kv_width_ = padded(kv, kTile), mlp_width_ = padded(mlp, kBlock);
    const auto floats = [&](int width) { return std::vector<float>(static_cast<std::size_t>(rows_) * width); };
    x_ = floats(hidden_width_), normed_ = floats(hidden_width_), added_ = floats(hidden_width_);
    query_ = floats(attention_width_), key_ = floats(kv_width_), value_ = floats(kv_width_), seen_ = floats(attention_width_);
    gate_ = floats(mlp_width_), up_ = floats(mlp_width_);
    attention_.assign(team.size(), std::vector<float>(attention_scratch(kQueryRows, group_, model.head_dim)));
    place_rows();
    turn_angles();
  }

  void run(float* states) {
    team_.run(rows_, [&](int row, int) {
      float* x = at(x_, row, hidden_width_);
      read_row(model_.embedding, batch_.tokens[row], x);
      for (int i = 0; i < model_.hidden; ++i) x[i] *= model_.embedding_scale;
    });
    for (std::size_t layer = 0; layer < model_.layers.size(); ++layer) {
      attention(static_cast<int>(layer));
      mlp(static_cast<int>(layer));
    }
    finish(states);
  }

 private:
  using Part = Linears::Part;

  // Columns of the widest input of any linear.
  static int widest(const Model& model) {
    int width = model.hidden;
    for (const Layer& layer : model.layers) width = std::max({width, layer.heads * model.head_dim, layer.mlp});
    return padded(width, kBlock);
  }

  static float* at(std::vector<float>& v, int row, int width) { return v.data() + static_cast<std::size_t>(row) * width; }

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

  // ---- blocks ----

  void attention(int number) {
    const Layer& layer = model_.layers[number];
    const float* post_norm = number > 0 ? model_.layers[number - 1].mlp_post_norm : nullptr;
    linears_.apply(number, normed_.data(), hidden_width_,
                   {{kQuery, query_.data(), attention_width_}, {kKey, key_.data(), kv_width_}, {kValue, value_.data(), kv_width_}},
                   [&](int row) {
                     if (number > 0) add(post_norm, row);
                     norm(layer.attention_norm, row);
                   });
    std::size_t offset = 0;
    for (int before = 0; before < number; ++before) offset += 2 * model_.key_bytes(model_.layers[before]);
    attend(layer, offset);
    linears_.apply(number, seen_.data(), attention_width_, {{kOutput, added_.data(), hidden_width_}}, [&](int row) {
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
    const auto prepare = [&](int row) {
      add(layer.attention_post_norm, row);
      norm(layer.mlp_norm, row);
    };
    if (layer.experts.count) return experts_.apply(number, normed_.data(), hidden_width_, added_.data(), hidden_width_, prepare);
    const int width = padded(layer.mlp, kBlock);
    linears_.apply(number, normed_.data(), hidden_width_, {{kGate, gate_.data(), width}, {kUp, up_.data(), width}}, prepare);
    const auto activate = model_.activation == Activation::silu ? kernels_.silu_mul : kernels_.gelu_tanh_mul;
    linears_.apply(number, gate_.data(), width, {{kDown, added_.data(), hidden_width_}}, [&](int row) {
      float* gate = at(gate_, row, width);
      activate(gate, at(up_, row, width), layer.mlp);
      std::fill(gate + layer.mlp, gate + width, 0.0f);
    });
  }

  void finish(float* states) {
    team_.run(batch_.wanted_count, [&](int i, int) {
      const int row = batch_.wanted[i];
      add(model_.layers.back().mlp_post_norm, row);
      kernels_.rms_norm(at(x_, row, hidden_width_), model_.final_norm, model_.hidden, model_.epsilon, at(normed_, row, hidden_width_));
      std::copy_n(at(normed_, row, hidden_width_), model_.hidden, states + static_cast<std::size_t>(i) * model_.hidden);
    });
  }

  const Model& model_;
  const Batch& batch_;
  const Kernels& kernels_;
  Team& team_;
  Linears linears_;
  ExpertMlp experts_;
  int rows_, group_ = 1;
  int hidden_width_, attention_width_, kv_width_, mlp_width_;
  std::vector<float> x_, normed_, added_, query_, key_, value_, seen_, gate_, up_;
  std::vector<std::int32_t> sequence_, position_;
  std::vector<std::vector<float>> angles_;
  std::vector<std::vector<float>> attention_;
};

}  // namespace

void run_step(const Model& model, const Batch& batch, const Kernels& kernels, Team& team, float* states) {
  Step(model, batch, kernels, team).run(states);
}

}  // namespace regraft
