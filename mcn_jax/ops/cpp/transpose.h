// Transposition of small matrices of floats, for each file of the native kernel and each
// instruction set.

#ifndef MCN_TRANSPOSE_H_
#define MCN_TRANSPOSE_H_

#include <algorithm>

namespace mcn {
namespace MCN_ISA {
namespace {

typedef float Quad __attribute__((vector_size(16)));
typedef float LooseQuad __attribute__((vector_size(16), aligned(4), may_alias));

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int QuadIndex __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, QuadIndex{i, j, k, l})
#endif

// Transposes rows x columns floats, adding to `to` if `adds`.
template <bool adds>
void transpose(const float* from, long from_step, long rows, long columns, float* to,
               long to_step) {
  long whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  auto quad = [&](long r, long c) {
    if (c % 16 == 0) __builtin_prefetch(from + (r + 16) * from_step + c);
    return *reinterpret_cast<const LooseQuad*>(from + r * from_step + c);
  };
  auto put = [&](long c, long r, Quad value) {
    LooseQuad* place = reinterpret_cast<LooseQuad*>(to + c * to_step + r);
    *place = adds ? *place + value : value;
  };
  // In blocks of columns, so that what a block writes stays in cache until its lines are full.
  for (long c0 = 0; c0 < whole_columns; c0 += 16)
    for (long r = 0; r < whole_rows; r += 4)
      for (long c = c0; c < std::min(c0 + 16, whole_columns); c += 4) {
        Quad a = quad(r, c), b = quad(r + 1, c), d = quad(r + 2, c), e = quad(r + 3, c);
        Quad ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(a, b, 2, 6, 3, 7);
        Quad ef = SHUFFLE(d, e, 0, 4, 1, 5), gh = SHUFFLE(d, e, 2, 6, 3, 7);
        put(c, r, SHUFFLE(ab, ef, 0, 1, 4, 5));
        put(c + 1, r, SHUFFLE(ab, ef, 2, 3, 6, 7));
        put(c + 2, r, SHUFFLE(cd, gh, 0, 1, 4, 5));
        put(c + 3, r, SHUFFLE(cd, gh, 2, 3, 6, 7));
      }
  for (long r = 0; r < rows; ++r)
    for (long c = r < whole_rows ? whole_columns : 0; c < columns; ++c) {
      float& place = to[c * to_step + r];
      place = adds ? place + from[r * from_step + c] : from[r * from_step + c];
    }
}

}  // namespace
}  // namespace MCN_ISA
}  // namespace mcn

#endif  // MCN_TRANSPOSE_H_
