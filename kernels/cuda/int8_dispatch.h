// Which kernel multiplies int8 matrices.
#pragma once

#include "cuda/int8_few_rows.h"
#include "cuda/int8_product.h"

namespace bnbx::gpu {

using Wide = Tile<2, 4, 1, 4, 8, 2>;    // 128 x 256
using Large = Tile<2, 2, 1, 4, 8, 3>;   // 128 x 128
using Medium = Tile<2, 1, 2, 2, 8, 3>;  // 64 x 64
using Small = Tile<1, 1, 4, 2, 4, 3>;   // 32 x 32

template <class Tile>
int64_t tiles_of(const Int8Operands& x) {
  return ceil_div(x.M, Tile::kRows) * ceil_div(x.N, Tile::kColumns);
}

template <class Tile, class Epilogue>
void multiply_in(const Int8Operands& x, const Epilogue& epilogue, Stream stream) {
  launch<multiply_tiles<Tile, Epilogue>>(Blocks(static_cast<unsigned>(tiles_of<Tile>(x))),
                                         Tile::kThreads, Tile::kSharedBytes, stream, x, epilogue);
}

template <int kRows, class Epilogue>
void multiply_rows(const Int8Operands& x, const Epilogue& epilogue, Stream stream) {
  launch<multiply_few_rows<kRows, Epilogue>>(
      Blocks(static_cast<unsigned>(ceil_div(x.N, kFewColumnsPerBlock))), kFewThreads, 0, stream, x,
      epilogue);
}

// Larger tiles read less, but there must be enough of them to keep the multiprocessors busy.
template <class Epilogue>
void multiply(const Int8Operands& x, const Epilogue& epilogue, Stream stream) {
  constexpr int64_t kBusy = 100;
  if (x.M == 0 || x.N == 0) return;
  if (x.M == 1) return multiply_rows<1>(x, epilogue, stream);
  if (x.M == 2) return multiply_rows<2>(x, epilogue, stream);
  if (x.M <= kFewRows) return multiply_rows<kFewRows>(x, epilogue, stream);
  if (tiles_of<Wide>(x) >= 2 * kBusy) return multiply_in<Wide>(x, epilogue, stream);
  if (tiles_of<Large>(x) >= kBusy) return multiply_in<Large>(x, epilogue, stream);
  if (tiles_of<Medium>(x) >= kBusy) return multiply_in<Medium>(x, epilogue, stream);
  return multiply_in<Small>(x, epilogue, stream);
}

}  // namespace bnbx::gpu
