// optimizer_update_32bit and optimizer_update_blockwise.
#include <algorithm>

#include "check.h"
#include "common/rounding.h"

namespace bnbx::test {
namespace {

constexpr int64_t kSizes[] = {0, 1, 7, 255, 256, 257, 9001};

std::vector<float> signed_map() {
  std::vector<float> out(256);
  for (int i = 0; i < 256; ++i) {
    const float x = static_cast<float>(i) / 127.5f - 1.0f;
    out[i] = x * x * x;
  }
  return out;
}

std::vector<float> unsigned_map() {
  std::vector<float> out(256);
  for (int i = 0; i < 256; ++i) {
    const float x = static_cast<float>(i + 1) / 256.0f;  // no zero: float16 would overflow
    out[i] = x * x * x;
  }
  return out;
}

// The map of bnbx.codebooks.create_dynamic_map: decades of evenly spaced entries, 0 and 1.
std::vector<float> dynamic_map(bool is_signed) {
  std::vector<float> out{0.0f, 1.0f};
  for (int decade = 0; decade < 7; ++decade) {
    const int entries = (is_signed ? 1 : 2) << decade;
    for (int i = 0; i < entries; ++i) {
      const double middle = 0.1 + 0.9 * (i + 0.5) / entries;
      const auto x = static_cast<float>(middle * std::pow(10.0, decade - 6));
      out.push_back(x);
      if (is_signed) out.push_back(-x);
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

constexpr OptimizerRule kRules[] = {OptimizerRule::kAdam,     OptimizerRule::kMomentum,
                                    OptimizerRule::kNesterov, OptimizerRule::kRMSprop,
                                    OptimizerRule::kAdagrad,  OptimizerRule::kLion,
                                    OptimizerRule::kAdEMAMix};

int states_of(OptimizerRule rule) {
  return rule == OptimizerRule::kAdEMAMix ? 3 : rule == OptimizerRule::kAdam ? 2 : 1;
}

// Whether the first state is one of squares.
bool squares(OptimizerRule rule) {
  return rule == OptimizerRule::kRMSprop || rule == OptimizerRule::kAdagrad;
}

// Parameter and states of one element, and the direction of its update.
struct Element {
  double p, states[3], direction;
};

double mixed(double beta, double old, double g) { return beta * old + (1.0 - beta) * g; }

double corrected(double average, double beta, int64_t step) {
  return average / (1.0 - std::pow(beta, static_cast<double>(step)));
}

// Changes the states and returns the direction, as the papers in common/optimizers.h say.
double direction(OptimizerRule rule, Element& x, double g, const Hyperparameters& h, int64_t step) {
  double& m = x.states[0];
  double& v = x.states[1];
  switch (rule) {
    case OptimizerRule::kAdam:
    case OptimizerRule::kAdEMAMix: {
      m = mixed(h.beta1, m, g);
      v = mixed(h.beta2, v, g * g);
      double numerator = corrected(m, h.beta1, step);
      if (rule == OptimizerRule::kAdEMAMix) {
        x.states[2] = mixed(h.beta3, x.states[2], g);
        numerator += h.alpha * x.states[2];
      }
      return numerator / (std::sqrt(corrected(v, h.beta2, step)) + h.eps);
    }
    case OptimizerRule::kMomentum:
    case OptimizerRule::kNesterov:
      m = step == 1 ? g : h.beta1 * m + (1.0 - h.beta2) * g;
      return rule == OptimizerRule::kNesterov ? g + h.beta1 * m : m;
    case OptimizerRule::kRMSprop: m = mixed(h.beta1, m, g * g); break;
    case OptimizerRule::kAdagrad: m += g * g; break;
    case OptimizerRule::kLion: {
      const double sign = mixed(h.beta1, m, g);
      m = mixed(h.beta2, m, g);
      return sign > 0.0 ? 1.0 : sign < 0.0 ? -1.0 : 0.0;
    }
  }
  return g / (std::sqrt(m) + h.eps);
}

Element updated(OptimizerRule rule, Element x, double g, const Hyperparameters& h, int64_t step) {
  if (h.skip_zeros && g == 0.0) return x;
  const bool decoupled = rule == OptimizerRule::kAdam || rule == OptimizerRule::kLion ||
                         rule == OptimizerRule::kAdEMAMix;
  if (!decoupled) g += h.weight_decay * x.p;
  x.direction = direction(rule, x, g, h, step);
  if (decoupled) x.p *= 1.0 - h.lr * h.weight_decay;
  x.p -= h.lr * x.direction;
  return x;
}

template <class G, class P>
struct Parameter {
  std::vector<G> g;
  std::vector<P> p;
  std::vector<float> m, v, absmax1, absmax2;  // m and what codes it: twice, one after the other
  std::vector<uint8_t> codes1, codes2;
  std::vector<double> workspace;
  float unorm = 0.0f;
  int64_t step;

  Parameter(int64_t n, int64_t at_step)
      : g(random_normal<G>(n)),
        p(random_normal<P>(n)),
        m(random_positive(2 * n)),
        v(random_positive(n)),
        absmax1(random_positive(2 * blocks_of(n, kOptimizerBlocksize))),
        absmax2(random_positive(blocks_of(n, kOptimizerBlocksize))),
        codes1(random_bytes<uint8_t>(2 * n)),
        codes2(random_bytes<uint8_t>(n)),
        workspace(update_workspace(n)),
        step(at_step) {
    for (int64_t i = 0; i < n; i += 5) g[i] = rounded<G>(0.0f);
  }

  ParameterUpdate update(bool wide) {
    ParameterUpdate u;
    u.g = g.data();
    u.g_dtype = dtype_of<G>();
    u.p = p.data();
    u.p_dtype = dtype_of<P>();
    u.state1 = wide ? static_cast<void*>(m.data()) : codes1.data();
    u.state2 = wide ? static_cast<void*>(v.data()) : codes2.data();
    u.absmax1 = wide ? nullptr : absmax1.data();
    u.absmax2 = wide ? nullptr : absmax2.data();
    u.unorm = &unorm;
    u.workspace = workspace.data();
    u.numel = static_cast<int64_t>(p.size());
    u.step = step;
    return u;
  }

  // Sets the wide states to what the codes mean.
  void decode(const std::vector<float>& qmap1, const std::vector<float>& qmap2) {
    const size_t blocks = absmax2.size();
    for (size_t i = 0; i < p.size(); ++i) {
      const size_t block = i / kOptimizerBlocksize;
      m[i] = qmap1[codes1[i]] * absmax1[block];
      m[p.size() + i] = qmap1[codes1[p.size() + i]] * absmax1[blocks + block];
      v[i] = qmap2[codes2[i]] * absmax2[block];
    }
  }

  Element element(size_t i) const {
    return {number(p[i]), {number(m[i]), number(v[i]), number(m[p.size() + i])}, 0.0};
  }
};

template <class P>
bool parameter_is_close(P actual, const Element& before, const Element& after,
                        const Hyperparameters& h) {
  // The direction may be a sum that nearly cancels, of terms up to (1 + alpha) times a few.
  const double size = std::fabs(before.p) + std::fabs(after.p - before.p) + 8.0 * (1.0 + h.alpha);
  return close(actual, after.p, 8 * eps<float>() * size);
}

template <class G, class P>
std::vector<Parameter<G, P>> parameters() {
  std::vector<Parameter<G, P>> out;
  int64_t step = 1;
  for (int64_t n : kSizes) out.emplace_back(n, step++);
  return out;
}

template <class G, class P>
void test_32bit(OptimizerRule rule, const Hyperparameters& h) {
  auto all = parameters<G, P>();
  const auto before = all;
  std::vector<ParameterUpdate> updates;
  for (auto& parameter : all) updates.push_back(parameter.update(true));
  optimizer_update_32bit(rule, updates.data(), static_cast<int64_t>(updates.size()), h, nullptr);
  for (size_t j = 0; j < all.size(); ++j) {
    const size_t n = all[j].p.size();
    for (size_t i = 0; i < n; ++i) {
      const double g = number(before[j].g[i]) * h.gnorm_scale;
      const Element old = before[j].element(i);
      const Element expected = updated(rule, old, g, h, before[j].step);
      const Element now = all[j].element(i);
      CHECK(parameter_is_close(all[j].p[i], old, expected, h));
      for (int k = 0; k < states_of(rule); ++k) {
        const double size = std::fabs(old.states[k]) + std::fabs(expected.states[k]) + g * g + 1.0;
        CHECK(close(as_float(now.states[k]), expected.states[k], 8 * eps<float>() * size));
      }
    }
  }
}

// The codes of one block against the states they should hold, sums of terms up to `largest`.
void check_block(const std::vector<double>& states, const uint8_t* codes, float absmax,
                 const std::vector<float>& qmap, double largest) {
  double expected = 0.0;
  for (double state : states) expected = std::fmax(expected, std::fabs(state));
  CHECK(close(absmax, expected, 4 * eps<float>() * largest));
  if (expected * 1e4 < largest) return;  // next to nothing is left of the terms
  for (size_t i = 0; i < states.size(); ++i) {
    CHECK(is_nearest(number(qmap[codes[i]]), states[i] / expected, qmap.data(),
                     static_cast<int>(qmap.size())));
  }
}

template <class G, class P>
void test_8bit(OptimizerRule rule, const Hyperparameters& h, bool dynamic) {
  const auto qmap2 = dynamic ? dynamic_map(false) : unsigned_map();
  const auto qmap1 = squares(rule) ? qmap2 : dynamic ? dynamic_map(true) : signed_map();
  auto all = parameters<G, P>();
  for (auto& parameter : all) parameter.decode(qmap1, qmap2);
  const auto before = all;
  std::vector<ParameterUpdate> updates;
  for (auto& parameter : all) updates.push_back(parameter.update(false));
  optimizer_update_blockwise(rule, 8, updates.data(), static_cast<int64_t>(updates.size()),
                             qmap1.data(), states_of(rule) > 1 ? qmap2.data() : nullptr, h,
                             nullptr);
  for (size_t j = 0; j < all.size(); ++j) {
    const size_t n = all[j].p.size(), blocks = all[j].absmax2.size();
    for (size_t start = 0; start < n; start += kOptimizerBlocksize) {
      std::vector<double> states[3];
      double largest = 0.0;
      for (size_t i = start; i < std::min<size_t>(start + kOptimizerBlocksize, n); ++i) {
        const double g = number(before[j].g[i]) * h.gnorm_scale;
        const Element old = before[j].element(i);
        const Element expected = updated(rule, old, g, h, before[j].step);
        CHECK(parameter_is_close(all[j].p[i], old, expected, h));
        for (int k = 0; k < 3; ++k) {
          states[k].push_back(expected.states[k]);
          largest = std::fmax(largest, std::fabs(old.states[k]) + std::fabs(g) + g * g);
        }
      }
      const size_t block = start / kOptimizerBlocksize;
      const Parameter<G, P>& now = all[j];
      check_block(states[0], now.codes1.data() + start, now.absmax1[block], qmap1, largest);
      if (states_of(rule) > 1) {
        check_block(states[1], now.codes2.data() + start, now.absmax2[block], qmap2, largest);
      }
      if (states_of(rule) > 2) {
        check_block(states[2], now.codes1.data() + n + start, now.absmax1[blocks + block], qmap1,
                    largest);
      }
    }
  }
}

// The 16-entry maps, as ascending as the others.
std::vector<float> every_16th(const std::vector<float>& map) {
  std::vector<float> out(16);
  for (int i = 0; i < 16; ++i) out[i] = map[16 * i + 15];
  return out;
}

uint8_t code4(const std::vector<uint8_t>& packed, size_t i) {
  return static_cast<uint8_t>(i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15);
}

void test_4bit(OptimizerRule rule, const Hyperparameters& h) {
  const auto qmap1 = every_16th(squares(rule) ? unsigned_map() : signed_map());
  const auto qmap2 = every_16th(unsigned_map());
  const int64_t size = kOptimizerBlocksize4;
  for (int64_t n : {0, 1, 2, 127, 128, 129, 9001}) {
    Parameter<float, bfloat16> now(n, 3);
    const auto bytes = static_cast<size_t>(blocks_of(n, 2)),
               blocks = static_cast<size_t>(blocks_of(n, size));
    now.codes1.resize(2 * bytes);  // the slow average begins with a byte of its own
    now.codes2.resize(bytes);
    now.absmax1 = random_positive(2 * blocks_of(n, size));
    now.absmax2 = random_positive(blocks_of(n, size));
    const std::vector<uint8_t> slow(now.codes1.begin() + bytes, now.codes1.end());
    for (int64_t i = 0; i < n; ++i) {
      const size_t block = i / size;
      now.m[i] = qmap1[code4(now.codes1, i)] * now.absmax1[block];
      now.m[n + i] = qmap1[code4(slow, i)] * now.absmax1[blocks + block];
      now.v[i] = qmap2[code4(now.codes2, i)] * now.absmax2[block];
    }
    const auto before = now;
    const ParameterUpdate update = now.update(false);
    optimizer_update_blockwise(rule, 4, &update, 1, qmap1.data(),
                               states_of(rule) > 1 ? qmap2.data() : nullptr, h, nullptr);
    for (int64_t start = 0; start < n; start += size) {
      std::vector<double> states[3];
      std::vector<uint8_t> codes[3];
      double largest = 0.0;
      const std::vector<uint8_t> new_slow(now.codes1.begin() + bytes, now.codes1.end());
      for (int64_t i = start; i < std::min(start + size, n); ++i) {
        const Element old = before.element(i);
        const double g = number(before.g[i]) * h.gnorm_scale;
        const Element expected = updated(rule, old, g, h, 3);
        CHECK(parameter_is_close(now.p[i], old, expected, h));
        for (int k = 0; k < 3; ++k) {
          states[k].push_back(expected.states[k]);
          largest = std::fmax(largest, std::fabs(old.states[k]) + std::fabs(g) + g * g);
        }
        codes[0].push_back(code4(now.codes1, i));
        codes[1].push_back(code4(now.codes2, i));
        codes[2].push_back(code4(new_slow, i));
      }
      const size_t block = start / size;
      const float absmax[] = {now.absmax1[block], now.absmax2[block], now.absmax1[blocks + block]};
      for (int k = 0; k < states_of(rule); ++k) {
        check_block(states[k], codes[k].data(), absmax[k], k == 1 ? qmap2 : qmap1, largest);
      }
    }
  }
}

// Rounded at random, a parameter is one of its two neighbours, by its bits and on average right;
// with a compensation it is the nearest to the sum, which is right to twice the digits.
void test_rounding() {
  const Hyperparameters h{0x1p-12, 0.9, 0.99, 0.0, 0.0, 0.0, 0.0, 1.0, false, 0.0};
  const size_t n = 20003;
  for (const bool stochastic : {true, false}) {
    Parameter<float, bfloat16> now(static_cast<int64_t>(n), 5);
    std::vector<bfloat16> compensation(n, rounded<bfloat16>(0.0f));
    std::fill(now.p.begin(), now.p.end(), rounded<bfloat16>(1.0f));
    std::fill(now.g.begin(), now.g.end(), -1e6f);
    ParameterUpdate update = now.update(true);
    update.stochastic = stochastic;
    update.seed = 42;
    if (!stochastic) update.compensation = compensation.data();
    optimizer_update_32bit(OptimizerRule::kLion, &update, 1, h, nullptr);
    const RandomBits random(42, 5);
    double moved = 0.0;
    for (size_t i = 0; i < n; ++i) {
      moved += number(now.p[i]) - 1.0 + number(compensation[i]);
      // 1 + 2^-12 has 0x800 in its lower 16 bits.
      const bool up = (random(static_cast<uint32_t>(i)) & 0xffffu) >= 0x10000u - 0x800u;
      CHECK(number(now.p[i]) == (stochastic && up ? 1.0 + 0x1p-7 : 1.0));
      CHECK(stochastic || number(compensation[i]) == 0x1p-12);
    }
    CHECK(std::fabs(moved / static_cast<double>(n) * 0x1p12 - 1.0) < (stochastic ? 0.2 : 1e-9));
  }
}

// With a limit on its norm an update has that norm, and unorm is the norm that it would have had.
void test_max_unorm(OptimizerRule rule, Hyperparameters h) {
  h.weight_decay = 0.0;
  h.max_unorm = 1e-3;
  auto all = parameters<float, float>();
  const auto before = all;
  std::vector<ParameterUpdate> updates;
  for (auto& parameter : all) updates.push_back(parameter.update(true));
  optimizer_update_32bit(rule, updates.data(), static_cast<int64_t>(updates.size()), h, nullptr);
  for (size_t j = 0; j < all.size(); ++j) {
    double p2 = 0.0, moved2 = 0.0, update2 = 0.0;
    for (size_t i = 0; i < all[j].p.size(); ++i) {
      const Element old = before[j].element(i);
      const double g = number(before[j].g[i]) * h.gnorm_scale;
      const double update = updated(rule, old, g, h, before[j].step).direction;
      const double moved = number(all[j].p[i]) - old.p;
      p2 += old.p * old.p;
      moved2 += moved * moved;
      update2 += update * update;
    }
    CHECK(close(all[j].unorm, std::sqrt(update2), 1e-5 * std::sqrt(update2)));
    const double expected = h.lr * std::fmin(h.max_unorm * std::sqrt(p2), std::sqrt(update2));
    CHECK(std::fabs(std::sqrt(moved2) - expected) < 1e-2 * expected + 1e-7);
  }
}

// States get the code of the nearest entry: all bf16 numbers in [-1, 1] and what is around each
// middle of two entries. Which of the two it is may be wrong within 16 ulps of their middle.
void test_codes_of_states(const std::vector<float>& qmap) {
  std::vector<float> g;
  const auto add = [&](float x) {
    if (g.size() % kOptimizerBlocksize == 0) g.push_back(1.0f);  // the block's absmax
    if (std::fabs(x) <= 1.0f) g.push_back(x);
  };
  std::vector<double> middles;
  for (uint32_t top = 0; top < 0x10000; ++top) add(bits_float(top << 16));
  for (int i = 0; i < 255; ++i) {
    middles.push_back((number(qmap[i]) + number(qmap[i + 1])) / 2.0);
    for (int ulps = -40; ulps <= 40; ++ulps) {
      add(as_float(middles[i] * (1.0 + ulps * 0x1p-23)));
    }
  }
  std::vector<float> p(g.size()), absmax(blocks_of(p.size(), kOptimizerBlocksize));
  std::vector<uint8_t> codes(g.size());
  ParameterUpdate u;
  u.g = g.data();
  u.p = p.data();
  u.g_dtype = u.p_dtype = DType::kFloat32;
  u.state1 = codes.data();
  u.absmax1 = absmax.data();
  u.numel = static_cast<int64_t>(p.size());
  u.step = 1;  // the state is the gradient then
  const Hyperparameters h{0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, false, 0.0};
  optimizer_update_blockwise(OptimizerRule::kMomentum, 8, &u, 1, qmap.data(), nullptr, h, nullptr);
  for (size_t i = 0; i < g.size(); ++i) {
    const double x = number(g[i]), slack = 16 * eps<float>() * std::fabs(x);
    CHECK(codes[i] == 0 || middles[codes[i] - 1] <= x + slack);
    CHECK(codes[i] == 255 || x - slack <= middles[codes[i]]);
  }
}

void test_all() {
  for (const auto& qmap : {dynamic_map(true), dynamic_map(false), signed_map()}) {
    test_codes_of_states(qmap);
  }
  const Hyperparameters plain{0.01, 0.9, 0.99, 0.999, 2.0, 1e-8, 0.0, 1.0, false, 0.0};
  const Hyperparameters decayed{0.1, 0.8, 0.999, 0.9, 0.5, 1e-3, 0.1, 0.5, true, 0.0};
  for (OptimizerRule rule : kRules) {
    for (const Hyperparameters& h : {plain, decayed}) {
      for_each_type([&](auto g) { test_32bit<decltype(g), float>(rule, h); });
      for_each_type([&](auto p) { test_32bit<bfloat16, decltype(p)>(rule, h); });
      test_8bit<float, float>(rule, h, false);
      // Where nothing is divided by a root, which may be near 0 with this map.
      if (states_of(rule) == 1 && !squares(rule)) test_8bit<float, float>(rule, h, true);
      test_8bit<bfloat16, float16>(rule, h, false);
      test_4bit(rule, h);
      test_max_unorm(rule, h);
    }
    // No parameters at all.
    optimizer_update_32bit(rule, nullptr, 0, plain, nullptr);
  }
  test_rounding();
}

}  // namespace
}  // namespace bnbx::test

int main() {
  bnbx::test::for_each_isa(bnbx::test::test_all);
  return bnbx::test::result();
}
