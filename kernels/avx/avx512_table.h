// The kernels of AVX-512, with those of its own.
#pragma once

#include "avx/kernels_of.h"
#include "avx/quantize_4bit_words.h"

namespace bnbx::cpu {

template <class V>
static constexpr KernelTable avx512_table_of() {
  KernelTable table = table_of<V>();
  table.quantize_4bit = &quantize_4bit_words<V>;
  return table;
}

}  // namespace bnbx::cpu
