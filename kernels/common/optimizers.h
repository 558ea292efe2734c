// The update rule of each optimizer, for one element or one vector of them: F is float or a vector
// type with the same operators, sqrt() and sign().
#pragma once

#include <cmath>
#include <cstdint>

#include "common/platform.h"

namespace bnbx {

// What is computed in double is computed where there is one: Metal has none, and gets the constants
// of a rule from the host, which fill the same structure.
#if !defined(BNBX_NO_DOUBLE)
struct Hyperparameters {
  double lr, beta1, beta2, beta3, alpha, eps, weight_decay;
  double gnorm_scale;  // factor on the gradient, from clipping its norm; negative to maximize
  bool skip_zeros;     // leave an element alone where its gradient is zero
  double max_unorm;    // the largest norm of an update, as a share of the parameter's; 0: any
};

// The numbers of ParameterUpdate::live.
BNBX_CONSTANT int kLiveNumbers = 5;

// The number of a step, where the host may not know it.
BNBX_INLINE int64_t step_of(const double* live, int64_t step) {
  return live != nullptr ? static_cast<int64_t>(live[0]) : step;
}

// The constants of a rule from the hyperparameters and those numbers.
template <class Rule>
BNBX_INLINE Rule live_rule(Hyperparameters h, const double* live) {
  h.lr = live[1];
  h.beta3 = live[2];
  h.alpha = live[3];
  h.gnorm_scale = live[4];
  return Rule(h, step_of(live, 0));
}

// The workspace of an update of one parameter: the factor that max_unorm leaves to its update, room
// for the constants of a rule, and the sums of the squares of each chunk of the parameter and of
// the update's direction.
BNBX_CONSTANT int64_t kSquaresChunk = 4096;  // elements
BNBX_CONSTANT int64_t kRuleNumbers = 8;
BNBX_CONSTANT int64_t kFirstSquares = 1 + kRuleNumbers;

BNBX_INLINE int64_t update_workspace(int64_t numel) {
  return kFirstSquares + 2 * ((numel + kSquaresChunk - 1) / kSquaresChunk);
}

BNBX_INLINE float sqrt(float x) { return ::sqrtf(x); }
BNBX_INLINE float as_float(double x) { return static_cast<float>(x); }
// 1 - beta^step: the share of an average over `step` values that is not its zero start.
BNBX_INLINE double bias_correction(double beta, int64_t step) {
  return 1.0 - std::pow(beta, static_cast<double>(step));
}
#endif

BNBX_INLINE float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }

// What the rules have in common. A rule is called with the gradient times gnorm_scale, the
// parameter and its kStates states; it changes the states and returns a direction. Then the
// parameter becomes p * decay - direction * step_size.
struct Rule {
  float decay;
  float step_size;
  float unit;  // direction * unit is the update, without lr, whose norm max_unorm limits
  float gnorm_scale;

#if !defined(BNBX_NO_DOUBLE)
  BNBX_MEMBER Rule(const Hyperparameters& h, float decay, float step_size, float unit)
      : decay(decay), step_size(step_size), unit(unit), gnorm_scale(as_float(h.gnorm_scale)) {}

  // Decoupled weight decay: it acts on the parameter.
  BNBX_MEMBER static float decoupled(const Hyperparameters& h) {
    return as_float(1.0 - h.lr * h.weight_decay);
  }
#endif
};

// Loshchilov & Hutter 2019, algorithm 2: the decay acts on the parameter, for Adam as for AdamW.
struct Adam : Rule {
  BNBX_CONSTANT int kStates = 2;
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float sqrt_bias2_inverse;  // 1 / sqrt(1 - beta2^step)
  float eps;

#if !defined(BNBX_NO_DOUBLE)
  BNBX_MEMBER Adam(const Hyperparameters& h, int64_t step)
      : Rule(h, decoupled(h), as_float(h.lr / bias_correction(h.beta1, step)),
             as_float(1.0 / bias_correction(h.beta1, step))),
        beta1(as_float(h.beta1)),
        one_minus_beta1(as_float(1.0 - h.beta1)),
        beta2(as_float(h.beta2)),
        one_minus_beta2(as_float(1.0 - h.beta2)),
        sqrt_bias2_inverse(as_float(1.0 / std::sqrt(bias_correction(h.beta2, step)))),
        eps(as_float(h.eps)) {}
#endif

  template <class F>
  BNBX_MEMBER F operator()(F g, F, BNBX_THREAD F* states) const {
    BNBX_THREAD F& m = states[0];
    BNBX_THREAD F& v = states[1];
    m = m * F(beta1) + g * F(one_minus_beta1);
    v = v * F(beta2) + g * g * F(one_minus_beta2);
    return m / (sqrt(v) * F(sqrt_bias2_inverse) + F(eps));
  }
};

// Sutskever et al. 2013, in the form of PyTorch's SGD: the average starts as the first gradient,
// later gradients are dampened; the decay acts through the gradient. beta1 is the momentum, beta2
// the dampening.
template <bool kNesterov>
struct Momentum : Rule {
  BNBX_CONSTANT int kStates = 1;
  float kept, added;  // shares of the old average and of the gradient in the new one
  float momentum;
  float weight_decay;

#if !defined(BNBX_NO_DOUBLE)
  BNBX_MEMBER Momentum(const Hyperparameters& h, int64_t step)
      : Rule(h, 1.0f, as_float(h.lr), 1.0f),
        kept(step == 1 ? 0.0f : as_float(h.beta1)),
        added(step == 1 ? 1.0f : as_float(1.0 - h.beta2)),
        momentum(as_float(h.beta1)),
        weight_decay(as_float(h.weight_decay)) {}
#endif

  template <class F>
  BNBX_MEMBER F operator()(F g, F p, BNBX_THREAD F* states) const {
    BNBX_THREAD F& m = states[0];
    g = g + p * F(weight_decay);
    m = m * F(kept) + g * F(added);
    if (kNesterov) return g + m * F(momentum);
    return m;
  }
};

// Tieleman & Hinton 2012, lecture 6.5, in the form of PyTorch's RMSprop: eps is outside of the
// root, the decay acts through the gradient. beta1 is what PyTorch calls alpha.
struct RMSprop : Rule {
  BNBX_CONSTANT int kStates = 1;
  float beta, one_minus_beta, eps, weight_decay;

#if !defined(BNBX_NO_DOUBLE)
  BNBX_MEMBER RMSprop(const Hyperparameters& h, int64_t)
      : Rule(h, 1.0f, as_float(h.lr), 1.0f),
        beta(as_float(h.beta1)),
        one_minus_beta(as_float(1.0 - h.beta1)),
        eps(as_float(h.eps)),
        weight_decay(as_float(h.weight_decay)) {}
#endif

  template <class F>
  BNBX_MEMBER F operator()(F g, F p, BNBX_THREAD F* states) const {
    BNBX_THREAD F& v = states[0];
    g = g + p * F(weight_decay);
    v = v * F(beta) + g * g * F(one_minus_beta);
    return g / (sqrt(v) + F(eps));
  }
};

// Duchi et al. 2011, figure 1 with a diagonal matrix; the decay acts through the gradient.
struct Adagrad : Rule {
  BNBX_CONSTANT int kStates = 1;
  float eps, weight_decay;

#if !defined(BNBX_NO_DOUBLE)
  BNBX_MEMBER Adagrad(const Hyperparameters& h, int64_t)
      : Rule(h, 1.0f, as_float(h.lr), 1.0f),
        eps(as_float(h.eps)),
        weight_decay(as_float(h.weight_decay)) {}
#endif

  template <class F>
  BNBX_MEMBER F operator()(F g, F p, BNBX_THREAD F* states) const {
    BNBX_THREAD F& v = states[0];
    g = g + p * F(weight_decay);
    v = v + g * g;
    return g / (sqrt(v) + F(eps));
  }
};

// Chen et al. 2023, algorithm 2: the sign of one average is the direction, another is kept.
struct Lion : Rule {
  BNBX_CONSTANT int kStates = 1;
  float beta1, one_minus_beta1, beta2, one_minus_beta2;

#if !defined(BNBX_NO_DOUBLE)
  BNBX_MEMBER Lion(const Hyperparameters& h, int64_t)
      : Rule(h, decoupled(h), as_float(h.lr), 1.0f),
        beta1(as_float(h.beta1)),
        one_minus_beta1(as_float(1.0 - h.beta1)),
        beta2(as_float(h.beta2)),
        one_minus_beta2(as_float(1.0 - h.beta2)) {}
#endif

  template <class F>
  BNBX_MEMBER F operator()(F g, F, BNBX_THREAD F* states) const {
    BNBX_THREAD F& m = states[0];
    const F direction = sign(m * F(beta1) + g * F(one_minus_beta1));
    m = m * F(beta2) + g * F(one_minus_beta2);
    return direction;
  }
};

// Pagliardini et al. 2024, algorithm 1: Adam with a second, slower average of the gradient (beta3),
// which is added with weight alpha and not corrected for its start.
struct AdEMAMix : Rule {
  BNBX_CONSTANT int kStates = 3;
  float beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3;
  float bias1_inverse, sqrt_bias2_inverse;  // 1 / (1 - beta1^step), 1 / sqrt(1 - beta2^step)
  float alpha, eps;

#if !defined(BNBX_NO_DOUBLE)
  BNBX_MEMBER AdEMAMix(const Hyperparameters& h, int64_t step)
      : Rule(h, decoupled(h), as_float(h.lr), 1.0f),
        beta1(as_float(h.beta1)),
        one_minus_beta1(as_float(1.0 - h.beta1)),
        beta2(as_float(h.beta2)),
        one_minus_beta2(as_float(1.0 - h.beta2)),
        beta3(as_float(h.beta3)),
        one_minus_beta3(as_float(1.0 - h.beta3)),
        bias1_inverse(as_float(1.0 / bias_correction(h.beta1, step))),
        sqrt_bias2_inverse(as_float(1.0 / std::sqrt(bias_correction(h.beta2, step)))),
        alpha(as_float(h.alpha)),
        eps(as_float(h.eps)) {}
#endif

  template <class F>
  BNBX_MEMBER F operator()(F g, F, BNBX_THREAD F* states) const {
    BNBX_THREAD F& fast = states[0];
    BNBX_THREAD F& v = states[1];
    BNBX_THREAD F& slow = states[2];
    fast = fast * F(beta1) + g * F(one_minus_beta1);
    slow = slow * F(beta3) + g * F(one_minus_beta3);
    v = v * F(beta2) + g * g * F(one_minus_beta2);
    const F mixed = fast * F(bias1_inverse) + slow * F(alpha);
    return mixed / (sqrt(v) * F(sqrt_bias2_inverse) + F(eps));
  }
};

}  // namespace bnbx
