// The factored MCconv, forward and backward. Compiled once per instruction set, see
// ../native_build.py.
//
// All planes of a map share one filter, so
//
//   output[p, h, k] = sum over taps t of  m[t, k] * product_t[p + shift of t, h],
//   product_t[q, h] = sum over channels c of  features[q, c] * filters[t, c, h]
//
// The work is cut into strips of rows. The products of a strip stay in cache: a matrix product
// writes them, the mix by m reads them once. The backward pass mixes the cotangent into the
// gradients of the products,
//
//   d_product_t[q, h] = sum over planes k of  m[t, k] * cotangent[q - shift of t, h, k],
//
// from which two matrix products give the gradients of features and filters. The gradient of m
// needs the products again; they are computed a second time, unless the forward pass saved them.
// An ordinary convolution is the case of one plane and m = 1, where nobody needs that gradient.
// With slices of channels, each tap of each slice has a product of its own, and m weighs them all.
//
// With strides, the pixels that one tap reads form one phase of the image, and each phase has taps
// of its own. With stride 1, the image is the only phase.
//
// Matrix products hold a tile of sums in registers: TILE_3 rows of three vectors, or TILE_2 rows of
// two or one.

#include "kernel.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "transpose.h"
#include "vectors.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define TILE_2 12  // 32 registers
#define TILE_3 8
#else
#define TILE_2 6  // 16 registers
#define TILE_3 4
#endif

namespace mcn {
namespace MCN_ISA {
namespace {

constexpr long kMostPixels = 256;          // of a strip, unless one row has more
constexpr long kProductFloats = 48 << 10;  // of the products of a strip
constexpr long kFilterFloats = 160 << 10;  // of the filters that a part packs at a time

// The taps in one direction that read one phase: taps first, first + step, ..., `count` of them.
// Output pixel o reads pixel o + shift + n of the phase with the n-th of them.
struct Line {
  long phase, size;  // size: pixels of the phase
  long first, step, count, shift;
};

Line line(long pixels, long taps, long stride, long low, long phase) {
  Line found{phase, ceil_div(pixels - phase, stride), 0, stride, 0, 0};
  found.first = ((phase + low) % stride + stride) % stride;
  if (found.first < taps) found.count = ceil_div(taps - found.first, stride);
  found.shift = floor_div(found.first - low, stride);
  return found;
}

// A range of lanes that one tap (i, j) fills with maps, in a row of lanes for all taps.
struct Piece {
  long lane, row, column, i, j;  // row and column: among those of the phase
};

// The taps of a phase of one slice of channels, as lanes: one group of lanes per row of taps,
// padded to whole vectors; in a group first the last column, because d_product then reads the
// cotangent contiguously.
struct Lanes {
  Line rows, columns;
  long slice;
  long maps;          // per tap
  long real, padded;  // lanes of a group
  long all() const { return rows.count * padded; }
  std::vector<Piece> pieces() const {
    std::vector<Piece> found;
    for (long r = 0; r < rows.count; ++r)
      for (long c = 0; c < columns.count; ++c)
        found.push_back({r * padded + (columns.count - 1 - c) * maps, r, c,
                         rows.first + r * rows.step, columns.first + c * columns.step});
    return found;
  }
};

Lanes lanes(const Line& rows, const Line& columns, long slice, long maps) {
  long real = columns.count * maps;
  return {rows, columns, slice, maps, real, round_up(real)};
}

// Calls f for every phase of every slice of channels, also for phases of no pixels, which have taps
// in images smaller than the stride.
template <typename F>
void for_phases(const Sizes& s, long maps, F&& f) {
  for (long slice = 0; slice < s.slices; ++slice)
    for (long a = 0; a < s.stride_y; ++a)
      for (long b = 0; b < s.stride_x; ++b)
        f(lanes(line(s.height, s.taps, s.stride_y, s.low_y, a),
                line(s.width, s.taps, s.stride_x, s.low_x, b), slice, maps));
}

// The index of a tap among the taps of all slices.
long tap_of(const Sizes& s, const Lanes& l, const Piece& p) {
  return (l.slice * s.taps + p.i) * s.taps + p.j;
}

// Vectors of the next panel of columns: three, or fewer at the end, but not one after three.
long panel_vectors(long left) { return left == 4 ? 2 : std::min(left, 3L); }

// ------------------------------------------------------------------------------------------------
// Matrix products

// sums[r][v] = sum over k of a(r, k) * b[..][v], for k = begin, begin + stride, ... and the rows of
// b, one after another.
template <int R, int N, typename A>
inline __attribute__((always_inline)) void tile(const A& a, long begin, long end, long stride,
                                                const float* b, long b_step, Vec (&sums)[R][N]) {
  for (long k = begin; k < end; k += stride, b += b_step) {
    Vec row[N];
    UNROLL for (int v = 0; v < N; ++v) row[v] = load(b + v * V);
    UNROLL for (int r = 0; r < R; ++r) {
      const float x = a(r, k);
      UNROLL for (int v = 0; v < N; ++v) sums[r][v] += x * row[v];
    }
  }
}

// The rows of a matrix: `groups` of `depth` numbers, which lie `stride` apart, each group `step`
// after the one before.
struct Rows {
  const float* const* start;
  long count, groups, depth, step, stride;
};

// Multiplies rows by a panel of N vectors, groups * depth rows high. put(row, v, sums) receives the
// result.
template <int R, int N, typename Put>
__attribute__((noinline)) void rows_by_panel(const Rows& rows, const float* b, const Put& put) {
  for (long start = 0; start < rows.count; start += R) {
    const float* a[R];
    UNROLL for (int r = 0; r < R; ++r) a[r] = rows.start[std::min(start + r, rows.count - 1)];
    Vec sums[R][N] = {};
    for (long g = 0; g < rows.groups; ++g)
      tile<R, N>([&](int r, long k) { return a[r][k]; }, g * rows.step,
                 g * rows.step + rows.depth * rows.stride, rows.stride,
                 b + g * rows.depth * N * V, N * V, sums);
    const int present = static_cast<int>(std::min<long>(R, rows.count - start));
    UNROLL for (int r = 0; r < R; ++r) if (r < present) UNROLL for (int v = 0; v < N; ++v)
        put(start + r, v, sums[r][v]);
  }
}

// Calls put(row, vector, sums) for all rows of a, and all `vectors` of b, which is packed by
// panels.
template <typename Put>
void multiply_rows(const Rows& a, const float* b, long vectors, const Put& put) {
  for (long first = 0; first < vectors;) {
    const long n = panel_vectors(vectors - first);
    auto shifted = [&](long row, int v, Vec sums) { put(row, first + v, sums); };
    if (n == 3) rows_by_panel<TILE_3, 3>(a, b, shifted);
    if (n == 2) rows_by_panel<TILE_3, 2>(a, b, shifted);
    if (n == 1) rows_by_panel<TILE_3, 1>(a, b, shifted);
    b += n * V * a.groups * a.depth;
    first += n;
  }
}

// c[r][..] += sum over k of a[k][r] * b[k][..] for `count` columns r of a. Reads up to a tile
// beyond the last column.
template <int R, int N>
__attribute__((noinline)) void columns_by_panel(const float* a, long a_step, long count, long depth,
                                                const float* b, long b_step, float* c,
                                                long c_step) {
  for (long start = 0; start < count; start += R) {
    Vec sums[R][N] = {};
    const float* columns = a + start;
    tile<R, N>([&](int r, long k) { return columns[k * a_step + r]; }, 0, depth, 1, b, b_step,
               sums);
    const int present = static_cast<int>(std::min<long>(R, count - start));
    UNROLL for (int r = 0; r < R; ++r) if (r < present) UNROLL for (int v = 0; v < N; ++v) {
      float* place = c + (start + r) * c_step + v * V;
      store(place, load(place) + sums[r][v]);
    }
  }
}

void multiply_columns(const float* a, long a_step, long count, long depth, const float* b,
                      long b_step, long vectors, float* c, long c_step) {
  for (long first = 0; first < vectors;) {
    const long n = panel_vectors(vectors - first);
    if (n == 3) columns_by_panel<TILE_3, 3>(a, a_step, count, depth, b, b_step, c, c_step);
    if (n == 2) columns_by_panel<TILE_2, 2>(a, a_step, count, depth, b, b_step, c, c_step);
    if (n == 1) columns_by_panel<TILE_2, 1>(a, a_step, count, depth, b, b_step, c, c_step);
    b += n * V, c += n * V, first += n;
  }
}

// ------------------------------------------------------------------------------------------------
// Packing

// A matrix of `depth` rows that is packed by panels, each of up to three vectors of columns.
struct Panels {
  long depth, vectors;
  // Calls f(first column, columns, place of row 0, step between rows) for each panel.
  template <typename F>
  void each(float* packed, F&& f) const {
    for (long first = 0; first < vectors;) {
      long n = panel_vectors(vectors - first);
      f(first * V, n * V, packed, n * V);
      packed += n * V * depth;
      first += n;
    }
  }
};

// The place of a tap's filters of a channel of a slice, for the first map.
long filter_place(const Sizes& s, const Lanes& l, const Piece& p, long channel) {
  return (((p.i * s.taps + p.j) * s.channels + channel) * s.slices + l.slice) * s.maps;
}

// Packs a slice's filters of maps h0 to h0 + maps as [channels, lanes].
void pack_lanes(const Sizes& s, const float* filters, const Lanes& l, long h0, float* packed) {
  std::vector<Piece> pieces = l.pieces();
  Panels{s.channels, l.all() / V}.each(
      packed, [&](long first, long columns, float* rows, long step) {
        std::memset(rows, 0, sizeof(float) * s.channels * step);
        for (const Piece& piece : pieces) {
          long begin = std::max(piece.lane, first),
               end = std::min(piece.lane + l.maps, first + columns);
          if (begin >= end) continue;
          const float* from = filters + filter_place(s, l, piece, 0) + h0 + begin - piece.lane;
          float* to = rows + begin - first;
          long length = end - begin;
          for (long c = 0; c < s.channels; ++c, from += s.slices * s.maps, to += step) {
            __builtin_prefetch(from + 16 * s.slices * s.maps);
            if (length == V)
              store(to, load(from));
            else
              for (long h = 0; h < length; ++h) to[h] = from[h];
          }
        }
      });
}

// Packs the same filters transposed, as [real lanes of all groups, channels].
void pack_channels(const Sizes& s, const float* filters, const Lanes& l, long h0, float* packed) {
  long depth = l.rows.count * l.real;
  std::vector<Piece> pieces = l.pieces();
  Panels{depth, round_up(s.channels) / V}.each(
      packed, [&](long first, long columns, float* rows, long step) {
        long present = std::min(columns, s.channels - first);
        if (present < columns) std::memset(rows, 0, sizeof(float) * depth * step);
        for (const Piece& piece : pieces) {
          long row = piece.lane - piece.row * (l.padded - l.real);
          const float* from = filters + filter_place(s, l, piece, first) + h0;
          transpose<false>(from, s.slices * s.maps, present, l.maps, rows + row * step, step);
        }
      });
}

template <int K>
void split_planes(const float* from, long count, float* const* to) {
  for (long n = 0; n < count; ++n) UNROLL for (int k = 0; k < K; ++k) to[k][n] = from[n * K + k];
}

// [count, planes] -> planes arrays [count].
void split(const float* from, long count, long planes, float* const* to) {
  switch (planes) {
    case 1:
      return split_planes<1>(from, count, to);
    case 2:
      return split_planes<2>(from, count, to);
    case 4:
      return split_planes<4>(from, count, to);
    case 8:
      return split_planes<8>(from, count, to);
  }
  for (long n = 0; n < count; ++n)
    for (long k = 0; k < planes; ++k) to[k][n] = from[n * planes + k];
}

template <int K>
void join_planes(const float* from, long step, long count, float* to) {
  for (long n = 0; n < count; ++n)
    UNROLL for (int k = 0; k < K; ++k) to[n * K + k] = from[k * step + n];
}

// planes arrays [count], `step` apart -> [count, planes].
void join(const float* from, long step, long count, long planes, float* to) {
  switch (planes) {
    case 1:
      return join_planes<1>(from, step, count, to);
    case 2:
      return join_planes<2>(from, step, count, to);
    case 4:
      return join_planes<4>(from, step, count, to);
    case 8:
      return join_planes<8>(from, step, count, to);
  }
  for (long n = 0; n < count; ++n)
    for (long k = 0; k < planes; ++k) to[n * planes + k] = from[k * step + n];
}

// Calls f(K, first plane) for blocks of K = 4, 2 or 1 planes, with K as a compile-time constant.
template <typename F>
void for_planes(long planes, F&& f) {
  long k = 0;
  for (; planes - k >= 4; k += 4) f(std::integral_constant<int, 4>(), k);
  for (; planes - k >= 2; k += 2) f(std::integral_constant<int, 2>(), k);
  for (; planes - k >= 1; k += 1) f(std::integral_constant<int, 1>(), k);
}

// The number of maps that are computed together, so that their packed filters stay in cache.
long maps_at_a_time(const Sizes& s) {
  long per_map = s.taps * s.taps * s.channels * s.slices;
  if (per_map * s.maps <= kFilterFloats) return s.maps;
  long most = kFilterFloats / per_map / V * V;
  return std::min(s.maps, std::max<long>(most, V));
}

// Layers with more filters than features are split by maps. So each part packs filters of its own.
bool splits_maps(const Sizes& s) {
  return s.taps * s.taps * s.maps > s.images * s.height * s.width && s.maps > maps_at_a_time(s);
}

long most_parts(const Sizes& s) {
  return splits_maps(s) ? ceil_div(s.maps, maps_at_a_time(s)) : s.images;
}

// The maps of a part, in whole blocks, and its rows or images out of `all`.
struct Share {
  Range maps, others;
};
Share share_of(const Sizes& s, long all, long part, long parts) {
  if (!splits_maps(s)) return {{0, s.maps}, share(all, part, parts)};
  const long block = maps_at_a_time(s);
  const Range blocks = share(ceil_div(s.maps, block), part, parts);
  return {{blocks.begin * block, std::min(blocks.end * block, s.maps)}, {0, all}};
}

const float* pixel(const Sizes& s, const float* features, const Lanes& l, long n, long y, long x) {
  const long row = n * s.height + l.rows.phase + y * s.stride_y;
  return features + (row * s.width + l.columns.phase + x * s.stride_x) * s.channels * s.slices +
         l.slice;
}

// ------------------------------------------------------------------------------------------------
// Forward

// out[k][..] = sum over taps of m[t][k] * products[t][..] for K planes and a row of `count` floats.
template <int K>
void mix_row(const std::vector<const float*>& products, const std::vector<const float*>& m, long k0,
             long count, float* out, long out_step) {
  constexpr int N = K >= 4 ? 4 : 2;
  for (long n = 0; n < count; n += N * V) {
    Vec sums[K][N] = {};
    for (std::size_t t = 0; t < products.size(); ++t) {
      Vec x[N];
      UNROLL for (int v = 0; v < N; ++v) x[v] = load(products[t] + n + v * V);
      UNROLL for (int k = 0; k < K; ++k) UNROLL for (int v = 0; v < N; ++v) sums[k][v] +=
          m[t][k0 + k] * x[v];
    }
    UNROLL for (int k = 0; k < K; ++k) UNROLL for (int v = 0; v < N; ++v)
        store(out + k * out_step + n + v * V, sums[k][v]);
  }
}

template <int M>
void gather_whole(const float* from, long from_step, long count, float* to) {
  for (long n = 0; n < count; ++n) std::memcpy(to + n * M, from + n * from_step, sizeof(float) * M);
}

// Copies `maps` floats from each of `count` places, from_step apart, to places side by side.
void gather_maps(const float* from, long from_step, long count, long maps, float* to) {
  if (maps == 4) return gather_whole<4>(from, from_step, count, to);
  if (maps == 8) return gather_whole<8>(from, from_step, count, to);
  for (long n = 0; n < count; ++n) std::copy_n(from + n * from_step, maps, to + n * maps);
}

// Calls f(first map, lanes, place of the phase) for the products of every phase of all blocks of
// maps, as they are saved: [images, rows, columns, lanes], one phase after another. Returns their
// number.
template <typename F>
std::size_t for_saved(const Sizes& s, F&& f) {
  const long block = maps_at_a_time(s);
  std::size_t place = 0;
  for (long h0 = 0; h0 < s.maps; h0 += block)
    for_phases(s, std::min(block, s.maps - h0), [&](const Lanes& l) {
      f(h0, l, place);
      place += s.images * l.rows.size * l.columns.size * l.all();
    });
  return place;
}

std::size_t products(const Sizes& s) {
  return for_saved(s, [](long, const Lanes&, std::size_t) {});
}

// The saved products of maps h0 and after, by phases; null pointers if none are saved.
template <typename Float>
std::vector<Float*> saved_phases(const Sizes& s, Float* saved, long h0) {
  std::vector<Float*> found;
  for_saved(s, [&](long first, const Lanes&, std::size_t place) {
    if (first == h0) found.push_back(saved ? saved + place : nullptr);
  });
  return found;
}

void forward(const Sizes& s, const float* features, const float* filters, const float* m,
             float* output, float* saved, long part, long parts) {
  const long all_taps = s.slices * s.taps * s.taps, block = maps_at_a_time(s);
  const long most_rows =
      std::max(1L, std::min({s.out_height, kMostPixels * 4 / s.out_width,
                             kProductFloats / (all_taps * block * s.out_width)}));
  // If a strip has fewer rows than an image, each row of taps is multiplied apart, with the rows of
  // pixels that it reads. Otherwise the pixels at the edges would be multiplied several times.
  std::vector<Lanes> groups;
  struct Origin {
    long phase, row, rows;  // the first row of taps, and the number of rows in the phase
  };
  std::vector<Origin> origins;
  long phase = 0;
  for_phases(s, block, [&](const Lanes& l) {
    for (long r = 0; r < l.rows.count && l.columns.count; ++r) {
      Line rows = l.rows;
      if (most_rows < s.out_height) rows.first += r * rows.step, rows.shift += r, rows.count = 1;
      groups.push_back(lanes(rows, l.columns, l.slice, block));
      origins.push_back({phase, r, l.rows.count});
      if (rows.count == l.rows.count) break;
    }
    ++phase;
  });

  // The product of a tap lies at the output pixel that it contributes to. Some contribute to none,
  // so there are guard pixels around. Output pixels that a tap adds nothing to stay zero.
  const long guard = s.taps,
             pitch_pixels = s.out_width + 2 * guard + std::max(s.width - s.out_width, 0L);
  const long plane = (most_rows + 2 * guard) * pitch_pixels * block + 4 * V;
  const long mixed_step = round_up(s.out_width * block) + 4 * V;
  std::size_t floats = Arena::rounded(all_taps * plane) + Arena::rounded(s.planes * mixed_step);
  const long most_pixels = (most_rows + s.taps) * s.width;
  long most_lanes = 0;
  for (const Lanes& l : groups) {
    floats += Arena::rounded(s.channels * l.all());
    most_lanes = std::max(most_lanes, l.all());
  }
  const bool apart = block % V || s.maps % V;  // a vector may hold maps of several taps
  floats += Arena::rounded(apart ? most_pixels * most_lanes : 0);
  arena.reset(floats);
  float* products = arena.take(all_taps * plane);
  float* mixed = arena.take(s.planes * mixed_step);
  std::vector<float*> packed;
  for (const Lanes& l : groups) packed.push_back(arena.take(s.channels * l.all()));
  float* by_pixel = arena.take(apart ? most_pixels * most_lanes : 0);
  std::vector<const float*> pixels(most_pixels), row_products, row_m;
  std::vector<long> places(most_pixels);
  struct Term {  // a tap of a slice, as the mix reads it
    long shift, rows;
    const float *product, *m;  // the product of output row r0
  };

  const auto [own_maps, rows] = share_of(s, s.images * s.out_height, part, parts);
  for (long h0 = own_maps.begin; h0 < own_maps.end; h0 += block) {
    const long maps = std::min(block, s.maps - h0), pitch = pitch_pixels * maps;
    std::memset(products, 0, sizeof(float) * all_taps * plane);
    // Where the maps of a piece go for pixel (r0, 0) of a phase.
    auto place = [&](const Lanes& l, const Piece& piece) {
      return products + tap_of(s, l, piece) * plane + (guard - l.rows.shift - piece.row) * pitch +
             (guard - l.columns.shift - piece.column) * maps;
    };
    const std::vector<float*> phases = saved_phases(s, saved, h0);
    std::vector<std::vector<float*>> vector_places;
    std::vector<std::vector<Piece>> pieces;
    std::vector<Term> terms;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const Lanes& l = groups[g] = lanes(groups[g].rows, groups[g].columns, groups[g].slice, maps);
      pack_lanes(s, filters, l, h0, packed[g]);
      vector_places.emplace_back(l.all() / V);
      pieces.push_back(l.pieces());
      for (const Piece& piece : pieces[g])
        terms.push_back({l.rows.shift + piece.row, l.rows.size,
                         products + tap_of(s, l, piece) * plane + guard * (pitch + maps),
                         m + tap_of(s, l, piece) * s.planes});
      if (maps % V) continue;
      for (const Piece& piece : pieces[g])
        for (long h = 0; h < maps; h += V)
          vector_places[g][(piece.lane + h) / V] = place(l, piece) + h;
    }
    for (long row = rows.begin; row < rows.end;) {
      const long image = row / s.out_height, r0 = row % s.out_height;
      const long r1 = std::min({r0 + most_rows, s.out_height, r0 + rows.end - row});
      for (std::size_t g = 0; g < groups.size(); ++g) {
        const Lanes& l = groups[g];
        const long begin = std::max(0L, r0 + l.rows.shift);
        const long end = std::min(l.rows.size, r1 + l.rows.shift + l.rows.count - 1);
        long count = 0;
        for (long y = begin; y < end; ++y)
          for (long x = 0; x < l.columns.size; ++x, ++count) {
            pixels[count] = pixel(s, features, l, image, y, x);
            places[count] = (y - r0) * pitch + x * maps;
          }
        if (count == 0) continue;
        const Rows a{pixels.data(), count, 1, s.channels, 0, s.slices};
        const auto multiply = [&](const auto& put) {
          multiply_rows(a, packed[g], l.all() / V, put);
        };
        // The strip before, maybe of another part, saves what both compute.
        const long overlap = r0 ? r0 + l.rows.shift + l.rows.count - 1 - begin : 0;
        const long first_saved = std::max(0L, overlap) * l.columns.size;
        const long saved_step = origins[g].rows * l.padded;
        const long first_place = (image * l.rows.size + begin) * l.columns.size * saved_step +
                                 origins[g].row * l.padded;
        float* const to_save = saved ? phases[origins[g].phase] + first_place : nullptr;
        const auto save = [&](long n, long v, Vec sums) {
          if (n >= first_saved) store(to_save + n * saved_step + v * V, sums);
        };
        if (maps % V == 0) {
          float* const* to = vector_places[g].data();
          const auto put = [=](long n, long v, Vec sums) { store(to[v] + places[n], sums); };
          if (saved)
            multiply([&](long n, long v, Vec sums) { put(n, v, sums), save(n, v, sums); });
          else
            multiply(put);
          continue;
        }
        const auto put = [=, step = l.all()](long n, long v, Vec sums) {
          store(by_pixel + n * step + v * V, sums);
        };
        if (saved)
          multiply([&](long n, long v, Vec sums) { put(n, v, sums), save(n, v, sums); });
        else
          multiply(put);
        for (const Piece& piece : pieces[g])
          for (long y = begin; y < end; ++y)
            gather_maps(by_pixel + (y - begin) * l.columns.size * l.all() + piece.lane, l.all(),
                        l.columns.size, maps, place(l, piece) + (y - r0) * pitch);
      }
      for (long y = r0; y < r1; ++y) {
        row_products.clear();
        row_m.clear();
        for (const Term& term : terms) {
          if (y + term.shift < 0 || y + term.shift >= term.rows) continue;
          row_products.push_back(term.product + (y - r0) * pitch);
          row_m.push_back(term.m);
        }
        const long count = s.out_width * maps;
        for_planes(s.planes, [&](auto planes, long k) {
          mix_row<decltype(planes)::value>(row_products, row_m, k, count, mixed + k * mixed_step,
                                           mixed_step);
        });
        float* out = output + ((image * s.out_height + y) * s.out_width * s.maps + h0) * s.planes;
        if (maps == s.maps) {
          join(mixed, mixed_step, count, s.planes, out);
        } else {
          for (long x = 0; x < s.out_width; ++x)
            join(mixed + x * maps, mixed_step, maps, s.planes, out + x * s.maps * s.planes);
        }
      }
      row += r1 - r0;
    }
  }
}

// ------------------------------------------------------------------------------------------------
// Backward

std::size_t filter_sums(const Sizes& s) {
  return s.slices * s.taps * s.taps * s.maps * round_up(s.channels);
}
std::size_t m_sums(const Sizes& s) { return s.slices * s.taps * s.taps * s.planes; }

// The cotangent of some images by planes: [planes, images, rows, columns, maps], with guard columns
// of zeros on both sides.
struct Cotangent {
  float* start;
  long plane, image, row, guard, maps;
  const float* at(long k, long n, long y, long x) const {
    return start + k * plane + n * image + y * row + (guard + x) * maps;
  }
};

// For K planes and up to N vectors of a row of taps: d_products[q] = sum over k of m * cotangent,
// and, for the gradient of m, sums[k] += products * cotangent, for one row of pixels.
template <int K, int N, bool d_m>
inline void spread_row(const float* const* cotangent, long maps, const float* m, long m_step,
                       const float* products, float* d_products, long step, long pixels, bool adds,
                       Vec (&sums)[K][N]) {
  for (long x = 0; x < pixels; ++x, products += step, d_products += step) {
    UNROLL for (int v = 0; v < N; ++v) {
      Vec product = d_m ? load(products + v * V) : Vec{};
      Vec d = adds ? load(d_products + v * V) : Vec{};
      UNROLL for (int k = 0; k < K; ++k) {
        Vec g = load(cotangent[k] + x * maps + v * V);
        d += load(m + k * m_step + v * V) * g;
        if constexpr (d_m) sums[k][v] += product * g;
      }
      store(d_products + v * V, d);
    }
  }
}

// Pixels of one strip: some rows of one image, or some whole images.
struct Strip {
  long image, images, begin, end;
};

template <int K, int N, bool d_m>
void spread(const Sizes& s, const Lanes& l, const Strip& strip, long first_image,
            const Cotangent& g, long r, long vector, long k0, const float* m, long m_step,
            const float* products, float* d_products, double* m_lanes) {
  const long column = r * l.padded + vector * V, step = l.all();
  Vec sums[K][N] = {};
  for (long n = strip.image; n < strip.image + strip.images; ++n)
    for (long y = strip.begin; y < strip.end; ++y) {
      const long row = (n - strip.image) * (strip.end - strip.begin) + y - strip.begin;
      float* to = d_products + row * l.columns.size * step + column;
      const long out = y - l.rows.shift - r;
      if (out < 0 || out >= s.out_height) {
        if (k0 == 0)
          for (long x = 0; x < l.columns.size; ++x)
            for (int v = 0; v < N; ++v) store(to + x * step + v * V, Vec{});
        continue;
      }
      const float* planes[K];
      UNROLL for (int k = 0; k < K; ++k) planes[k] =
          g.at(k0 + k, n - first_image, out, -l.columns.shift - l.columns.count + 1) + vector * V;
      spread_row<K, N, d_m>(planes, l.maps, m, m_step,
                            products + row * l.columns.size * step + column, to, step,
                            l.columns.size, k0 > 0, sums);
    }
  if (!d_m) return;
  for (int k = 0; k < K; ++k)
    for (int v = 0; v < N; ++v)
      for (int i = 0; i < V; ++i)
        m_lanes[(k0 + k) * l.padded + (vector + v) * V + i] += sums[k][v][i];
}

void backward(const Sizes& s, const float* features, const float* filters,
              const float* m_sum_filters, const float* m, const float* cotangent,
              const float* saved, float* d_features, float* filter_sums_, double* m_sums_,
              long part, long parts) {
  const long block = maps_at_a_time(s), c_step = round_up(s.channels);
  const bool d_m = m_sum_filters;
  const long guard = 2 * s.taps + std::max(0L, s.width - s.out_width);
  const auto [own_maps, images] = share_of(s, s.images, part, parts);
  const long all_taps = s.slices * s.taps * s.taps;
  const long first_row = all_taps * own_maps.begin;  // of the filter sums
  std::memset(filter_sums_ + first_row * c_step, 0,
              sizeof(float) * all_taps * (own_maps.end - own_maps.begin) * c_step);
  std::memset(m_sums_, 0, sizeof(double) * m_sums(s));
  std::vector<Lanes> phases;
  for_phases(s, block, [&](const Lanes& l) { phases.push_back(l); });
  const long phase_pixels =
      phases[0].rows.size * phases[0].columns.size;  // the first is the largest
  const long most_images =
      std::max(1L, std::min(images.end - images.begin, kMostPixels / 2 / phase_pixels));
  long most_lanes = 0;
  std::size_t floats = 0;
  for (const Lanes& l : phases) {
    most_lanes = std::max(most_lanes, l.all());
    floats += Arena::rounded(s.channels * l.all()) +
              Arena::rounded(l.rows.count * l.real * c_step) + Arena::rounded(s.planes * l.all());
  }
  const long width = phases[0].columns.size;
  const long most_rows = std::max(
      1L, std::min(phases[0].rows.size,
                   std::min(kMostPixels, kProductFloats / std::max(1L, most_lanes)) / width));
  const long most_pixels = std::max(most_rows * width, most_images * phase_pixels);
  Cotangent g{nullptr, 0, 0, 0, guard, 0};
  const long g_floats = most_images * s.out_height * (s.out_width + 2 * guard) * block + 4 * V;
  const long computed = d_m && !saved ? most_pixels * most_lanes : 0;
  floats += Arena::rounded(s.planes * g_floats) + Arena::rounded(computed) +
            Arena::rounded(most_pixels * most_lanes) + Arena::rounded(most_pixels * c_step);
  arena.reset(floats);
  std::vector<float*> by_lanes, by_channels, coefficients;
  for (const Lanes& l : phases) {
    by_lanes.push_back(arena.take(s.channels * l.all()));
    by_channels.push_back(arena.take(l.rows.count * l.real * c_step));
    coefficients.push_back(arena.take(s.planes * l.all()));
  }
  g.start = arena.take(s.planes * g_floats);
  float* computed_products = arena.take(computed);
  float* d_products = arena.take(most_pixels * most_lanes);
  float* gathered = arena.take(most_pixels * c_step);
  std::vector<const float*> pixels(most_pixels), rows(most_pixels);
  std::vector<float*> d_pixels(most_pixels);
  std::vector<std::vector<double>> m_lanes(phases.size());
  std::vector<long> first_sums(phases.size());
  long next_sums = first_row;  // in the order of `add_filter_sums`

  for (long h0 = own_maps.begin; h0 < own_maps.end; h0 += block) {
    const bool first = h0 == own_maps.begin;
    const long maps = std::min(block, s.maps - h0);
    g.maps = maps, g.row = (s.out_width + 2 * guard) * maps, g.image = s.out_height * g.row,
    g.plane = g_floats;
    std::memset(g.start, 0, sizeof(float) * s.planes * g_floats);
    const std::vector<const float*> saved_products = saved_phases(s, saved, h0);
    for (std::size_t i = 0; i < phases.size(); ++i) {
      const Lanes& l = phases[i] = lanes(phases[i].rows, phases[i].columns, phases[i].slice, maps);
      if (d_m && !saved) pack_lanes(s, m_sum_filters, l, h0, by_lanes[i]);
      pack_channels(s, filters, l, h0, by_channels[i]);
      std::memset(coefficients[i], 0, sizeof(float) * s.planes * l.all());
      for (const Piece& p : l.pieces())
        for (long k = 0; k < s.planes; ++k)
          std::fill_n(coefficients[i] + k * l.all() + p.lane, maps,
                      m[tap_of(s, l, p) * s.planes + k]);
      first_sums[i] = next_sums, next_sums += l.rows.count * l.real;
      m_lanes[i].assign(l.rows.count * s.planes * l.padded, 0.0);
    }
    for (long n0 = images.begin; n0 < images.end; n0 += most_images) {
      const long n1 = std::min(n0 + most_images, images.end);
      for (long n = n0; n < n1; ++n)
        for (long y = 0; y < s.out_height; ++y) {
          std::vector<float*> to;
          for (long k = 0; k < s.planes; ++k)
            to.push_back(const_cast<float*>(g.at(k, n - n0, y, 0)));
          const float* from =
              cotangent + ((n * s.out_height + y) * s.out_width * s.maps + h0) * s.planes;
          if (maps == s.maps) {
            split(from, s.out_width * maps, s.planes, to.data());
            continue;
          }
          for (long x = 0; x < s.out_width; ++x, from += s.maps * s.planes) {
            split(from, maps, s.planes, to.data());
            for (float*& place : to) place += maps;
          }
        }
      for (std::size_t i = 0; i < phases.size(); ++i) {
        const Lanes& l = phases[i];
        const long at_once = n1 - n0 > 1 ? l.rows.size : most_rows;
        for (long y0 = 0; y0 < l.rows.size; y0 += at_once) {
          const Strip strip{n0, n1 - n0, y0, std::min(y0 + at_once, l.rows.size)};
          long count = 0;
          for (long n = n0; n < n1; ++n)
            for (long y = strip.begin; y < strip.end; ++y)
              for (long x = 0; x < l.columns.size; ++x, ++count) {
                pixels[count] = pixel(s, features, l, n, y, x);
                d_pixels[count] = d_features + (pixels[count] - features);
                rows[count] = d_products + count * l.all();
              }
          if (count == 0) continue;
          if (l.all() == 0) {  // no tap reads these pixels
            for (long n = 0; n < count && first; ++n)
              for (long c = 0; c < s.channels; ++c) d_pixels[n][c * s.slices] = 0;
            continue;
          }
          const long step = l.all();
          const float* products = d_m ? computed_products : d_products;
          if (d_m && saved)
            products = saved_products[i] + (n0 * l.rows.size + y0) * l.columns.size * step;
          else if (d_m)
            multiply_rows({pixels.data(), count, 1, s.channels, 0, s.slices}, by_lanes[i], step / V,
                          [&](long n, long v, Vec sums) {
                            store(computed_products + n * step + v * V, sums);
                          });
          for (long r = 0; r < l.rows.count; ++r)
            for (long v = 0; v < l.padded / V;) {
              const long n = l.padded / V - v >= 2 ? 2 : 1;
              for_planes(s.planes, [&](auto planes, long k) {
                const float* mk = coefficients[i] + k * step + r * l.padded + v * V;
                double* lanes_of_m = m_lanes[i].data() + r * s.planes * l.padded;
                const auto of_vectors = [&](auto vectors, auto sums_m) {
                  spread<decltype(planes)::value, decltype(vectors)::value,
                         decltype(sums_m)::value>(s, l, strip, n0, g, r, v, k, mk, step, products,
                                                  d_products, lanes_of_m);
                };
                const auto with = [&](auto sums_m) {
                  if (n == 2)
                    of_vectors(std::integral_constant<int, 2>(), sums_m);
                  else
                    of_vectors(std::integral_constant<int, 1>(), sums_m);
                };
                if (d_m)
                  with(std::true_type());
                else
                  with(std::false_type());
              });
              v += n;
            }
          multiply_rows({rows.data(), count, l.rows.count, l.real, l.padded, 1}, by_channels[i],
                        c_step / V, [&](long n, long v, Vec sums) {
                          float* to = d_pixels[n] + v * V * s.slices;
                          const long present = std::min<long>(V, s.channels - v * V);
                          if (present == V && s.slices == 1) {
                            store(to, first ? sums : load(to) + sums);
                            return;
                          }
                          for (long c = 0; c < present; ++c, to += s.slices)
                            *to = first ? sums[c] : *to + sums[c];
                        });
          // Rows of pixels side by side, with whole vectors of channels.
          const float* x = pixels[0];
          long x_step = s.channels;
          if (s.channels % V || s.slices > 1 || s.stride_x > 1 || s.stride_y > 1) {
            x = gathered, x_step = c_step;
            for (long n = 0; n < count; ++n) {
              if (s.slices == 1)
                std::memcpy(gathered + n * c_step, pixels[n], sizeof(float) * s.channels);
              else
                for (long c = 0; c < s.channels; ++c)
                  gathered[n * c_step + c] = pixels[n][c * s.slices];
              std::fill(gathered + n * c_step + s.channels, gathered + (n + 1) * c_step, 0.0f);
            }
          }
          for (long r = 0; r < l.rows.count; ++r)
            multiply_columns(d_products + r * l.padded, step, l.real, count, x, x_step, c_step / V,
                             filter_sums_ + (first_sums[i] + r * l.real) * c_step, c_step);
        }
      }
    }
    for (std::size_t i = 0; i < phases.size(); ++i)
      for (const Piece& p : phases[i].pieces())
        for (long k = 0; k < s.planes; ++k) {
          const double* from = m_lanes[i].data() + (p.row * s.planes + k) * phases[i].padded +
                               p.lane - p.row * phases[i].padded;
          double& sum = m_sums_[tap_of(s, phases[i], p) * s.planes + k];
          for (long h = 0; h < maps; ++h) sum += from[h];
        }
  }
}

void add_filter_sums(const Sizes& s, const float* sums, long summands, float* d_filters, long part,
                     long parts) {
  const long block = maps_at_a_time(s), c_step = round_up(s.channels);
  long row = 0, turn = 0;
  for (long h0 = 0; h0 < s.maps; h0 += block) {
    const long maps = std::min(block, s.maps - h0);
    for_phases(s, maps, [&](const Lanes& l) {
      for (const Piece& p : l.pieces()) {
        if (turn++ % parts != part) continue;
        const float* from = sums + (row + p.lane - p.row * (l.padded - l.real)) * c_step;
        float* to = d_filters + filter_place(s, l, p, 0) + h0;
        const long to_step = s.slices * s.maps;
        transpose<false>(from, c_step, maps, s.channels, to, to_step);
        for (long n = 1; n < summands; ++n)
          transpose<true>(from + n * filter_sums(s), c_step, maps, s.channels, to, to_step);
      }
      row += l.rows.count * l.real;
    });
  }
}

void combine(const float* from, long from_block, long from_step, const float* weights,
             long weight_step, long blocks, long pixels, long length, float* to, long to_step) {
  std::vector<std::pair<const float*, float>> terms;
  for (long b = 0; b < blocks; ++b)
    if (const float weight = weights[b * weight_step])
      terms.emplace_back(from + b * from_block, weight);
  for (long p = 0; p < pixels; ++p, to += to_step) {
    long i = 0;
    for (; i + V <= length; i += V) {
      Vec sum = {};
      for (const auto& [start, weight] : terms) sum += weight * load(start + p * from_step + i);
      store(to + i, sum);
    }
    for (; i < length; ++i) {
      float sum = 0;
      for (const auto& [start, weight] : terms) sum += weight * start[p * from_step + i];
      to[i] = sum;
    }
  }
}

}  // namespace

#define NAME_OF(isa) #isa
#define NAME(isa) NAME_OF(isa)
extern const Kernel kernel = {NAME(MCN_ISA), splits_maps, most_parts, products,       forward,
                              filter_sums,   m_sums,      backward,   add_filter_sums, combine};

}  // namespace MCN_ISA
}  // namespace mcn
