// An MLP that is cut in experts: of each row those are computed that it takes.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "experts.hpp"
#include "linears.hpp"
#include "model.hpp"

namespace regraft {

class ExpertMlp {
 public:
  ExpertMlp(const Model& model, const Batch& batch, const Kernels& kernels, Team& team, Linears& linears);

  // y = the layer's MLP of x, rows of `width` and of `y_width` floats; `prepare` makes a row of x.
  template <class Prepare>
  void apply(int layer, const float* x, int width, float* y, int y_width, const Prepare& prepare) {
    at_ = {layer, x, width, y, y_width};
    const auto parts = this->parts();
    linears_.enter(layer, x, width, {parts.begin(), parts.end()}, prepare, [&](int row, int count, int thread) {
      if (experts().active) route(row, count, thread);
    });
    compute();
  }

 private:
  using Part = Linears::Part;

  // The layer at hand, its input and its result.
  struct Place {
    int layer;
    const float* x;
    int width;
    float* y;
    int y_width;
  };

  const Layer& layer() const { return model_.layers[at_.layer]; }
  const Experts& experts() const { return layer().experts; }
  std::array<Part, 2> parts() { return {{{kGate, gate_.data(), layer().mlp}, {kUp, up_.data(), layer().mlp}}}; }
  float* gate(int row) { return gate_.data() + static_cast<std::size_t>(row) * layer().mlp; }
  float* up(int row) { return up_.data() + static_cast<std::size_t>(row) * layer().mlp; }
  float* share(int row, int number) { return shares_.data() + (static_cast<std::size_t>(row) * kShares + number) * at_.y_width; }

  void route(int row, int count, int thread);
  void compute();
  void take();
  void sum_gates();
  void activate(float* gate, const float* up) const;
  void clear_what_is_not_taken(int row);
  void rise(int from, int to);
  void rise_by(int part, const Taken::Expert& expert, const Linear& w, int thread);
  void compute_one_row(int from);
  void compute_alone(const Taken::Expert& expert, const Taken::Expert* next, int from, int thread);
  void add_bypasses_of_down();
  void fall();
  void add_shares(int row, int first, int last);

  const Model& model_;
  const Batch& batch_;
  const Kernels& kernels_;
  Team& team_;
  Linears& linears_;
  Place at_{};
  Taken taken_;
  std::vector<float> routed_, scores_;  // [rows][count, padded]; of a threshold, sums of gates [rows][count]
  std::vector<float> gate_, up_;        // [rows][mlp]
  std::vector<float> shares_;           // [rows][kShares][hidden, padded]
  Quantized activated_;                 // of one row
};

}  // namespace regraft
