// A fixed team of threads that runs loops together. The caller is one of them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace regraft {

class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // body(task, thread) for every task in [0, count), in any order; returns when all are done. Bodies must not throw.
  template <class Body>
  void run(int count, const Body& body) {
    if (count <= 1 || workers_.empty()) {
      for (int task = 0; task < count; ++task) body(task, 0);
      return;
    }
    start(count, [](const void* context, int task, int thread) { (*static_cast<const Body*>(context))(task, thread); }, &body);
  }

 private:
  using Call = void (*)(const void* context, int task, int thread);

  void start(int count, Call call, const void* context);
  void take_tasks(unsigned loop, int thread);
  void work(int thread);
  unsigned wait_for_loop(unsigned seen);
  unsigned current_loop() const { return static_cast<unsigned>(left_ >> 32); }
  static std::uint64_t first_of(unsigned loop) { return static_cast<std::uint64_t>(loop) << 32; }

  std::vector<std::thread> workers_;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  int count_ = 0;
  // The loop's number, and below it how many of its tasks nobody has taken. Both are exchanged at once: a thread that comes
  // late takes no task of a loop that it does not know, and a loop ends with its tasks, whoever has slept through it.
  std::atomic<std::uint64_t> left_{0};
  std::atomic<int> done_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace regraft
