// optimizer_update_32bit: the rules with states of floats.
#include "metal/optimizer_update.h"

BNBX_INSTANTIATE("update_adam_32", update<Adam, 32>)
BNBX_INSTANTIATE("measure_adam_32", measure<Adam, 32>)
BNBX_INSTANTIATE("update_momentum_32", update<Momentum<false>, 32>)
BNBX_INSTANTIATE("measure_momentum_32", measure<Momentum<false>, 32>)
BNBX_INSTANTIATE("update_nesterov_32", update<Momentum<true>, 32>)
BNBX_INSTANTIATE("measure_nesterov_32", measure<Momentum<true>, 32>)
BNBX_INSTANTIATE("update_rmsprop_32", update<RMSprop, 32>)
BNBX_INSTANTIATE("measure_rmsprop_32", measure<RMSprop, 32>)
BNBX_INSTANTIATE("update_adagrad_32", update<Adagrad, 32>)
BNBX_INSTANTIATE("measure_adagrad_32", measure<Adagrad, 32>)
BNBX_INSTANTIATE("update_lion_32", update<Lion, 32>)
BNBX_INSTANTIATE("measure_lion_32", measure<Lion, 32>)
BNBX_INSTANTIATE("update_ademamix_32", update<AdEMAMix, 32>)
BNBX_INSTANTIATE("measure_ademamix_32", measure<AdEMAMix, 32>)
