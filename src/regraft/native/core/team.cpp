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
    left_ = first_of(current_loop() + 1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Team::start(int count, Call call, const void* context) {
  call_ = call, context_ = context, count_ = count;
  done_ = 0;
  const unsigned loop = current_loop() + 1;
  left_ = first_of(loop) + static_cast<unsigned>(count);
  if (sleepers_ > 0) {
    std::lock_guard<std::mutex> lock(mutex_);  // none is between its last look at left_ and its sleep
    wake_.notify_all();
  }
  take_tasks(loop, 0);
  for (int spins = 0; done_ < count; ++spins)
    if (spins % kSpins == kSpins - 1)
      std::this_thread::yield();  // more threads than cores: let the others end
    else
      relax();
}

void Team::take_tasks(unsigned loop, int thread) {
  std::uint64_t left = left_;
  while (left >> 32 == loop && static_cast<unsigned>(left) > 0) {
    if (!left_.compare_exchange_weak(left, left - 1)) continue;
    // The loop cannot end before this task has, so call_, context_ and count_ are its own.
    call_(context_, count_ - static_cast<int>(static_cast<unsigned>(left)), thread);
    ++done_;
    left = left_;
  }
}

unsigned Team::wait_for_loop(unsigned seen) {
  for (int spins = 0; spins < kSpins; ++spins) {
    if (const unsigned now = current_loop(); now != seen) return now;
    relax();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  ++sleepers_;
  wake_.wait(lock, [&] { return current_loop() != seen; });
  --sleepers_;
  return current_loop();
}

void Team::work(int thread) {
  for (unsigned seen = 0;;) {
    seen = wait_for_loop(seen);
    if (stop_) return;
    take_tasks(seen, thread);
  }
}

}  // namespace regraft
