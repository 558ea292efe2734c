// The update rule of each optimizer, for one element or one vector of them: F is float or a vector
// type with the same operators and sqrt().
#pragma once

#include <cmath>
#include <cstdint>

#include "common/platform.h"

namespace bnbx {

struct Hyperparameters {
  double lr, beta1, beta2, beta3, alpha, eps, weight_decay;
  double gnorm_scale;  // factor on the gradient, from clipping its norm
  bool skip_zeros;     // leave an element alone where its gradient is zero
};

BNBX_INLINE float sqrt(float x) { return ::sqrtf(x); }

// Loshchilov & Hutter 2019, algorithm 2: the decay acts on the parameter, for Adam as for AdamW.
struct Adam {
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float step_size;           // lr / (1 - beta1^step)
  float sqrt_bias2_inverse;  // 1 / sqrt(1 - beta2^step)
  float eps;
  float decay;  // 1 - lr * weight_decay

  Adam(const Hyperparameters& h, int64_t step)
      : beta1(static_cast<float>(h.beta1)),
        one_minus_beta1(static_cast<float>(1.0 - h.beta1)),
        beta2(static_cast<float>(h.beta2)),
        one_minus_beta2(static_cast<float>(1.0 - h.beta2)),
        step_size(static_cast<float>(h.lr / (1.0 - std::pow(h.beta1, static_cast<double>(step))))),
        sqrt_bias2_inverse(static_cast<float>(
            1.0 / std::sqrt(1.0 - std::pow(h.beta2, static_cast<double>(step))))),
        eps(static_cast<float>(h.eps)),
        decay(static_cast<float>(1.0 - h.lr * h.weight_decay)) {}

  template <class F>
  BNBX_MEMBER void operator()(F g, F& p, F& m, F& v) const {
    m = m * F(beta1) + g * F(one_minus_beta1);
    v = v * F(beta2) + g * g * F(one_minus_beta2);
    const F denominator = sqrt(v) * F(sqrt_bias2_inverse) + F(eps);
    p = p * F(decay) - F(step_size) * m / denominator;
  }
};

}  // namespace bnbx
