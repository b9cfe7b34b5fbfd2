// Ordinary convolutions with few output channels, forward and backward. Compiled once per
// instruction set, see ../native_build.py.
//
// Each pair q of a tap and an input channel is one term of a sum:
//
//   output[o, h] = sum over q of  window[o + offset of q] * filters[q, h].
//
// The lanes of a vector are output channels h. If they are few, they are those of D pixels side by
// side: lane D * h + d is channel h of pixel d. The features of D pixels are then repeated in all
// lanes by one load, because a strip of rows is first copied into a window of planes of channels,
// with zeros around the image. With strides, each phase of the columns is a plane of its own.
//
// The gradient of the features is such a convolution of the cotangent, for each phase of the image.
// The gradient of the filters has the same terms, with sums over pixels:
//
//   d_filters[q, h] = sum over o of  window[o + offset of q] * cotangent[o, h].

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernel.h"
#include "transpose.h"
#include "vectors.h"

// Vectors of sums in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
#define SUMS 16  // 32 registers
#else
#define SUMS 8  // 16 registers
#endif

namespace mcn {
namespace MCN_ISA {
namespace {

constexpr long kWindowFloats = 6 << 10;  // of the window of a strip, unless one row has more

typedef std::make_integer_sequence<int, V> AllLanes;
#if defined(__clang__) || __GNUC__ >= 12
#define LANES(a, lanes) __builtin_shufflevector(a, a, lanes)
#else
typedef int Numbers __attribute__((vector_size(4 * V)));
#define LANES(a, lanes) __builtin_shuffle(a, Numbers{lanes})
#endif

// Lane D * h + d from place d * V / D + h, and back.
template <int D, int... I>
inline Vec to_lanes(Vec v, std::integer_sequence<int, I...>) {
  return LANES(v, (I % D * (V / D) + I / D)...);
}
template <int D, int... I>
inline Vec to_pixels(Vec v, std::integer_sequence<int, I...>) {
  return LANES(v, (I % (V / D) * D + I / (V / D))...);
}

// One or two floats, in turn, in all lanes.
template <int D>
inline Vec repeated(const float* from) {
  static_assert(D == 1 || D == 2, "loads of more floats need other types");
  if constexpr (D == 1) {
    return *from - Vec{};  // a sum with zeros would change -0
  } else {
    typedef long long Pairs __attribute__((vector_size(4 * V)));
    long long pair;
    std::memcpy(&pair, from, sizeof pair);
    return (Vec)(pair + Pairs{});
  }
}

// One float in the lanes of the first of D pixels, zero in those of the others.
template <int D, int... I>
inline Vec of_first_pixel(const float* from, std::integer_sequence<int, I...>) {
  typedef int Mask __attribute__((vector_size(4 * V)));
  return (Vec)((Mask)(*from - Vec{}) & Mask{(I % D ? 0 : -1)...});
}

// One convolution with stride 1 within planes, as described above.
struct Layer {
  long inputs, outputs;       // channels
  long phases;                // planes of a channel
  long width, pitch;          // pixels of an output row; of a row of a plane
  long pixels, vectors;       // pixels side by side in a vector; vectors of output channels
  long row_floats() const { return phases * inputs * pitch; }  // of a window
};

long pixels_side_by_side(long outputs) {
  return outputs * 2 <= V ? 2 : 1;
}

Layer layer(long inputs, long outputs, long phases, long width, long reach) {
  const long pixels = pixels_side_by_side(outputs);
  const long padded = ceil_div(width, SUMS * pixels) * SUMS * pixels;
  return {inputs, outputs, phases, width, padded + reach, pixels,
          pixels > 1 ? 1 : ceil_div(outputs, V)};
}

// Copies a row [width, channels], whose first pixel is pixel `low` of a padded row, into planes,
// with zeros before and after. A null row is all zeros.
void copy_row(const Layer& l, const float* from, long width, long low, float* to) {
  std::memset(to, 0, sizeof(float) * l.row_floats());
  if (!from) return;
  for (long f = 0; f < l.phases; ++f, to += l.inputs * l.pitch) {
    // Places x of the plane that hold pixels: 0 <= x * phases + f - low < width.
    const long first = std::max(0L, ceil_div(low - f, l.phases));
    const long last = std::min(l.pitch, ceil_div(width + low - f, l.phases));
    const float* pixel = from + (first * l.phases + f - low) * l.inputs;
    if (l.phases == 1) {
      transpose<false>(pixel, l.inputs, std::max(0L, last - first), l.inputs, to + first, l.pitch);
      continue;
    }
    for (long x = first; x < last; ++x, pixel += l.phases * l.inputs)
      for (long c = 0; c < l.inputs; ++c) to[c * l.pitch + x] = pixel[c];
  }
}

// The sums of B vectors of pixels.
template <int D, int B>
__attribute__((noinline)) void sum_block(const float* window, const long* offsets, long terms,
                                         const float* filters, Vec (&sums)[B]) {
  Vec s[B] = {};
  for (long q = 0; q < terms; ++q) {
    const float* x = window + offsets[q];
    const Vec f = load(filters + q * V);
    UNROLL for (int b = 0; b < B; ++b) s[b] += repeated<D>(x + b * D) * f;
  }
  UNROLL for (int b = 0; b < B; ++b) sums[b] = s[b];
}

// Writes at most V channels of `count` pixels, which lie `step` floats apart.
template <int D, int B>
void write_block(const Vec (&sums)[B], long count, long channels, long step, float* to) {
  constexpr int places = V / D;  // of a pixel
  for (int b = 0; b * D < count && b < B; ++b) {
    const Vec pixels = to_pixels<D>(sums[b], AllLanes());
    const long present = std::min<long>(D, count - b * D);
    float* const start = to + b * D * step;
    if (step == places && channels == places && present == D) {
      store(start, pixels);
      continue;
    }
    for (long d = 0; d < present; ++d)
      std::memcpy(start + d * step, reinterpret_cast<const float*>(&pixels) + d * places,
                  sizeof(float) * std::min<long>(places, channels));
  }
}

// Convolves a row of a window. Filters are packed as [vectors of output channels, terms, V].
template <int D, int B>
void convolve_blocks(const Layer& l, const float* window, const std::vector<long>& offsets,
                     const float* filters, long step, float* to) {
  for (long v = 0; v < l.vectors; ++v, filters += offsets.size() * V)
    for (long x = 0; x < l.width; x += B * D) {
      Vec sums[B];
      sum_block<D, B>(window + x, offsets.data(), offsets.size(), filters, sums);
      write_block<D, B>(sums, l.width - x, l.outputs - v * V, step, to + x * step + v * V);
    }
}

template <int D>
void convolve_row(const Layer& l, const float* window, const std::vector<long>& offsets,
                  const float* filters, long step, float* to) {
  if (l.width > SUMS / 2 * D) convolve_blocks<D, SUMS>(l, window, offsets, filters, step, to);
  else convolve_blocks<D, SUMS / 2>(l, window, offsets, filters, step, to);
}

// Packs filter(term, output channel), with zeros beyond the last channel.
template <typename F>
void pack(const Layer& l, long terms, float* packed, const F& filter) {
  for (long v = 0; v < l.vectors; ++v)
    for (long q = 0; q < terms; ++q)
      for (long lane = v * V; lane < (v + 1) * V; ++lane) {
        const long h = lane / l.pixels;
        *packed++ = h < l.outputs ? filter(q, h) : 0;
      }
}

template <typename F>
void with_pixels(const Layer& l, F&& f) {
  if (l.pixels == 2) f(std::integral_constant<int, 2>());
  if (l.pixels == 1) f(std::integral_constant<int, 1>());
}

// The layer as its forward pass reads the features.
struct Reading {
  Layer l;
  std::vector<long> offsets;  // of tap (i, j) and channel c at (i * taps + j) * channels + c
  explicit Reading(const Sizes& s)
      : l(layer(s.channels, s.maps, s.stride_x, s.out_width, (s.taps - 1) / s.stride_x)) {
    for (long i = 0; i < s.taps; ++i)
      for (long j = 0; j < s.taps; ++j)
        for (long c = 0; c < s.channels; ++c)
          offsets.push_back(i * l.row_floats() +
                            (j % s.stride_x * s.channels + c) * l.pitch + j / s.stride_x);
  }
  long window_rows(const Sizes& s, long rows) const { return (rows - 1) * s.stride_y + s.taps; }
  long most_rows(const Sizes& s) const {
    const long rows = (kWindowFloats / l.row_floats() - s.taps) / s.stride_y + 1;
    return std::clamp(rows, 1L, s.out_height);
  }
  void copy(const Sizes& s, const float* features, long image, long r0, long rows,
            float* window) const {
    for (long r = 0; r < window_rows(s, rows); ++r) {
      const long y = r0 * s.stride_y + r - s.low_y;
      const bool there = y >= 0 && y < s.height;
      copy_row(l, there ? features + (image * s.height + y) * s.width * s.channels : nullptr,
               s.width, s.low_x, window + r * l.row_floats());
    }
  }
};

void forward(const Sizes& s, const float* features, const float* filters, float* output, long part,
             long parts) {
  const Reading reading(s);
  const Layer& l = reading.l;
  const long terms = reading.offsets.size(), most = reading.most_rows(s);
  const long window_floats = reading.window_rows(s, most) * l.row_floats();
  arena.reset(Arena::rounded(terms * l.vectors * V) + Arena::rounded(window_floats));
  float* const packed = arena.take(terms * l.vectors * V);
  float* const window = arena.take(window_floats);
  pack(l, terms, packed, [&](long q, long h) { return filters[q * s.maps + h]; });
  const Range rows = share(s.images * s.out_height, part, parts);
  with_pixels(l, [&](auto pixels) {
    for (long row = rows.begin; row < rows.end;) {
      const long image = row / s.out_height, r0 = row % s.out_height;
      const long count = std::min({most, s.out_height - r0, rows.end - row});
      reading.copy(s, features, image, r0, count, window);
      for (long r = 0; r < count; ++r)
        convolve_row<decltype(pixels)::value>(l, window + r * s.stride_y * l.row_floats(),
                                              reading.offsets, packed, s.maps,
                                              output + (row + r) * s.out_width * s.maps);
      row += count;
    }
  });
}

// The gradient of the features of one phase of the image: a convolution of the cotangent.
struct Phase {
  long row, column;                        // the first pixel of the phase
  long height;                             // rows of the phase
  long low_row, high_row, low_column;      // what its first pixel reads of the cotangent
  Layer l;
  std::vector<long> offsets, taps;         // of each term; tap (i, j) is i * taps + j
  long reach() const { return high_row - low_row; }
  long most_rows() const {
    return std::clamp(kWindowFloats / l.row_floats() - reach(), 1L, height);
  }
};

Phase phase(const Sizes& s, long row, long column) {
  const auto lowest = [&](long low, long stride) { return floor_div(low - s.taps + 1, stride); };
  const auto highest = [&](long low, long stride) { return (stride - 1 + low) / stride; };
  const long low_row = lowest(s.low_y, s.stride_y), low_column = lowest(s.low_x, s.stride_x);
  const Layer l = layer(s.maps, s.channels, 1, ceil_div(s.width - column, s.stride_x),
                        highest(s.low_x, s.stride_x) - low_column);
  Phase p{row, column, ceil_div(s.height - row, s.stride_y),
          low_row, highest(s.low_y, s.stride_y), low_column, l, {}, {}};
  for (long i = 0; i < s.taps; ++i)
    for (long j = 0; j < s.taps; ++j) {
      const long y = row + s.low_y - i, x = column + s.low_x - j;
      if (y % s.stride_y || x % s.stride_x) continue;
      for (long h = 0; h < s.maps; ++h) {
        p.offsets.push_back((y / s.stride_y - low_row) * l.row_floats() + h * l.pitch +
                            x / s.stride_x - low_column);
        p.taps.push_back(i * s.taps + j);
      }
    }
  return p;
}

void features_gradient(const Sizes& s, const float* filters, const float* cotangent,
                       float* d_features, long part, long parts) {
  std::vector<Phase> phases;
  for (long a = 0; a < std::min(s.stride_y, s.height); ++a)
    for (long b = 0; b < std::min(s.stride_x, s.width); ++b) phases.push_back(phase(s, a, b));
  std::size_t packed_floats = 0, window_floats = 0;
  for (const Phase& p : phases) {
    packed_floats += Arena::rounded(p.offsets.size() * p.l.vectors * V);
    window_floats = std::max<std::size_t>(window_floats,
                                          (p.most_rows() + p.reach()) * p.l.row_floats());
  }
  arena.reset(packed_floats + Arena::rounded(window_floats));
  float* const window = arena.take(window_floats);
  std::vector<float*> packed;
  for (const Phase& p : phases) {
    packed.push_back(arena.take(p.offsets.size() * p.l.vectors * V));
    pack(p.l, p.offsets.size(), packed.back(), [&](long q, long c) {
      return filters[(p.taps[q] * s.channels + c) * s.maps + q % s.maps];
    });
  }
  const Range images = share(s.images, part, parts);
  for (long n = images.begin; n < images.end; ++n)
    for (std::size_t i = 0; i < phases.size(); ++i) {
      const Phase& p = phases[i];
      const float* const g = cotangent + n * s.out_height * s.out_width * s.maps;
      float* const to = d_features + ((n * s.height + p.row) * s.width + p.column) * s.channels;
      with_pixels(p.l, [&](auto pixels) {
        for (long y0 = 0; y0 < p.height; y0 += p.most_rows()) {
          const long rows = std::min(p.most_rows(), p.height - y0);
          for (long r = 0; r < rows + p.reach(); ++r) {
            const long o = y0 + r + p.low_row;
            const bool there = o >= 0 && o < s.out_height;
            copy_row(p.l, there ? g + o * s.out_width * s.maps : nullptr, s.out_width,
                     -p.low_column, window + r * p.l.row_floats());
          }
          for (long r = 0; r < rows; ++r)
            convolve_row<decltype(pixels)::value>(
                p.l, window + r * p.l.row_floats(), p.offsets, packed[i], s.stride_x * s.channels,
                to + (y0 + r) * s.stride_y * s.width * s.channels);
        }
      });
    }
}

// Adds to the sums of Q channels at one tap, for one vector of output channels and some rows.
template <int D, int Q>
__attribute__((noinline)) void add_terms(const float* window, long window_row, long pitch,
                                         const float* cotangent, long cotangent_step, long rows,
                                         long width, float* sums, long sums_step) {
  Vec s[Q] = {};
  for (long r = 0; r < rows; ++r, window += window_row) {
    const float* x = window;
    for (const float* end = window + width / D * D; x < end; x += D, cotangent += cotangent_step) {
      const Vec d = load(cotangent);
      UNROLL for (int q = 0; q < Q; ++q) s[q] += repeated<D>(x + q * pitch) * d;
    }
    if (width % D == 0) continue;
    // Beyond the row, the cotangent is zero, but a feature may be infinite.
    const Vec d = load(cotangent);
    UNROLL for (int q = 0; q < Q; ++q) s[q] += of_first_pixel<D>(x + q * pitch, AllLanes()) * d;
    cotangent += cotangent_step;
  }
  UNROLL for (int q = 0; q < Q; ++q)
    store(sums + q * sums_step, load(sums + q * sums_step) + s[q]);
}

// Packs a row of the cotangent as [groups of D pixels, vectors, V], with zeros after the last.
template <int D>
void pack_row(const Layer& l, const float* from, long groups, float* to) {
  if constexpr (D == 1) {
    for (long x = 0; x < l.width; ++x, to += l.vectors * V) {
      std::memcpy(to, from + x * l.outputs, sizeof(float) * l.outputs);
      std::fill(to + l.outputs, to + l.vectors * V, 0.0f);
    }
  } else {
    for (long g = 0; g < groups; ++g, to += V) {
      Vec pixels = {};
      const long present = std::min<long>(D, l.width - g * D);
      if (present == D && l.outputs == V / D) pixels = load(from + g * V);
      else
        for (long d = 0; d < present; ++d)
          std::memcpy(reinterpret_cast<float*>(&pixels) + d * (V / D),
                      from + (g * D + d) * l.outputs, sizeof(float) * l.outputs);
      store(to, to_lanes<D>(pixels, AllLanes()));
    }
  }
}

std::size_t filter_sums(const Sizes& s) {
  const Reading reading(s);
  return reading.offsets.size() * reading.l.vectors * V;
}

void filters_gradient(const Sizes& s, const float* features, const float* cotangent, float* sums,
                      long part, long parts) {
  const Reading reading(s);
  const Layer& l = reading.l;
  const long terms = reading.offsets.size(), most = reading.most_rows(s);
  const long groups = ceil_div(l.width, l.pixels), group_floats = l.vectors * V;
  const long window_floats = reading.window_rows(s, most) * l.row_floats();
  arena.reset(Arena::rounded(window_floats) + Arena::rounded(most * groups * group_floats));
  float* const window = arena.take(window_floats);
  float* const packed = arena.take(most * groups * group_floats);
  std::memset(sums, 0, sizeof(float) * terms * group_floats);
  const Range rows = share(s.images * s.out_height, part, parts);
  with_pixels(l, [&](auto pixels) {
    constexpr int D = decltype(pixels)::value;
    for (long row = rows.begin; row < rows.end;) {
      const long image = row / s.out_height, r0 = row % s.out_height;
      const long count = std::min({most, s.out_height - r0, rows.end - row});
      reading.copy(s, features, image, r0, count, window);
      for (long r = 0; r < count; ++r)
        pack_row<D>(l, cotangent + (row + r) * s.out_width * s.maps, groups,
                    packed + r * groups * group_floats);
      for (long v = 0; v < l.vectors; ++v)
        for (long q = 0; q < terms;) {
          const long left = s.channels - q % s.channels;  // at this tap
          const auto add = [&](auto channels) {
            constexpr int Q = decltype(channels)::value;
            add_terms<D, Q>(window + reading.offsets[q], s.stride_y * l.row_floats(), l.pitch,
                            packed + v * V, group_floats, count, l.width,
                            sums + q * group_floats + v * V, group_floats);
            q += Q;
          };
          if (left >= 8) add(std::integral_constant<int, 8>());
          else if (left >= 4) add(std::integral_constant<int, 4>());
          else add(std::integral_constant<int, 1>());
        }
      row += count;
    }
  });
}

void add_filter_sums(const Sizes& s, const float* sums, long summands, float* d_filters, long part,
                     long parts) {
  const Reading reading(s);
  const Layer& l = reading.l;
  const std::size_t all = filter_sums(s);
  const Range terms = share(reading.offsets.size(), part, parts);
  for (long q = terms.begin; q < terms.end; ++q)
    for (long h = 0; h < l.outputs; ++h) {
      float sum = 0;
      for (long n = 0; n < summands; ++n)
        for (long d = 0; d < l.pixels; ++d)
          sum += sums[n * all + q * l.vectors * V + h * l.pixels + d];
      d_filters[q * l.outputs + h] = sum;
    }
}

}  // namespace

extern const NarrowKernel narrow = {forward, features_gradient, filter_sums, filters_gradient,
                                    add_filter_sums};

}  // namespace MCN_ISA
}  // namespace mcn
