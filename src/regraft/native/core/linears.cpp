#include "linears.hpp"

#include <algorithm>
#include <array>

namespace regraft {
namespace {

constexpr int kRunRows = 4;    // rows that are prepared together: as many as the kernels take in one pass
constexpr int kMostParts = 3;  // linears of one input: query, key and value
constexpr int kLine = 64;

void prefetch(const void* begin, std::size_t bytes) {  // into the second cache, as the kernels do
#if defined(__GNUC__) || defined(__clang__)
  for (std::size_t at = 0; at < bytes; at += kLine) __builtin_prefetch(static_cast<const std::uint8_t*>(begin) + at, 0, 2);
#endif
}

bool same_mix(const Run& a, const Run& b) {
  return std::equal(a.mix.begin(), a.mix.end(), b.mix.begin(), b.mix.end(),
                    [](const Run::Member& x, const Run::Member& y) { return x.group == y.group && x.weight == y.weight; });
}

struct Range {
  const Bypass* begin;
  const Bypass* end;
};

Range bypasses(const Adapter& adapter, int layer, int slot) {
  const int key = layer * kSlots + slot;
  return {adapter.bypasses.data() + adapter.first[key], adapter.bypasses.data() + adapter.first[key + 1]};
}

}  // namespace

void prefetch_scales(const Linear& w, int first, int last) {
  const std::size_t begin = static_cast<std::size_t>(first) * w.groups() * kTile, count = static_cast<std::size_t>(last - first) * w.groups() * kTile;
  if (w.scale) prefetch(w.scale + begin, count * sizeof(Half));
  if (w.zero) prefetch(w.zero + begin, count);
  if (w.minimum) prefetch(w.minimum + begin, count * sizeof(Half));
}

void prefetch_tiles(const Linear& w, int first, int last) {
  prefetch_scales(w, first, last);
  prefetch(w.data + first * w.tile_bytes(), (last - first) * w.tile_bytes());
}

Linears::Linears(const Model& model, const Batch& batch, const Kernels& kernels, Team& team, int widest)
    : model_(model), batch_(batch), kernels_(kernels), team_(team), quantized_(static_cast<std::size_t>(batch.rows) * widest) {
  const std::size_t bytes = static_cast<std::size_t>(kMostTiles) * kTile * widest + kAlignment;
  scratch_.assign(team.size(), std::vector<std::uint8_t>(bytes));
  make_groups();
}

void Linears::make_groups() {
  for (const Adapter* adapter : batch_.adapters) groups_.push_back({adapter, {}, 0, {}, Quantized(), padded(adapter->widest, kBlock)});
  run_of_.resize(batch_.rows);
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
void Linears::make_runs(int s) {
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

void Linears::leave(int layer, const float* x, int width, const std::vector<Part>& parts) {
  const Rows rows = this->rows(x, 0, batch_.rows, width);
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
    kernels_.matmul(model_.layers[layer].slots[part.slot], rows, out, first, last, scratch(thread));
    expand(layer, part, p, first, last, scratch(thread));
  });
}

bool Linears::acts_on(int layer, int slot) const {
  return std::any_of(groups_.begin(), groups_.end(), [&](const Group& group) {
    const Range range = bypasses(*group.adapter, layer, slot);
    return range.begin < range.end;
  });
}

// The `down` factors that follow: those of the linears whose first slot this is.
std::vector<const Linear*> Linears::next_downs(int layer, int slot) const {
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

// hidden = weight * scale * f(down x), for the rows of a run.
void Linears::shrink(int layer, const Rows& x, const std::vector<Part>& parts, const Run::Member& member, std::uint8_t* scratch) {
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

void Linears::activate(const Bypass& bypass, float weight, Group& group, std::size_t begin) const {
  float* hidden = group.hidden.data() + begin;
  const float factor = weight * bypass.scale;
  const int ranks = kTile * bypass.down.tiles(), width = padded(ranks, kBlock);
  if (bypass.kind->activate) (kernels_.*bypass.kind->activate)(hidden, ranks);
  for (int r = 0; r < ranks; ++r) hidden[r] *= factor;
  std::fill(hidden + ranks, hidden + width, 0.0f);  // of another layer's higher rank
  quantize_to(group.quantized, hidden, begin, width);
}

// y += up hidden, for the tiles [first, last) of a part.
void Linears::expand(int layer, const Part& part, int p, int first, int last, std::uint8_t* scratch) const {
  for (const Group& group : groups_)
    if (group.alone) expand(layer, group, part, p, 0, {group.alone, first, last}, {part.y, part.stride, group.rows.data(), true}, scratch);
  for (std::size_t i = num_alone_; i < runs_.size(); ++i) {
    const Run& run = runs_[i];
    const Out out{part.y + static_cast<std::ptrdiff_t>(run.first) * part.stride, part.stride, nullptr, true};
    for (const Run::Member& member : run.mix)
      expand(layer, groups_[member.group], part, p, member.first, {run.count, first, last}, out, scratch);
  }
}

// The same for rows of one group, from its row `row` on.
void Linears::expand(int layer, const Group& group, const Part& part, int p, int row, Stretch stretch, const Out& out, std::uint8_t* scratch) const {
  const Range range = bypasses(*group.adapter, layer, part.slot);
  std::size_t begin = group.begin(p, row);
  for (const Bypass* bypass = range.begin; bypass < range.end; begin += padded(bypass->down.out, kBlock), ++bypass) {
    const Rows rows = rows_of(group.quantized, group.hidden.data() + begin, begin, stretch.rows, group.stride);
    kernels_.matmul(bypass->up, rows, out, stretch.first, stretch.last, scratch);
  }
}

// The same for one row.
void Linears::expand_row(int layer, int row, const Part& part, int p, int first, int last, std::uint8_t* scratch) const {
  const Run& run = runs_[run_of_[row]];
  const Out out{part.y + static_cast<std::ptrdiff_t>(row) * part.stride, part.stride, nullptr, true};
  for (const Run::Member& member : run.mix)
    expand(layer, groups_[member.group], part, p, member.first + row - run.first, {1, first, last}, out, scratch);
}

}  // namespace regraft
