#include "simt/emulator.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "simt/fiber.h"
#include "simt/language.h"
#include "simt/schedule.h"
#include "simt/shared.h"

namespace bnbx::simt {
namespace {

// Unwinds the threads of a block in which another one has failed.
struct Cancelled {};

struct Thread {
  Fiber* fiber = nullptr;  // null before it begins and after it has ended
  Place place;             // at which it waits
  void* operands = nullptr;
  Copies copies;
};

bool all_at(const Place& place, const Thread* threads, int count) {
  return std::all_of(threads, threads + count,
                     [&](const Thread& thread) { return thread.place == place; });
}

std::string to_string(const Shape& shape) {
  return "(" + std::to_string(shape.x) + ", " + std::to_string(shape.y) + ", " +
         std::to_string(shape.z) + ")";
}

std::string to_string(const Place& place) {
  return std::string(place.operation) + " (" + place.file + ":" + std::to_string(place.line) + ")";
}

class Emulator {
 public:
  void run(Shape blocks, int count, int64_t shared_bytes, const std::function<void()>& body);
  void wait_for_block(Place place);
  void meet_group(Place place, void* operands, Together together);
  std::string position() const;

  Thread& thread() { return threads_[current_]; }
  int lane() const { return current_ % kLanes; }
  SharedMemory& shared() { return *shared_; }

 private:
  static void work();
  void run_block();
  void finish_thread();
  void go_on(Fiber& from);
  Fiber& fiber_of(int thread);
  void wait(Fiber& own);
  void cancel();
  std::string deadlock() const;

  Thread threads_[kMaxThreads];
  int count_ = 0;    // threads of a block
  int current_ = 0;  // the thread that is running
  int ended_ = 0;
  int at_barrier_ = 0;
  int met_[kMaxThreads / kLanes] = {};  // lanes of each group that wait for the others
  Schedule schedule_;
  SharedMemory* shared_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr failure_;
  bool cancelled_ = false;
  Fiber launcher_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
};

Emulator& emulator() {
  static Emulator only;
  return only;
}

void check_launch(Shape blocks, int threads, int64_t shared_bytes) {
  std::string problem;
  if (threads < 1 || threads > kMaxThreads) {
    problem = "1 to 1024 threads, got " + std::to_string(threads);
  } else if (blocks.x - 1 >= 0x7fffffff || blocks.y - 1 >= 65535 || blocks.z - 1 >= 65535) {
    problem = "at least one block, at most 2^31 - 1 by 65535 by 65535, got " + to_string(blocks);
  } else if (shared_bytes < 0 || shared_bytes > kMaxDynamicShared) {
    problem = "at most " + std::to_string(kMaxDynamicShared) + " bytes of shared memory, got " +
              std::to_string(shared_bytes);
  }
  if (!problem.empty()) throw std::runtime_error("launch: expected " + problem);
}

void Emulator::run(Shape blocks, int count, int64_t shared_bytes,
                   const std::function<void()>& body) {
  check_launch(blocks, count, shared_bytes);
  SharedMemory memory(shared_bytes, way().garbage);
  shared_ = &memory;
  body_ = &body;
  count_ = count;
  blockDim = {static_cast<uint32_t>(count), 1, 1};
  gridDim = blocks;
  const int64_t in_plane = int64_t{blocks.x} * blocks.y, total = in_plane * blocks.z;
  for (int64_t i = 0; i < total; ++i) {
    const int64_t block = way().order == Way::Order::kDescending ? total - 1 - i : i;
    blockIdx = {static_cast<uint32_t>(block % blocks.x),
                static_cast<uint32_t>(block / blocks.x % blocks.y),
                static_cast<uint32_t>(block / in_plane)};
    memory.renew();
    run_block();
  }
}

void Emulator::run_block() {
  schedule_.release_all(count_, way());
  ended_ = at_barrier_ = 0;
  std::fill_n(met_, kMaxThreads / kLanes, 0);
  go_on(launcher_);
  if (failure_ == nullptr && ended_ < count_) {
    failure_ = std::make_exception_ptr(std::runtime_error(deadlock()));
  }
  if (failure_ == nullptr) return;
  cancel();
  std::rethrow_exception(std::exchange(failure_, nullptr));
}

// Unwinds the threads that wait.
void Emulator::cancel() {
  cancelled_ = true;
  for (int i = 0; i < count_; ++i) {
    if (threads_[i].fiber != nullptr) launcher_.switch_to(fiber_of(i));
  }
  cancelled_ = false;
}

// Leaves a fiber for that of the next thread, or for the launcher if there is none.
void Emulator::go_on(Fiber& from) {
  const int next = failure_ == nullptr && !cancelled_ ? schedule_.next() : -1;
  Fiber& to = next < 0 ? launcher_ : fiber_of(next);
  if (&to != &from) from.switch_to(to);
}

// The fiber of a thread, which is about to run.
Fiber& Emulator::fiber_of(int thread) {
  current_ = thread;
  threadIdx = {static_cast<uint32_t>(thread), 0, 0};
  Fiber*& fiber = threads_[thread].fiber;
  if (fiber == nullptr) {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>(&Emulator::work));
      idle_.push_back(fibers_.back().get());
    }
    fiber = idle_.back();
    idle_.pop_back();
    threads_[thread].copies.pending.clear();
    threads_[thread].copies.batch = 0;
  }
  return *fiber;
}

// What each fiber does: one thread after another. A thread that never waits leaves its fiber to the
// next one, without a switch.
void Emulator::work() {
  Emulator& self = emulator();
  for (;;) {
    try {
      (*self.body_)();
      self.finish_thread();
    } catch (const Cancelled&) {
    } catch (...) {
      self.failure_ = std::current_exception();
    }
    Fiber* own = std::exchange(self.thread().fiber, nullptr);
    ++self.ended_;
    self.schedule_.stop(self.current_);
    self.idle_.push_back(own);
    self.go_on(*own);
  }
}

void Emulator::finish_thread() {
  if (thread().copies.pending.empty()) return;
  throw std::runtime_error(position() + "ended without waiting for its asynchronous copies");
}

// Lets others run until what this thread waits for has come.
void Emulator::wait(Fiber& own) {
  go_on(own);
  if (cancelled_) throw Cancelled{};
}

// Nothing is wrong yet with a thread that waits elsewhere, or has ended: if that leaves the others
// waiting for ever, deadlock() says so.
void Emulator::wait_for_block(Place place) {
  Thread& own = thread();
  own.place = place;
  schedule_.stop(current_);
  ++at_barrier_;
  if (at_barrier_ == count_ && all_at(place, threads_, count_)) {
    at_barrier_ = 0;
    schedule_.release_all(count_, way());
  }
  wait(*own.fiber);
}

void Emulator::meet_group(Place place, void* operands, Together together) {
  Thread& own = thread();
  const int group = current_ / kLanes;
  own.place = place;
  own.operands = operands;
  schedule_.stop(current_);
  Thread* lanes = threads_ + group * kLanes;
  if (++met_[group] == kLanes && all_at(place, lanes, kLanes)) {
    void* all[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) all[lane] = lanes[lane].operands;
    together(all);
    met_[group] = 0;
    schedule_.release_group(group);
  }
  wait(*own.fiber);
}

std::string Emulator::position() const {
  return "block " + to_string(blockIdx) + ", thread " + std::to_string(current_) + ": ";
}

// Who waits where, when no thread can run.
std::string Emulator::deadlock() const {
  std::string report =
      "block " + to_string(blockIdx) + " of " + std::to_string(count_) + " threads: none can go on";
  std::vector<bool> told(count_);
  for (int first = 0; first < count_; ++first) {
    if (told[first]) continue;
    const Thread& one = threads_[first];
    int same = 0;
    for (int i = first; i < count_; ++i) {
      const Thread& other = threads_[i];
      if ((other.fiber == nullptr) != (one.fiber == nullptr)) continue;
      if (one.fiber != nullptr && !(other.place == one.place)) continue;
      told[i] = true;
      ++same;
    }
    report += "; " + std::to_string(same) + " from thread " + std::to_string(first) + " on " +
              (one.fiber == nullptr ? "have ended" : "wait at " + to_string(one.place));
  }
  return report;
}

const Way* chosen = &ways().front();

}  // namespace

const std::vector<Way>& ways() {
  // The garbage is NaN, or a large number, in every type of float.
  static const std::vector<Way> all = {
      {"warp32", 32, Way::Order::kAscending, false, 0xff},
      {"warp32_descending", 32, Way::Order::kDescending, true, 0x7e},
      {"warp32_shuffled", 32, Way::Order::kShuffled, false, 0x7e},
      {"warp64", 64, Way::Order::kAscending, true, 0xff},
  };
  return all;
}

const Way& way() { return *chosen; }

void use(const Way& way) { chosen = &way; }

void run(Shape blocks, int threads, int64_t shared_bytes, const std::function<void()>& thread) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  emulator().run(blocks, threads, shared_bytes, thread);
}

void wait_for_block(Place place) { emulator().wait_for_block(place); }

void meet_group(Place place, void* operands, Together together) {
  emulator().meet_group(place, operands, together);
}

int lane() { return emulator().lane(); }

void* shared_memory() { return emulator().shared().dynamic(); }

Copies& copies() { return emulator().thread().copies; }

void fail(Place place, const std::string& what) {
  throw std::runtime_error(emulator().position() + to_string(place) + ": " + what);
}

}  // namespace bnbx::simt
