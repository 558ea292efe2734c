// int8_vectorwise_quant and its relatives: rows (or columns) of int8 with one scale each.
#pragma once

#include "avx/parallel.h"
#include "avx/sweep.h"
#include "avx/workspace.h"
#include "common/int8.h"

namespace bnbx::cpu {

// Quantizes one row. Values of at least `threshold` (when it is positive) are outliers: they do not
// count for the scale, and their columns are marked.
template <class V, class T>
static inline float quantize_int8_row(const T* A, int64_t n, float threshold, int8_t* out,
                                      uint8_t* outliers) {
  float absmax = finite_absmax<V>(A, n);
  // Without an outlier the row's absmax says so; NaN means a look at each element.
  const bool hold_back = threshold > 0.0f && !(absmax < threshold);
  if (hold_back) {
    typename V::I32 best(0);
    sweep<V>(n, [&](int64_t i, auto lanes) {
      best = V::max(best, V::abs_bits(V::zero_outliers(load<V>(A + i, lanes), threshold)));
    });
    absmax = bits_float(static_cast<uint32_t>(V::max_lane(best)));
    for (int64_t i = 0; i < n; ++i) {
      const float x = to_float(A[i]);
      if (x >= threshold || -x >= threshold) outliers[i] = 1;
    }
  }
  if (absmax != absmax) {
    memset(out, 0, n);
    return absmax;
  }
  const typename V::F32 scale(inverse_of_row(absmax));
  sweep<V>(n, [&](int64_t i, auto lanes) {
    const auto x = load<V>(A + i, lanes);
    store_rounded<V>(out + i, (hold_back ? V::zero_outliers(x, threshold) : x) * scale, lanes);
  });
  return absmax;
}

template <class V>
void int8_vectorwise_quant(const void* A, DType dtype, int64_t rows, int64_t columns,
                           float threshold, int8_t* out, float* stats, uint8_t* outliers, Stream) {
  with_type(dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(A);
    const int64_t grain = ceil_div(16384, columns + 1);
    // Every range of rows marks its own copy of the columns, so that threads do not race.
    const int64_t ranges = threshold > 0.0f ? ceil_div(rows, grain) : 0;
    const auto marks = allocate<uint8_t>(ranges * columns);
    memset(marks.get(), 0, ranges * columns);
    parallel_for(ceil_div(rows, grain), 1, [&](int64_t range, int64_t end) {
      for (; range < end; ++range) {
        uint8_t* marked = ranges == 0 ? nullptr : marks.get() + range * columns;
        for (int64_t r = range * grain; r < smaller(rows, (range + 1) * grain); ++r) {
          stats[r] = quantize_int8_row<V>(values + r * columns, columns, threshold,
                                          out + r * columns, marked);
        }
      }
    });
    if (outliers == nullptr) return;
    memset(outliers, 0, columns);
    bool any = false;
    for (int64_t i = 0; i < ranges * columns; ++i) {
      if (marks[i] != 0) outliers[i % columns] = any = true;
    }
    if (!any) return;
    parallel_for(rows, grain, [&](int64_t r, int64_t end) {
      for (; r < end; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
          if (outliers[c] != 0) out[r * columns + c] = 0;
        }
      }
    });
  });
}

template <class V>
void int8_vectorwise_dequant(const int8_t* A, const float* stats, int64_t rows, int64_t columns,
                             float* out, Stream) {
  parallel_for(rows, ceil_div(16384, columns + 1), [&](int64_t r, int64_t end) {
    for (; r < end; ++r) {
      const typename V::F32 scale(unit_of_row(stats[r]));
      sweep<V>(columns, [&](int64_t c, auto lanes) {
        int8_t staged[V::kWidth] = {};
        memcpy(staged, A + r * columns + c, smaller(V::kWidth, columns - c));
        store<V>(out + r * columns + c, V::from_int8(staged) * scale, lanes);
      });
    }
  });
}

// The columns of a range, quantized each with its own absmax over all rows.
template <class V, class T>
static inline void quantize_int8_columns(const T* A, int64_t rows, int64_t columns, int64_t c,
                                         float threshold, int8_t* out, float* stats) {
  const float limit = threshold > 0.0f ? threshold : bits_float(0x7f800000u);
  const auto lanes = static_cast<int>(smaller(V::kWidth, columns - c));
  const auto value = [&](int64_t r) {
    const auto x = load<V>(A + r * columns + c, Partial{lanes});
    return threshold > 0.0f ? V::zero_outliers(x, limit) : x;
  };
  typename V::I32 best(0);
  for (int64_t r = 0; r < rows; ++r) best = V::max(best, V::abs_bits(value(r)));
  uint32_t bits[V::kWidth];
  float scales[V::kWidth];
  memcpy(bits, &best, sizeof(bits));
  for (int i = 0; i < V::kWidth; ++i) {
    const bool finite = bits[i] < 0x7f800000u;
    const float absmax = bits_float(finite ? bits[i] : 0x7fc00000u);
    scales[i] = finite ? inverse_of_row(absmax) : 0.0f;
    if (i < lanes) stats[c + i] = absmax;
  }
  for (int64_t r = 0; r < rows; ++r) {
    float scaled[V::kWidth];
    V::store(scaled, value(r) * V::load(scales));
    for (int i = 0; i < lanes; ++i) {  // NaN (from an infinity or a NaN times 0) becomes 0
      out[r * columns + c + i] =
          scaled[i] == scaled[i] ? static_cast<int8_t>(::lrintf(scaled[i])) : int8_t{0};
    }
  }
}

template <class V>
void int8_double_quant(const void* A, DType dtype, int64_t rows, int64_t columns, float threshold,
                       int8_t* out_row, int8_t* out_col, float* row_stats, float* col_stats,
                       uint8_t* outliers, Stream stream) {
  int8_vectorwise_quant<V>(A, dtype, rows, columns, threshold, out_row, row_stats, outliers,
                           stream);
  with_type(dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(A);
    const int64_t grain = ceil_div(16384, V::kWidth * (rows + 1));
    parallel_for(ceil_div(columns, V::kWidth), grain, [&](int64_t v, int64_t end) {
      for (; v < end; ++v) {
        quantize_int8_columns<V>(values, rows, columns, v * V::kWidth, threshold, out_col,
                                 col_stats);
      }
    });
  });
}

}  // namespace bnbx::cpu
