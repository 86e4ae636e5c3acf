#include "expert_mlp.hpp"

#include <algorithm>
#include <cmath>

namespace regraft {
namespace {

int widest(const Model& model) {
  int width = 0;
  for (const Layer& layer : model.layers)
    if (layer.experts.count) width = std::max(width, layer.mlp);
  return width;
}

int most_scores(const Model& model) {
  int count = 0;
  for (const Layer& layer : model.layers) count = std::max(count, padded(layer.experts.count, kBlock));
  return count;
}

// A linear of which tiles [first, last) are read before those of `next`, which no prefetcher foresees: while its codes are
// read the others are asked for.
Linear before(Linear w, const Linear& next, int first, int last) {
  prefetch_scales(next, first, last);
  w.ahead = next.data - w.data;
  return w;
}
Linear before(const Linear& w, const Linear& next) { return before(w, next, 0, next.tiles()); }

}  // namespace

ExpertMlp::ExpertMlp(const Model& model, const Batch& batch, const Kernels& kernels, Team& team, Linears& linears)
    : model_(model), batch_(batch), kernels_(kernels), team_(team), linears_(linears), activated_(widest(model)) {
  const std::size_t rows = batch.rows, width = widest(model), scores = most_scores(model);
  if (width == 0) return;
  routed_.resize(rows * scores), scores_.resize(rows * scores);
  gate_.resize(rows * width), up_.resize(rows * width);
  shares_.resize(rows * kShares * padded(model.hidden, kBlock));
}

// The router's scores of `count` rows from `row` on.
void ExpertMlp::route(int row, int count, int thread) {
  const Experts& experts = this->experts();
  const int stride = experts.second.in;
  const std::size_t begin = static_cast<std::size_t>(row) * at_.width, place = static_cast<std::size_t>(row) * stride;
  float *hidden = routed_.data() + place, *scores = scores_.data() + place;
  std::fill(hidden, hidden + count * stride, 0.0f);
  kernels_.matmul(experts.first, linears_.rows(at_.x + begin, begin, count, at_.width), {hidden, stride}, 0, experts.first.tiles(),
                  linears_.scratch(thread));
  kernels_.tanh(hidden, count * stride);
  kernels_.matmul(experts.second, {count, hidden, stride}, {scores, stride}, 0, experts.second.tiles(), linears_.scratch(thread));
}

// What the router's scores, or else the gates, take.
void ExpertMlp::take() {
  const Experts& experts = this->experts();
  if (experts.active) return take_highest(experts, scores_.data(), experts.second.in, batch_.rows, taken_);
  take_all(experts, batch_.rows, taken_);
  rise(0, 1);
  sum_gates();
  take_above(experts, scores_.data(), batch_.rows, taken_);
}

// Of each row and expert, the sum of its gates, absolute.
void ExpertMlp::sum_gates() {
  const Experts& experts = this->experts();
  const std::vector<float> ones(experts.size, 1.0f);
  team_.run(batch_.rows, [&](int row, int) {
    std::vector<float> gates(experts.size);
    for (int e = 0; e < experts.count; ++e) {
      std::copy_n(gate(row) + e * experts.size, experts.size, gates.data());
      activate(gates.data(), ones.data());
      float sum = 0;
      for (float g : gates) sum += std::abs(g);
      scores_[static_cast<std::size_t>(row) * experts.count + e] = sum;
    }
  });
}

void ExpertMlp::compute() {
  take();
  const int from = experts().active ? 0 : 1;  // a threshold has the gates by now
  if (batch_.rows == 1) return compute_one_row(from);
  rise(from, 2);
  linears_.enter(at_.layer, gate_.data(), layer().mlp, {{kDown, at_.y, at_.y_width}}, [&](int row) {
    const Experts& experts = this->experts();
    for (int e = 0; e < experts.count; ++e)
      if (taken_.is_taken[static_cast<std::size_t>(row) * experts.count + e]) activate(gate(row) + e * experts.size, up(row) + e * experts.size);
    clear_what_is_not_taken(row);
  });
  fall();
}

// An expert's gates, times its ups.
void ExpertMlp::activate(float* gate, const float* up) const {
  const auto kernel = model_.activation == Activation::silu ? kernels_.silu_mul : kernels_.gelu_tanh_mul;
  kernel(gate, up, experts().size);
}

void ExpertMlp::clear_what_is_not_taken(int row) {
  const Experts& experts = this->experts();
  for (int e = 0; e < experts.count; ++e)
    if (!taken_.is_taken[static_cast<std::size_t>(row) * experts.count + e]) std::fill_n(gate(row) + e * experts.size, experts.size, 0.0f);
}

// Parts [from, to) of gate and up, for the experts that are taken.
void ExpertMlp::rise(int from, int to) {
  const Pieces* pieces[] = {&experts().gate, &experts().up};
  const int count = static_cast<int>(taken_.experts.size());
  const int chunk = std::max(1, (count + team_.size() - 1) / team_.size());  // smaller ones would seldom come out even
  team_.run((count + chunk - 1) / chunk, [&](int task, int thread) {
    const int end = std::min(count, (task + 1) * chunk);
    for (int i = task * chunk; i < end; ++i)
      for (int p = from; p < to; ++p) {
        Linear w = (*pieces[p])[taken_.experts[i].number];
        if (p + 1 < to)
          w = before(w, (*pieces[p + 1])[taken_.experts[i].number]);
        else if (i + 1 < end)
          w = before(w, (*pieces[from])[taken_.experts[i + 1].number]);
        rise_by(p, taken_.experts[i], w, thread);
      }
  });
}

// An expert's part of gate (0) or up (1), for the rows that take it.
void ExpertMlp::rise_by(int part, const Taken::Expert& expert, const Linear& w, int thread) {
  const Part whole = parts()[part];
  const int first = expert.number * w.tiles(), last = first + w.tiles();
  for (const Taken::Run& run : taken_.of(expert)) {
    const std::size_t begin = static_cast<std::size_t>(run.first) * at_.width;
    float* y = whole.y + static_cast<std::size_t>(run.first) * whole.stride + kTile * first;
    kernels_.matmul(w, linears_.rows(at_.x + begin, begin, run.count, at_.width), {y, whole.stride}, 0, w.tiles(), linears_.scratch(thread));
    for (int row = run.first; row < run.first + run.count; ++row)
      linears_.expand_row(at_.layer, row, whole, part, first, last, linears_.scratch(thread));
  }
}

// One row alone, as when a sequence decodes: each of its experts from gate to down in one go, so that its weights are read
// as one piece and no thread waits for the others in between.
void ExpertMlp::compute_one_row(int from) {
  const int tasks = std::min(team_.size(), kShares);
  team_.run(tasks, [&](int task, int thread) {
    const int first = task * kShares / tasks, last = (task + 1) * kShares / tasks;
    std::fill(share(0, first), share(0, last), 0.0f);
    const auto share_of = [&](std::size_t i) { return taken_.runs[taken_.experts[i].first_run].share; };
    for (std::size_t i = 0; i < taken_.experts.size() && share_of(i) < last; ++i) {
      if (share_of(i) < first) continue;
      const bool goes_on = i + 1 < taken_.experts.size() && share_of(i + 1) < last;
      compute_alone(taken_.experts[i], goes_on ? &taken_.experts[i + 1] : nullptr, from, thread);
    }
  });
  add_shares(0, 0, model_.hidden / kTile);
  if (linears_.acts_on(at_.layer, kDown)) add_bypasses_of_down();
}

// An expert that the only row takes; `next` is the one after it.
void ExpertMlp::compute_alone(const Taken::Expert& expert, const Taken::Expert* next, int from, int thread) {
  const Experts& experts = this->experts();
  const auto piece = [&](const Pieces& pieces) {
    const Linear w = pieces[expert.number];
    return next ? before(w, pieces[next->number]) : w;
  };
  if (from == 0) rise_by(0, expert, piece(experts.gate), thread);
  rise_by(1, expert, piece(experts.up), thread);
  const std::size_t begin = static_cast<std::size_t>(expert.number) * experts.size;
  float* x = gate(0) + begin;
  activate(x, up(0) + begin);
  linears_.quantize_to(activated_, x, begin, experts.size);
  const Rows rows = linears_.rows_of(activated_, x, begin, 1, layer().mlp);
  const Out out{share(0, taken_.runs[expert.first_run].share), at_.y_width, nullptr, true};
  const Linear down = piece(experts.down);
  kernels_.matmul(down, rows, out, 0, down.tiles(), linears_.scratch(thread));
}

// What adapters add to down for the only row, whose sum is there.
void ExpertMlp::add_bypasses_of_down() {
  const Part down{kDown, at_.y, at_.y_width};
  linears_.enter(at_.layer, gate_.data(), layer().mlp, {down}, [&](int row) { clear_what_is_not_taken(row); });
  const int tiles = model_.hidden / kTile, chunk = (tiles + team_.size() - 1) / team_.size();
  team_.run((tiles + chunk - 1) / chunk, [&](int task, int thread) {
    linears_.expand(at_.layer, down, 0, task * chunk, std::min(tiles, (task + 1) * chunk), linears_.scratch(thread));
  });
}

// Down, for all rows: each thread some of the columns of all experts.
void ExpertMlp::fall() {
  const Pieces& pieces = experts().down;
  const Part down{kDown, at_.y, at_.y_width};
  const int size = experts().size, width = layer().mlp;
  const int tiles = model_.hidden / kTile, tasks = kTasksPerThread * team_.size(), chunk = (tiles + tasks - 1) / tasks;
  team_.run((tiles + chunk - 1) / chunk, [&](int task, int thread) {
    const int first = task * chunk, last = std::min(tiles, first + chunk);
    for (int row = 0; row < batch_.rows; ++row)
      for (int number = 0; number < kShares; ++number) std::fill(share(row, number) + first * kTile, share(row, number) + last * kTile, 0.0f);
    for (std::size_t i = 0; i < taken_.experts.size(); ++i) {
      const Taken::Expert& expert = taken_.experts[i];
      Linear w = pieces[expert.number];
      if (i + 1 < taken_.experts.size()) w = before(w, pieces[taken_.experts[i + 1].number], first, last);
      for (const Taken::Run& run : taken_.of(expert)) {
        const std::size_t begin = static_cast<std::size_t>(run.first) * width + static_cast<std::size_t>(expert.number) * size;
        const Out out{share(run.first, run.share), kShares * at_.y_width, nullptr, true};
        kernels_.matmul(w, linears_.rows(gate_.data() + begin, begin, run.count, width), out, first, last, linears_.scratch(thread));
      }
    }
    for (int row = 0; row < batch_.rows; ++row) add_shares(row, first, last);
    linears_.expand(at_.layer, down, 0, first, last, linears_.scratch(thread));
  });
}

// Tiles [first, last) of a row's sum.
void ExpertMlp::add_shares(int row, int first, int last) {
  const int begin = first * kTile, count = (last - first) * kTile;
  float* y = at_.y + static_cast<std::size_t>(row) * at_.y_width + begin;
  if (const float* bias = experts().down_bias)
    std::copy_n(bias + begin, count, y);
  else
    std::fill_n(y, count, 0.0f);
  for (int number = 0; number < kShares; ++number) kernels_.add(y, share(row, number) + begin, count);
}

}  // namespace regraft
