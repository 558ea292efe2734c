// optimizer_update_32bit and optimizer_update_8bit_blockwise.
#include <algorithm>

#include "check.h"

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

// Parameter, first and second state of one element.
struct Element {
  double p, m, v;
};

// Loshchilov & Hutter 2019, algorithm 2.
Element adam(Element x, double g, const Hyperparameters& h, int64_t step) {
  if (h.skip_zeros && g == 0.0) return x;
  x.m = h.beta1 * x.m + (1.0 - h.beta1) * g;
  x.v = h.beta2 * x.v + (1.0 - h.beta2) * g * g;
  const double m_hat = x.m / (1.0 - std::pow(h.beta1, static_cast<double>(step)));
  const double v_hat = x.v / (1.0 - std::pow(h.beta2, static_cast<double>(step)));
  x.p = x.p * (1.0 - h.lr * h.weight_decay) - h.lr * m_hat / (std::sqrt(v_hat) + h.eps);
  return x;
}

template <class G, class P>
struct Parameter {
  std::vector<G> g;
  std::vector<P> p;
  std::vector<float> m, v, absmax1, absmax2;
  std::vector<uint8_t> codes1, codes2;
  int64_t step;

  Parameter(int64_t n, int64_t at_step)
      : g(random_normal<G>(n)),
        p(random_normal<P>(n)),
        m(random_normal<float>(n, 0.1f)),
        v(random_positive(n)),
        absmax1(random_positive(blocks_of(n, kOptimizerBlocksize))),
        absmax2(random_positive(blocks_of(n, kOptimizerBlocksize))),
        codes1(random_bytes<uint8_t>(n)),
        codes2(random_bytes<uint8_t>(n)),
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
    u.numel = static_cast<int64_t>(p.size());
    u.step = step;
    return u;
  }

  // Sets the wide states to what the codes mean.
  void decode(const std::vector<float>& qmap1, const std::vector<float>& qmap2) {
    for (size_t i = 0; i < p.size(); ++i) {
      m[i] = qmap1[codes1[i]] * absmax1[i / kOptimizerBlocksize];
      v[i] = qmap2[codes2[i]] * absmax2[i / kOptimizerBlocksize];
    }
  }
};

template <class P>
bool parameter_is_close(P actual, Element before, Element after) {
  const double size = std::fabs(before.p) + std::fabs(after.p - before.p);
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
void test_32bit(const Hyperparameters& h) {
  auto all = parameters<G, P>();
  const auto before = all;
  std::vector<ParameterUpdate> updates;
  for (auto& parameter : all) updates.push_back(parameter.update(true));
  optimizer_update_32bit(OptimizerRule::kAdam, updates.data(), static_cast<int64_t>(updates.size()),
                         h, nullptr);
  for (size_t j = 0; j < all.size(); ++j) {
    for (size_t i = 0; i < all[j].p.size(); ++i) {
      const double g = number(before[j].g[i]) * h.gnorm_scale;
      const Element old{number(before[j].p[i]), number(before[j].m[i]), number(before[j].v[i])};
      const Element expected = adam(old, g, h, before[j].step);
      const double rounding = 8 * eps<float>();
      CHECK(parameter_is_close(all[j].p[i], old, expected));
      CHECK(close(all[j].m[i], expected.m, rounding * (std::fabs(old.m) + std::fabs(g))));
      CHECK(close(all[j].v[i], expected.v, rounding * expected.v));
    }
  }
}

// The codes of one block against the states they should hold.
void check_block(const std::vector<double>& states, const uint8_t* codes, float absmax,
                 const std::vector<float>& qmap) {
  double expected = 0.0;
  for (double state : states) expected = std::fmax(expected, std::fabs(state));
  CHECK(close(absmax, expected, 8 * eps<float>() * expected));
  for (size_t i = 0; i < states.size(); ++i) {
    CHECK(is_nearest(number(qmap[codes[i]]), states[i] / expected, qmap.data(), 256));
  }
}

template <class G, class P>
void test_8bit(const Hyperparameters& h) {
  const auto qmap1 = signed_map(), qmap2 = unsigned_map();
  auto all = parameters<G, P>();
  for (auto& parameter : all) parameter.decode(qmap1, qmap2);
  const auto before = all;
  std::vector<ParameterUpdate> updates;
  for (auto& parameter : all) updates.push_back(parameter.update(false));
  optimizer_update_8bit_blockwise(OptimizerRule::kAdam, updates.data(),
                                  static_cast<int64_t>(updates.size()), qmap1.data(), qmap2.data(),
                                  h, nullptr);
  for (size_t j = 0; j < all.size(); ++j) {
    const size_t n = all[j].p.size();
    for (size_t start = 0; start < n; start += kOptimizerBlocksize) {
      std::vector<double> m, v;
      for (size_t i = start; i < std::min<size_t>(start + kOptimizerBlocksize, n); ++i) {
        const double g = number(before[j].g[i]) * h.gnorm_scale;
        const Element old{number(before[j].p[i]), number(before[j].m[i]), number(before[j].v[i])};
        const Element expected = adam(old, g, h, before[j].step);
        CHECK(parameter_is_close(all[j].p[i], old, expected));
        m.push_back(expected.m);
        v.push_back(expected.v);
      }
      const size_t block = start / kOptimizerBlocksize;
      check_block(m, all[j].codes1.data() + start, all[j].absmax1[block], qmap1);
      check_block(v, all[j].codes2.data() + start, all[j].absmax2[block], qmap2);
    }
  }
}

void test_all() {
  const Hyperparameters plain{0.01, 0.9, 0.99, 0.0, 0.0, 1e-8, 0.0, 1.0, false};
  const Hyperparameters decayed{0.1, 0.8, 0.999, 0.0, 0.0, 1e-3, 0.1, 0.5, true};
  for (const Hyperparameters& h : {plain, decayed}) {
    for_each_type([&](auto g) {
      for_each_type([&](auto p) {
        test_32bit<decltype(g), decltype(p)>(h);
        test_8bit<decltype(g), decltype(p)>(h);
      });
    });
  }
  // No parameters at all.
  optimizer_update_32bit(OptimizerRule::kAdam, nullptr, 0, plain, nullptr);
}

}  // namespace
}  // namespace bnbx::test

int main() {
  bnbx::test::for_each_isa(bnbx::test::test_all);
  return bnbx::test::result();
}
