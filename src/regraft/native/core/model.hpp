// A decoder, its adapters, and one step over a ragged batch.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "bypass_kinds.hpp"
#include "kernels.hpp"
#include "team.hpp"

namespace regraft {

enum Slot { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kSlots };

// The experts that an MLP is cut in, each of `size` neurons that stand side by side, with linears of their own: gate and up
// are [size, hidden], down is [hidden, size].
struct Experts {
  int count = 0;  // 0: the MLP is whole
  int size = 0;
  Pieces gate, up, down;
  int active = 0;  // that a row takes: those of the highest scores, second tanh(first x); 0: those that the threshold lets
  Linear first;
  Linear second;
  float threshold = 0;               // of the sum of an expert's gates, absolute
  const float* down_bias = nullptr;  // [hidden]; or null
};

struct Layer {
  std::array<Linear, kSlots> slots;  // those of the MLP have no data if it is cut in experts
  Experts experts;
  int mlp = 0;  // neurons
  int heads = 0;
  int kv_heads = 0;
  int window = 0;  // tokens seen, itself included; 0: all
  int rope = 0;    // which of the model's tables
  const float* attention_norm = nullptr;  // before attention
  const float* mlp_norm = nullptr;        // before the MLP
  const float* attention_post_norm = nullptr;  // after it, before it is added; or null
  const float* mlp_post_norm = nullptr;        // likewise
  const float* query_norm = nullptr;  // per head; or null
  const float* key_norm = nullptr;
};

struct Rope {
  std::vector<float> inverse_frequency;  // [head_dim / 2]
  float factor = 1;                      // of sine and cosine
};

enum class Activation { silu, gelu_tanh };

struct Model {
  int hidden = 0;  // a multiple of 8, like every width below
  int head_dim = 0;
  int vocabulary = 0;
  float epsilon = 1e-6f;
  float embedding_scale = 1;
  float attention_scale = 1;
  int kv_bits = 16;  // halves; or 8: bytes, and a half per token and head that scales them
  Activation activation = Activation::silu;
  Linear embedding;
  Linear head;
  const float* final_norm = nullptr;
  std::vector<Rope> ropes;
  std::vector<Layer> layers;

  // Bytes of a page's keys (as many again are its values): of a head, of a layer; and of a whole page.
  std::size_t head_bytes() const {
    return kPageTokens * (static_cast<std::size_t>(head_dim) * kv_bits / 8 + (kv_bits == 8 ? sizeof(Half) : 0));
  }
  std::size_t key_bytes(const Layer& layer) const { return head_bytes() * layer.kv_heads; }
  std::size_t kv_page_bytes() const {
    std::size_t bytes = 0;
    for (const Layer& layer : layers) bytes += 2 * key_bytes(layer);
    return bytes;
  }

  // Bytes of weights that a step reads if all experts are taken: all but the embeddings, of which it reads a few rows.
  std::size_t step_bytes() const {
    std::size_t bytes = head.nbytes() + sizeof(float) * hidden;
    for (const Layer& layer : layers) {
      for (const Linear& slot : layer.slots) bytes += slot.data ? slot.nbytes() : 0;
      for (const Pieces* pieces : {&layer.experts.gate, &layer.experts.up, &layer.experts.down})
        bytes += pieces->nbytes();
      for (const float* norm : {layer.attention_norm, layer.mlp_norm, layer.attention_post_norm, layer.mlp_post_norm})
        bytes += norm ? sizeof(float) * hidden : 0;
      for (const float* norm : {layer.query_norm, layer.key_norm}) bytes += norm ? sizeof(float) * head_dim : 0;
      if (layer.experts.active) bytes += layer.experts.first.nbytes() + layer.experts.second.nbytes();
      if (layer.experts.down_bias) bytes += sizeof(float) * hidden;
    }
    return bytes;
  }

  // Of a layer, the bytes of weights of which a row reads those of the experts that it takes.
  std::size_t expert_bytes(const Layer& layer) const {
    if (layer.experts.count == 0) return 0;
    const std::size_t gates = layer.experts.active ? layer.experts.gate.nbytes() : 0;  // a threshold looks at all gates
    return gates + layer.experts.up.nbytes() + layer.experts.down.nbytes();
  }
};

// y += scale * up f(down x), f that of the kind; the factors in u8, f16 or f32.
struct Bypass {
  int layer = 0;
  int slot = 0;
  Linear down;
  Linear up;
  float scale = 1;
  const BypassKind* kind = nullptr;
};

struct Adapter {
  std::vector<Bypass> bypasses;                // by layer and slot
  std::vector<std::int32_t> first;             // [layers * kSlots + 1] into them
  int widest = 0;                              // sum of ranks at one slot, each in whole blocks of kBlock, at most

  std::size_t nbytes() const {  // of all factors
    std::size_t bytes = 0;
    for (const Bypass& bypass : bypasses) bytes += bypass.down.nbytes() + bypass.up.nbytes();
    return bytes;
  }
};

// Sequences' rows stand one after the other; a sequence's rows are consecutive positions.
struct Batch {
  int rows = 0;
  int sequences = 0;
  const std::int32_t* tokens = nullptr;          // [rows]
  const std::int32_t* first_row = nullptr;       // [sequences + 1]
  const std::int32_t* first_position = nullptr;  // [sequences]
  const std::int32_t* first_page = nullptr;      // [sequences + 1] into pages
  const std::int32_t* pages = nullptr;
  const std::int32_t* first_mix = nullptr;       // [sequences + 1] into the next two
  const std::int32_t* mix_adapter = nullptr;     // index into adapters
  const float* mix_weight = nullptr;
  std::vector<const Adapter*> adapters;
  int wanted_count = 0;
  const std::int32_t* wanted = nullptr;          // [wanted_count] rows whose last hidden states go out
  bool float_activations = false;
  std::uint8_t* arena = nullptr;
  std::size_t page_bytes = 0;
};

// Writes hidden states after the final norm [wanted_count][Model::hidden], which the head makes logits of.
void run_step(const Model& model, const Batch& batch, const Kernels& kernels, Team& team, float* states);

// One row of a linear map as floats: an embedding.
void read_row(const Linear& w, int row, float* out);

}  // namespace regraft
