// MCconv in float32, for one instruction set per namespace.
#pragma once

#include <cstdint>

namespace mcn {

struct Sizes {
  int64_t images, height, width, channels;        // features
  int64_t taps, maps, planes;                     // filters and M
  int64_t out_height, out_width;                  // output
  int64_t stride_y, stride_x, low_y, low_x;       // low: padding before the first pixel
};

#define MCN_DECLARE(ISA)                                                                       \
  namespace ISA {                                                                              \
  void Forward(const Sizes& s, const float* x, const float* c, const float* m, float* y);      \
  void Backward(const Sizes& s, const float* x, const float* c, const float* sum,              \
                const float* m, const float* dy, float* dx, float* dc, float* dm);             \
  }

#ifdef MCN_X86
MCN_DECLARE(avx512)
MCN_DECLARE(avx2)
#endif
MCN_DECLARE(baseline)

}  // namespace mcn
