#include "kernel.h"

#include <algorithm>

namespace mcn::MCN_ISA {
namespace {

// Calls f(index of x, of C, of M, of y) for every product of the reconstructed filters.
template <typename F>
void ForEach(const Sizes& s, F f) {
  for (int64_t n = 0; n < s.images; ++n)
    for (int64_t oy = 0; oy < s.out_height; ++oy)
      for (int64_t ox = 0; ox < s.out_width; ++ox)
        for (int64_t i = 0; i < s.taps; ++i)
          for (int64_t j = 0; j < s.taps; ++j) {
            const int64_t y = oy * s.stride_y + i - s.low_y, x = ox * s.stride_x + j - s.low_x;
            if (y < 0 || y >= s.height || x < 0 || x >= s.width) continue;
            const int64_t pixel = ((n * s.height + y) * s.width + x) * s.channels;
            const int64_t out = ((n * s.out_height + oy) * s.out_width + ox) * s.maps * s.planes;
            const int64_t tap = i * s.taps + j;
            for (int64_t c = 0; c < s.channels; ++c)
              for (int64_t h = 0; h < s.maps; ++h)
                for (int64_t k = 0; k < s.planes; ++k)
                  f(pixel + c, (tap * s.channels + c) * s.maps + h, tap * s.planes + k,
                    out + h * s.planes + k);
          }
}

}  // namespace

void Forward(const Sizes& s, const float* x, const float* c, const float* m, float* y) {
  std::fill_n(y, s.images * s.out_height * s.out_width * s.maps * s.planes, 0.0f);
  ForEach(s, [=](int64_t a, int64_t b, int64_t d, int64_t o) { y[o] += x[a] * c[b] * m[d]; });
}

void Backward(const Sizes& s, const float* x, const float* c, const float* sum, const float* m,
              const float* dy, float* dx, float* dc, float* dm) {
  std::fill_n(dx, s.images * s.height * s.width * s.channels, 0.0f);
  std::fill_n(dc, s.taps * s.taps * s.channels * s.maps, 0.0f);
  std::fill_n(dm, s.taps * s.taps * s.planes, 0.0f);
  ForEach(s, [=](int64_t a, int64_t b, int64_t d, int64_t o) {
    dx[a] += dy[o] * c[b] * m[d];
    dc[b] += dy[o] * x[a] * m[d];
    dm[d] += dy[o] * x[a] * sum[b];
  });
}

}  // namespace mcn::MCN_ISA
