// Which thread of a block runs next.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simt/emulator.h"

namespace bnbx::simt {

// Threads are lanes of waves. The lanes of a wave go on together when none of them can run any
// more, as in the hardware, but in the order of the Way.
class Schedule {
 public:
  // All threads of a block can run.
  void release_all(int threads, const Way& way) {
    wave_ = way.wave;
    order_ = way.order;
    waves_ = 0;
    for (int first = 0; first < threads; first += wave_) {
      ready_[first / wave_] = lanes(std::min(wave_, threads - first));
      released_[first / wave_] = 0;
      waves_ |= uint64_t{1} << first / wave_;
    }
  }

  // A thread that can run, or -1.
  int next() {
    if (waves_ == 0) return -1;
    const int wave = choose(waves_);
    return wave * wave_ + choose(ready_[wave]);
  }

  // `thread`, which has run, waits or has ended.
  void stop(int thread) {
    const int wave = thread / wave_;
    ready_[wave] &= ~(uint64_t{1} << thread % wave_);
    if (ready_[wave] == 0) go_on(wave);
  }

  // What this group has waited for has come.
  void release_group(int group) {
    const int wave = group * kLanes / wave_;
    released_[wave] |= lanes(kLanes) << group * kLanes % wave_;
    if (ready_[wave] == 0) go_on(wave);
  }

 private:
  static uint64_t lanes(int count) { return ~uint64_t{0} >> (64 - count); }

  void go_on(int wave) {
    ready_[wave] = released_[wave];
    released_[wave] = 0;
    const uint64_t bit = uint64_t{1} << wave;
    waves_ = ready_[wave] != 0 ? waves_ | bit : waves_ & ~bit;
  }

  // One of the bits that are set.
  int choose(uint64_t bits) {
    switch (order_) {
      case Way::Order::kAscending: return __builtin_ctzll(bits);
      case Way::Order::kDescending: return 63 - __builtin_clzll(bits);
      case Way::Order::kShuffled: break;
    }
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    const int from = static_cast<int>(random_ >> 58);
    const uint64_t turned = bits >> from | bits << (64 - from) % 64;
    return (__builtin_ctzll(turned) + from) % 64;
  }

  int wave_ = kLanes;
  Way::Order order_ = Way::Order::kAscending;
  uint64_t waves_ = 0;  // those with lanes that can run
  uint64_t ready_[kMaxThreads / kLanes] = {};
  uint64_t released_[kMaxThreads / kLanes] = {};
  uint64_t random_ = 1;
};

}  // namespace bnbx::simt
