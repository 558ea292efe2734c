// Operations whose kernels are not written yet. Delete each as it gets its own file.
#include <stdexcept>

#include "bnbx/kernels.h"

namespace bnbx {

void scale_search_4bit(const void*, DType, int64_t, const float*, int64_t, const float*, int64_t,
                       int64_t, int64_t, QuantType, float*, Stream) {
  throw std::logic_error("scale_search_4bit is missing");
}

void estimate_quantiles(const void*, DType, int64_t, double, int64_t, float*, Stream) {
  throw std::logic_error("estimate_quantiles is missing");
}

}  // namespace bnbx
