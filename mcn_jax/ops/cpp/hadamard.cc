// The MCconv with the Hadamard pattern of signs for few maps, forward and backward. Compiled once
// per instruction set, see ../native_build.py.
//
// The lanes of a vector are the planes of a map, or of several maps. For tap t, output pixel o and
// output map h, where `*` of two vectors of planes is by elements,
//
//   product_t[o, h] = sum over input maps g of  features[o + t, g] * filters[t, g, h],
//   output[o, h] = sum over t of  m[t] * H product_t[o, h].
//
// H is Sylvester's matrix of signs. It is symmetric, and H times a vector takes log2(planes)
// additions per lane, not `planes` of them. The backward pass transforms the cotangent,
//
//   u_t[o, h] = H (m[t] * cotangent[o, h]),
//   d_features[o + t, g] += filters[t, g, h] * u_t[o, h],
//   d_filters[t, g, h] = sum over o of  features[o + t, g] * u_t[o, h],
//   d_m[t] = sum over o and h of  cotangent[o, h] * H product_t[o, h].
//
// The work is cut into strips of output rows, whose u stay in cache. A vector may hold the planes
// of several output maps; a map of the input is then repeated in the lanes of all of them. Or a map
// may take two vectors. Output channels are padded to whole vectors, with filters of zero.

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "kernel.h"
#include "vectors.h"

// Pixels of a block of sums in registers, for one vector of output and for two.
#if defined(__AVX512F__) || defined(__aarch64__)
#define PIXELS_1 8  // 32 registers
#define PIXELS_2 4
#else
#define PIXELS_1 4  // 16 registers
#define PIXELS_2 2
#endif

namespace mcn {
namespace MCN_ISA {
namespace {

constexpr long kWindowFloats = 32 << 10;  // of the features that a strip reads
constexpr long kSpreadFloats = 64 << 10;  // of u in a strip
constexpr int kMapsAtOnce = 4;            // input maps of a block of sums in registers

// Vectors of the planes of one map.
template <int K>
constexpr int kPerMap = K > V ? K / V : 1;

typedef std::make_integer_sequence<int, V> AllLanes;

#if defined(__clang__) || __GNUC__ >= 12
#define LANES(a, b, lanes) __builtin_shufflevector(a, b, lanes)
#else
typedef int Numbers __attribute__((vector_size(4 * V)));
#define LANES(a, b, lanes) __builtin_shuffle(a, b, Numbers{lanes})
#endif

// Exchanges lanes whose numbers differ in bit D.
template <int D, int... I>
inline Vec swapped(Vec v, std::integer_sequence<int, I...>) {
  return LANES(v, v, (I ^ D)...);
}

// Repeats K floats in all lanes.
#if defined(__AVX512F__)
template <int K>
inline Vec repeated(const float* from) {
  // With all bits of the mask, because GCC 12 warns about what the plain intrinsics leave open.
  return K == 4 ? (Vec)_mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(from))
                : (Vec)_mm512_maskz_broadcast_f32x8(0xffff, _mm256_loadu_ps(from));
}
#elif defined(__AVX__)
template <int K>
inline Vec repeated(const float* from) {
  static_assert(K == 4, "eight planes fill a vector");
  return (Vec)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(from));
}
#else
template <int K>
Vec repeated(const float* from);  // never used: a vector has no more lanes than a map has planes
#endif

template <int D, int... I>
inline Vec signs(std::integer_sequence<int, I...>) {
  return Vec{(I & D ? -1.0f : 1.0f)...};
}

// Sums and differences of lanes whose numbers differ in bit D.
template <int D>
inline Vec butterfly(Vec v) {
  return v * signs<D>(AllLanes()) + swapped<D>(v, AllLanes());
}

// Multiplies the planes of each map by H. With two vectors per map, N is even.
template <int K, int N>
inline void transform(Vec (&v)[N]) {
  static_assert(K == 4 || K == 8, "other numbers of planes need other butterflies");
  UNROLL for (int n = 0; n < N; ++n) {
    v[n] = butterfly<2>(butterfly<1>(v[n]));
    if constexpr (K > 4 && V > 4) v[n] = butterfly<4>(v[n]);
  }
  if constexpr (kPerMap<K> == 2) UNROLL for (int n = 0; n < N; n += 2) {
      const Vec a = v[n], b = v[n + 1];
      v[n] = a + b, v[n + 1] = a - b;
    }
}

// The planes of a map of the input as they meet vector `n` of the output: in the lanes of all maps.
template <int K>
inline Vec planes_of_map(const float* planes, int n) {
  if constexpr (K < V) return repeated<K>(planes);
  else return load(planes + n % kPerMap<K> * V);
}

// Lanes of two vectors: of each 2*D lanes of a, then of b, the first half, or the second half.
template <int D, int... I>
inline Vec first_halves(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return LANES(a, b, (I / D * 2 * D + I % D)...);
}
template <int D, int... I>
inline Vec second_halves(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return LANES(a, b, (I / D * 2 * D + I % D + D)...);
}

// Adds the planes of all maps in each of N vectors. The sums, K planes for each vector, are then
// side by side in the first vectors. If a vector holds several maps, N is a power of two.
template <int K, int N, int D = V / 2>
inline void add_maps(Vec (&v)[N]) {
  if constexpr (D >= K && N > 1) {
    Vec halves[N / 2];
    UNROLL for (int n = 0; n < N / 2; ++n) halves[n] =
        first_halves<D>(v[2 * n], v[2 * n + 1], AllLanes()) +
        second_halves<D>(v[2 * n], v[2 * n + 1], AllLanes());
    add_maps<K, N / 2, D / 2>(halves);
    UNROLL for (int n = 0; n < N / 2; ++n) v[n] = halves[n];
  }
}

// The sizes in units of this file.
struct Layer {
  const Sizes& s;
  long in_maps, all_taps, outputs, vectors;  // outputs: channels of the output
  explicit Layer(const Sizes& s)
      : s(s), in_maps(s.channels / s.planes), all_taps(s.taps * s.taps),
        outputs(s.maps * s.planes), vectors(ceil_div(outputs, V)) {}
  // A row of a window, in pixels and in floats.
  long window_width() const { return (s.out_width - 1) * s.stride_x + s.taps; }
  long window_row() const { return window_width() * s.channels; }
  long window_rows(long rows) const { return (rows - 1) * s.stride_y + s.taps; }
  // What output pixel x of row r of a strip reads, and the filters of a block of vectors.
  const float* at(const float* window, long r, long x) const {
    return window + r * s.stride_y * window_row() + x * s.stride_x * s.channels;
  }
  const float* of_vector(const float* filters, long v) const {
    return filters + v * all_taps * in_maps * V;
  }
  // The output rows of a strip: as many as need at most `most` floats, `per_row` each, or one.
  long rows_of_strip(long per_row, long most) const {
    return std::max(1L, std::min(s.out_height, most / per_row));
  }
};

// Copies what output rows `begin` to `begin + rows` of an image read, with zeros around the image.
void copy_window(const Layer& l, const float* features, long image, long begin, long rows,
                 float* to) {
  const Sizes& s = l.s;
  const long first = std::clamp(s.low_x, 0L, l.window_width());
  const long last = std::clamp(s.low_x + s.width, first, l.window_width());
  for (long r = 0; r < l.window_rows(rows); ++r, to += l.window_row()) {
    const long y = begin * s.stride_y - s.low_y + r;
    if (y < 0 || y >= s.height) {
      std::memset(to, 0, sizeof(float) * l.window_row());
      continue;
    }
    const long pixel = (image * s.height + y) * s.width + first - s.low_x;
    std::memset(to, 0, sizeof(float) * first * s.channels);
    std::memcpy(to + first * s.channels, features + pixel * s.channels,
                sizeof(float) * (last - first) * s.channels);
    std::memset(to + last * s.channels, 0,
                sizeof(float) * (l.window_width() - last) * s.channels);
  }
}

// One lane of the filters of tap t and input map g.
float filter_lane(const Layer& l, const float* filters, long t, long g, long lane) {
  const long h = lane / l.s.planes, k = lane % l.s.planes;
  return h < l.s.maps ? filters[(t * l.s.channels + g * l.s.planes + k) * l.s.maps + h] : 0;
}

// Packs filters as [pairs of vectors, taps, input maps, vectors of a pair, V].
void pack_by_outputs(const Layer& l, const float* filters, float* packed) {
  for (long first = 0; first < l.vectors; first += 2) {
    const long count = std::min(2L, l.vectors - first);
    for (long t = 0; t < l.all_taps; ++t)
      for (long g = 0; g < l.in_maps; ++g)
        for (long lane = first * V; lane < (first + count) * V; ++lane)
          *packed++ = filter_lane(l, filters, t, g, lane);
  }
}

// Packs filters as [input maps in blocks, taps, vectors, input maps of a block, V].
void pack_by_inputs(const Layer& l, const float* filters, float* packed) {
  for (long first = 0; first < l.in_maps; first += kMapsAtOnce)
    for (long t = 0; t < l.all_taps; ++t)
      for (long v = 0; v < l.vectors; ++v)
        for (long g = first; g < std::min<long>(first + kMapsAtOnce, l.in_maps); ++g)
          for (long lane = v * V; lane < (v + 1) * V; ++lane)
            *packed++ = filter_lane(l, filters, t, g, lane);
}

// M as lanes, [taps, vectors of a map, V].
template <int K>
void pack_m(const Layer& l, const float* m, float* packed) {
  for (long t = 0; t < l.all_taps; ++t)
    for (long lane = 0; lane < kPerMap<K> * V; ++lane) *packed++ = m[t * K + lane % K];
}

// Calls f(first pixel, number of old pixels, P) for blocks of P pixels of a row. The last block may
// overlap the one before; that many of its pixels must not be stored or added again.
template <int P, typename F>
void for_pixels(long width, F&& f) {
  if (width < P) {
    for (long x = 0; x < width; ++x) f(x, 0, std::integral_constant<int, 1>());
    return;
  }
  for (long x = 0; x < width; x += P) {
    const long start = std::min(x, width - P);
    f(start, static_cast<int>(x - start), std::integral_constant<int, P>());
  }
}

// Calls f(first vector, N) for pairs of vectors, and maybe one at the end.
template <int K, typename F>
void for_vectors(long vectors, F&& f) {
  long v = 0;
  for (; v + 2 <= vectors; v += 2) f(v, std::integral_constant<int, 2>());
  if constexpr (kPerMap<K> == 1)
    if (v < vectors) f(v, std::integral_constant<int, 1>());
}

template <int N>
constexpr int kPixels = N == 1 ? PIXELS_1 : PIXELS_2;

// Calls f(row, first pixel, first vector, number of old pixels, P, N) for all blocks of some output
// rows.
template <int K, typename F>
void for_blocks(const Layer& l, long rows, F&& f) {
  for_vectors<K>(l.vectors, [&](long v, auto n) {
    for (long r = 0; r < rows; ++r)
      for_pixels<kPixels<decltype(n)::value>>(
          l.s.out_width, [&](long x, int old, auto p) { f(r, x, v, old, p, n); });
  });
}

// products[p][n] of a tap for P pixels, which begin at `x` and lie `step` apart.
template <int K, int P, int N>
inline __attribute__((always_inline)) void multiply(const float* x, long step, long in_maps,
                                                    const float* filters, Vec (&products)[P][N]) {
  for (long g = 0; g < in_maps; ++g, x += K, filters += N * V) {
    Vec f[N];
    UNROLL for (int n = 0; n < N; ++n) f[n] = load(filters + n * V);
    UNROLL for (int p = 0; p < P; ++p) UNROLL for (int n = 0; n < N; ++n) products[p][n] +=
        planes_of_map<K>(x + p * step, n) * f[n];
  }
}

// ------------------------------------------------------------------------------------------------
// Forward

template <int K, int P, int N>
__attribute__((noinline)) void forward_block(const Layer& l, const float* window,
                                             const float* filters, const float* m, float* output,
                                             int old, long lanes) {
  const Sizes& s = l.s;
  Vec sums[P][N] = {};
  for (long i = 0; i < s.taps; ++i)
    for (long j = 0; j < s.taps; ++j, filters += l.in_maps * N * V, m += kPerMap<K> * V) {
      Vec products[P][N] = {};
      multiply<K, P, N>(window + i * l.window_row() + j * s.channels, s.stride_x * s.channels,
                        l.in_maps, filters, products);
      UNROLL for (int p = 0; p < P; ++p) {
        transform<K, N>(products[p]);
        UNROLL for (int n = 0; n < N; ++n) sums[p][n] +=
            load(m + n % kPerMap<K> * V) * products[p][n];
      }
    }
  UNROLL for (int p = 0; p < P; ++p) {
    if (p < old) continue;
    UNROLL for (int n = 0; n < N; ++n) {
      float* to = output + p * l.outputs + n * V;
      if (lanes >= (n + 1) * V)
        store(to, sums[p][n]);
      else
        std::memcpy(to, &sums[p][n], sizeof(float) * (lanes - n * V));
    }
  }
}

template <int K>
void forward_of(const Sizes& s, const float* features, const float* filters, const float* m,
                float* output, long part, long parts) {
  const Layer l(s);
  const long most_rows = l.rows_of_strip(s.stride_y * l.window_row(), kWindowFloats);
  const long all_filters = l.all_taps * l.in_maps * l.vectors * V;
  const long window_floats = l.window_rows(most_rows) * l.window_row();
  arena.reset(Arena::rounded(all_filters) + Arena::rounded(l.all_taps * kPerMap<K> * V) +
              Arena::rounded(window_floats));
  float* const packed = arena.take(all_filters);
  float* const packed_m = arena.take(l.all_taps * kPerMap<K> * V);
  float* const window = arena.take(window_floats);
  pack_by_outputs(l, filters, packed);
  pack_m<K>(l, m, packed_m);
  const Range rows = share(s.images * s.out_height, part, parts);
  for (long row = rows.begin; row < rows.end;) {
    const long image = row / s.out_height, r0 = row % s.out_height;
    const long count = std::min({most_rows, s.out_height - r0, rows.end - row});
    copy_window(l, features, image, r0, count, window);
    for_blocks<K>(l, count, [&](long r, long x, long v, int old, auto p, auto n) {
      forward_block<K, decltype(p)::value, decltype(n)::value>(
          l, l.at(window, r, x), l.of_vector(packed, v), packed_m,
          output + ((row + r) * s.out_width + x) * l.outputs + v * V, old, l.outputs - v * V);
    });
    row += count;
  }
}

// ------------------------------------------------------------------------------------------------
// Backward

std::size_t filter_sums(const Sizes& s) {
  const Layer l(s);
  return l.all_taps * l.in_maps * l.vectors * V;
}

// The u of a strip: [taps, rows, columns, vectors, V], with columns of zeros on both sides.
struct Spread {
  float* start;
  long tap, row, column, guard;
  float* at(long t, long r, long x) const {
    return start + t * tap + r * row + (guard + x) * column;
  }
};

// u of P pixels, and the sums of the gradient of M.
template <int K, int P, int N>
__attribute__((noinline)) void spread_block(const Layer& l, const float* window,
                                            const float* filters, const float* m,
                                            const float* cotangent, float* u, const Spread& places,
                                            int old, float* m_sums) {
  const Sizes& s = l.s;
  Vec d[P][N];
  UNROLL for (int p = 0; p < P; ++p) UNROLL for (int n = 0; n < N; ++n) d[p][n] =
      p < old ? Vec{} : load(cotangent + (p * l.vectors + n) * V);
  for (long i = 0; i < s.taps; ++i)
    for (long j = 0; j < s.taps; ++j, filters += l.in_maps * N * V, m += kPerMap<K> * V,
              m_sums += kPerMap<K> * V, u += places.tap) {
      Vec products[P][N] = {};
      multiply<K, P, N>(window + i * l.window_row() + j * s.channels, s.stride_x * s.channels,
                        l.in_maps, filters, products);
      UNROLL for (int p = 0; p < P; ++p) transform<K, N>(products[p]);
      UNROLL for (int n = 0; n < N; ++n) {
        float* const place = m_sums + n % kPerMap<K> * V;
        Vec sum = load(place);
        UNROLL for (int p = 0; p < P; ++p) sum += d[p][n] * products[p][n];
        store(place, sum);
      }
      UNROLL for (int p = 0; p < P; ++p) {
        if (p < old) continue;
        Vec spread[N];
        UNROLL for (int n = 0; n < N; ++n) spread[n] = load(m + n % kPerMap<K> * V) * d[p][n];
        transform<K, N>(spread);
        UNROLL for (int n = 0; n < N; ++n) store(u + p * places.column + n * V, spread[n]);
      }
    }
}

// sums[t][g][n] += sum over the pixels of a strip of  features * u_t, for T taps of a row, G input
// maps and N vectors.
template <int K, int T, int G, int N>
__attribute__((noinline)) void filter_block(const Layer& l, const float* window, const float* u,
                                            const Spread& places, long rows, float* sums) {
  const Sizes& s = l.s;
  Vec found[T][G][N] = {};
  for (long r = 0; r < rows; ++r) {
    const float *x = window + r * s.stride_y * l.window_row(), *from = u + r * places.row;
    for (long c = 0; c < s.out_width; ++c, x += s.stride_x * s.channels, from += places.column)
      UNROLL for (int t = 0; t < T; ++t) {
        Vec d[N];
        UNROLL for (int n = 0; n < N; ++n) d[n] = load(from + t * places.tap + n * V);
        UNROLL for (int g = 0; g < G; ++g) UNROLL for (int n = 0; n < N; ++n) found[t][g][n] +=
            planes_of_map<K>(x + t * s.channels + g * K, n) * d[n];
      }
  }
  UNROLL for (int t = 0; t < T; ++t) UNROLL for (int g = 0; g < G; ++g) {
    float* const to = sums + (t * l.in_maps + g) * l.vectors * V;
    UNROLL for (int n = 0; n < N; ++n) store(to + n * V, load(to + n * V) + found[t][g][n]);
  }
}

// The taps in one direction that read an input pixel, each for an output pixel.
struct Reader {
  long tap, output;
};
typedef std::vector<Reader> Readers;

Readers readers(long pixel, long low, long stride, long taps) {
  Readers found;
  for (long i = 0; i < taps; ++i)
    if ((pixel + low - i) % stride == 0) found.push_back({i, (pixel + low - i) / stride});
  return found;
}

// Adds a strip's share of d_features, for P pixels that lie `step` floats apart and G input maps.
template <int K, int P, int G>
__attribute__((noinline)) void features_block(const Layer& l, const Spread& u,
                                              const Readers& rows, const Readers& columns, long x,
                                              const float* filters, float* d_features, long step,
                                              int old) {
  constexpr int Q = kPerMap<K>;
  Vec sums[P][G][Q] = {};
  for (const auto& [i, r] : rows)
    for (const auto& [j, c] : columns) {
      const float* from = u.at(i * l.s.taps + j, r, c + x);
      const float* f = filters + (i * l.s.taps + j) * l.vectors * G * V;
      for (long v = 0; v < l.vectors; v += Q, f += Q * G * V)
        UNROLL for (int q = 0; q < Q; ++q) UNROLL for (int p = 0; p < P; ++p) {
          const Vec d = load(from + p * u.column + (v + q) * V);
          UNROLL for (int g = 0; g < G; ++g) sums[p][g][q] += d * load(f + (q * G + g) * V);
        }
    }
  UNROLL for (int p = 0; p < P; ++p) {
    if (p < old) continue;
    constexpr int maps = Q == 1 ? kMapsAtOnce : G;
    Vec of_maps[maps * Q] = {};
    UNROLL for (int g = 0; g < G; ++g) UNROLL for (int q = 0; q < Q; ++q) of_maps[g * Q + q] =
        sums[p][g][q];
    add_maps<K>(of_maps);
    UNROLL for (int n = 0; n * V < G * K; ++n) {
      float* const to = d_features + p * step + n * V;
      if (n * V + V <= G * K) {
        store(to, load(to) + of_maps[n]);
      } else {
        float planes[V];
        std::memcpy(planes, &of_maps[n], sizeof(planes));
        for (int k = 0; k < G * K - n * V; ++k) to[k] += planes[k];
      }
    }
  }
}

// The part of the backward pass that one strip of output rows takes: `rows` rows of an image,
// beginning with `begin`.
template <int K>
struct Strip {
  const Layer& l;
  const Spread& u;
  const float* window;
  long image, begin, rows;

  // Computes u from the cotangent, [rows, columns, vectors, V], and adds to the sums for M.
  void spread(const float* cotangent, const float* filters, const float* m, float* m_sums) const {
    for_blocks<K>(l, rows, [&](long r, long x, long v, int old, auto p, auto n) {
      spread_block<K, decltype(p)::value, decltype(n)::value>(
          l, l.at(window, r, x), l.of_vector(filters, v), m,
          cotangent + ((r * l.s.out_width + x) * l.vectors + v) * V, u.at(0, r, x) + v * V, u, old,
          m_sums);
    });
  }

  // Adds to the sums for the filters, [taps, input maps, vectors, V].
  void add_filters(float* sums) const {
    const Sizes& s = l.s;
    for_vectors<K>(l.vectors, [&](long v, auto n) {
      constexpr int N = decltype(n)::value;
      for (long t = 0; t < l.all_taps;) {
        const float* x = window + t / s.taps * l.window_row() + t % s.taps * s.channels;
        const auto with = [&](auto taps, auto maps, long g) {
          filter_block<K, decltype(taps)::value, decltype(maps)::value, N>(
              l, x + g * K, u.at(t, 0, 0) + v * V, u, rows,
              sums + ((t * l.in_maps + g) * l.vectors + v) * V);
        };
        const auto of_all_maps = [&](auto taps) {
          long g = 0;
          for (; g + kMapsAtOnce <= l.in_maps; g += kMapsAtOnce)
            with(taps, std::integral_constant<int, kMapsAtOnce>(), g);
          for (; g < l.in_maps; ++g) with(taps, std::integral_constant<int, 1>(), g);
          t += taps;
        };
        // Several taps, so that no addition waits for the one before.
        if (N == 1 && t % s.taps + 3 <= s.taps)
          of_all_maps(std::integral_constant<int, 3>());
        else
          of_all_maps(std::integral_constant<int, 1>());
      }
    });
  }

  // Adds to d_features of the image.
  void add_features(const float* filters, float* d_features) const {
    const Sizes& s = l.s;
    const long first = std::max(0L, begin * s.stride_y - s.low_y);
    const long last = std::min(s.height, (begin + rows - 1) * s.stride_y - s.low_y + s.taps);
    const long step = s.stride_x * s.channels;
    std::vector<Readers> columns;  // by phase
    for (long phase = 0; phase < std::min(s.stride_x, s.width); ++phase)
      columns.push_back(readers(phase, s.low_x, s.stride_x, s.taps));
    for (long y = first; y < last; ++y) {
      Readers of_rows;
      for (const auto& [i, r] : readers(y, s.low_y, s.stride_y, s.taps))
        if (r >= begin && r < begin + rows) of_rows.push_back({i, r - begin});
      for (long phase = 0; phase < std::min(s.stride_x, s.width); ++phase) {
        float* const to = d_features + ((image * s.height + y) * s.width + phase) * s.channels;
        const auto of_pixels = [&](long x, int old, auto p) {
          const auto with = [&](auto maps, long g) {
            features_block<K, decltype(p)::value, decltype(maps)::value>(
                l, u, of_rows, columns[phase], x, filters + g * l.all_taps * l.vectors * V,
                to + x * step + g * K, step, old);
          };
          long g = 0;
          for (; g + kMapsAtOnce <= l.in_maps; g += kMapsAtOnce)
            with(std::integral_constant<int, kMapsAtOnce>(), g);
          switch (l.in_maps - g) {
            case 1:
              return with(std::integral_constant<int, 1>(), g);
            case 2:
              return with(std::integral_constant<int, 2>(), g);
            case 3:
              return with(std::integral_constant<int, 3>(), g);
          }
        };
        for_pixels<PIXELS_2>(ceil_div(s.width - phase, s.stride_x), of_pixels);
      }
    }
  }
};

template <int K>
void backward_of(const Sizes& s, const float* features, const float* filters,
                 const float* m_sum_filters, const float* m, const float* cotangent,
                 float* d_features, float* sums, double* m_sums, long part, long parts) {
  const Layer l(s);
  const Range images = share(s.images, part, parts);
  // Columns of zeros on both sides. The last tap of the first input pixel and the first tap of the
  // last one read there.
  const long guard = std::max(s.taps, (s.width - 1 + s.low_x) / s.stride_x - s.out_width + 1);
  const long pixel = l.vectors * V, width = s.out_width + 2 * guard;
  const long most_rows = std::min(l.rows_of_strip(l.all_taps * width * pixel, kSpreadFloats),
                                  l.rows_of_strip(s.stride_y * l.window_row(), kWindowFloats));
  const long all_filters = filter_sums(s), m_floats = l.all_taps * kPerMap<K> * V;
  const long window_floats = l.window_rows(most_rows) * l.window_row();
  const long u_floats = l.all_taps * most_rows * width * pixel;
  const long padded_floats = l.outputs % V ? most_rows * s.out_width * pixel : 0;
  arena.reset(2 * Arena::rounded(all_filters) + 2 * Arena::rounded(m_floats) +
              Arena::rounded(window_floats) + Arena::rounded(u_floats) +
              Arena::rounded(padded_floats));
  float* const by_outputs = arena.take(all_filters);
  float* const by_inputs = arena.take(all_filters);
  float* const packed_m = arena.take(m_floats);
  float* const m_lanes = arena.take(m_floats);
  float* const window = arena.take(window_floats);
  const Spread u{arena.take(u_floats), most_rows * width * pixel, width * pixel, pixel, guard};
  float* const padded = arena.take(padded_floats);
  pack_by_outputs(l, m_sum_filters, by_outputs);
  pack_by_inputs(l, filters, by_inputs);
  pack_m<K>(l, m, packed_m);
  std::memset(u.start, 0, sizeof(float) * u_floats);
  std::memset(padded, 0, sizeof(float) * padded_floats);
  std::memset(sums, 0, sizeof(float) * all_filters);
  std::fill_n(m_sums, l.all_taps * K, 0.0);
  const long image_floats = s.height * s.width * s.channels;
  std::memset(d_features + images.begin * image_floats, 0,
              sizeof(float) * (images.end - images.begin) * image_floats);

  for (long image = images.begin; image < images.end; ++image)
    for (long begin = 0; begin < s.out_height; begin += most_rows) {
      const long rows = std::min(most_rows, s.out_height - begin);
      const Strip<K> strip{l, u, window, image, begin, rows};
      copy_window(l, features, image, begin, rows, window);
      const float* d = cotangent + (image * s.out_height + begin) * s.out_width * l.outputs;
      if (l.outputs % V) {  // whole vectors for each pixel
        for (long n = 0; n < rows * s.out_width; ++n)
          std::memcpy(padded + n * pixel, d + n * l.outputs, sizeof(float) * l.outputs);
        d = padded;
      }
      std::memset(m_lanes, 0, sizeof(float) * m_floats);
      strip.spread(d, by_outputs, packed_m, m_lanes);
      for (long t = 0; t < l.all_taps; ++t)
        for (long lane = 0; lane < kPerMap<K> * V; ++lane)
          m_sums[t * K + lane % K] += m_lanes[t * kPerMap<K> * V + lane];
      strip.add_filters(sums);
      strip.add_features(by_inputs, d_features);
    }
}

void add_sums(const Sizes& s, const float* sums, long summands, float* d_filters, long part,
              long parts) {
  const Layer l(s);
  const long all = filter_sums(s);
  const Range own = share(l.all_taps * l.in_maps, part, parts);
  for (long n = own.begin; n < own.end; ++n)
    for (long h = 0; h < s.maps; ++h)
      for (long k = 0; k < s.planes; ++k) {
        const float* from = sums + n * l.vectors * V + h * s.planes + k;
        float sum = 0;
        for (long summand = 0; summand < summands; ++summand) sum += from[summand * all];
        d_filters[(n * s.planes + k) * s.maps + h] = sum;
      }
}

void forward(const Sizes& s, const float* features, const float* filters, const float* m,
             float* output, long part, long parts) {
  const auto with = s.planes == 4 ? forward_of<4> : forward_of<8>;
  with(s, features, filters, m, output, part, parts);
}

void backward(const Sizes& s, const float* features, const float* filters,
              const float* m_sum_filters, const float* m, const float* cotangent,
              float* d_features, float* sums, double* m_sums, long part, long parts) {
  const auto with = s.planes == 4 ? backward_of<4> : backward_of<8>;
  with(s, features, filters, m_sum_filters, m, cotangent, d_features, sums, m_sums, part, parts);
}

}  // namespace

extern const HadamardKernel hadamard = {forward, filter_sums, backward, add_sums};

}  // namespace MCN_ISA
}  // namespace mcn
