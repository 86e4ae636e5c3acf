#include "team.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace regraft {
namespace {

// A step is hundreds of short loops, a few microseconds apart: a worker that slept between them would never be in time.
// After about a fifth of a millisecond without a loop it does sleep.
constexpr int kSpins = 1 << 13;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Team::Team(int threads) {
  for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

Team::~Team() {
  stop_ = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++loop_;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Team::start(int count, Call call, const void* context) {
  call_ = call, context_ = context, count_ = count;
  next_ = 0;
  busy_ = static_cast<int>(workers_.size());
  ++loop_;
  if (sleepers_ > 0) {
    std::lock_guard<std::mutex> lock(mutex_);  // none is between its last look at loop_ and its sleep
    wake_.notify_all();
  }
  take_tasks(0);
  for (int spins = 0; busy_ > 0; ++spins)
    if (spins % kSpins == kSpins - 1)
      std::this_thread::yield();  // more threads than cores: let the others end
    else
      relax();
}

void Team::take_tasks(int thread) {
  for (int task = next_++; task < count_; task = next_++) call_(context_, task, thread);
}

unsigned Team::wait_for_loop(unsigned seen) {
  for (int spins = 0; spins < kSpins; ++spins) {
    if (const unsigned now = loop_; now != seen) return now;
    relax();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  ++sleepers_;
  wake_.wait(lock, [&] { return loop_ != seen; });
  --sleepers_;
  return loop_;
}

void Team::work(int thread) {
  for (unsigned seen = 0;;) {
    seen = wait_for_loop(seen);
    if (stop_) return;
    take_tasks(thread);
    --busy_;
  }
}

}  // namespace regraft
