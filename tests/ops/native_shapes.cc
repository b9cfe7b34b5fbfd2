// Compares the kernel of every instruction set that this machine has with plain loops in float64,
// and planes in lanes with the kernel, at random shapes. Arrays have no room to spare, so a
// sanitizer notices any access of the kernel beyond them.
//
// Arguments: a seed and the number of shapes. Prints one line per failure; exits with 1 after any.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "blocks.h"
#include "kernel.h"

using mcn::Sizes;

long count(const Sizes& s, const char* what) {
  const long channels = s.channels * s.slices;
  if (what[0] == 'f') return s.taps * s.taps * channels * s.maps;
  if (what[0] == 'm') return s.slices * s.taps * s.taps * s.planes;
  if (what[0] == 'x') return s.images * s.height * s.width * channels;
  return s.images * s.out_height * s.out_width * s.maps * s.planes;
}

// ||a - b|| / ||b||
template <typename A>
double distance(const A& a, const std::vector<double>& b) {
  double difference = 0, norm = 1e-30;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

// False also for NaN.
bool are_small(const double* distances, long count) {
  return std::all_of(distances, distances + count, [](double d) { return d <= 1e-5; });
}

// Random arrays of one shape, and what plain loops in float64 make of them.
struct Case {
  std::unique_ptr<float[]> x, filters, sum_filters, m, g;
  std::vector<double> output, d_x, d_filters, d_m;
  std::vector<double> d_m_terms;  // as d_m, but of magnitudes
};

// The loops of a case. They take the longest, so they are not sanitized.
__attribute__((no_sanitize("address"), no_sanitize("undefined"))) void compute(
    const Sizes& s, const float* x, const float* filters, const float* sum_filters, const float* m,
    const float* g, double* output, double* d_x, double* d_filters, double* d_m,
    double* d_m_terms) {
  const long channels = s.channels * s.slices;
  for (long n = 0; n < s.images; ++n)
    for (long y = 0; y < s.out_height; ++y)
      for (long z = 0; z < s.out_width; ++z)
        for (long i = 0; i < s.taps; ++i)
          for (long j = 0; j < s.taps; ++j) {
            const long in_y = y * s.stride_y + i - s.low_y, in_x = z * s.stride_x + j - s.low_x;
            if (in_y < 0 || in_y >= s.height || in_x < 0 || in_x >= s.width) continue;
            const long in = ((n * s.height + in_y) * s.width + in_x) * channels;
            const long out = ((n * s.out_height + y) * s.out_width + z) * s.maps * s.planes;
            for (long h = 0; h < s.maps * s.slices; ++h) {
              const long slice = h / s.maps, map = h % s.maps;
              const long tap = (slice * s.taps + i) * s.taps + j;
              double product = 0, sum_product = 0, mixed = 0;
              for (long k = 0; k < s.planes; ++k)
                mixed += double(m[tap * s.planes + k]) * g[out + map * s.planes + k];
              for (long c = slice; c < channels; c += s.slices) {
                const long f = ((i * s.taps + j) * channels + c) * s.maps + map;
                product += double(x[in + c]) * filters[f];
                sum_product += double(x[in + c]) * sum_filters[f];
                d_x[in + c] += mixed * filters[f];
                d_filters[f] += mixed * x[in + c];
              }
              for (long k = 0; k < s.planes; ++k) {
                const float g_k = g[out + map * s.planes + k];
                output[out + map * s.planes + k] += m[tap * s.planes + k] * product;
                d_m[tap * s.planes + k] += sum_product * g_k;
                d_m_terms[tap * s.planes + k] += std::abs(sum_product * g_k);
              }
            }
          }
}

std::unique_ptr<float[]> normal_floats(long floats, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::unique_ptr<float[]> array(new float[floats]);
  for (long i = 0; i < floats; ++i) array[i] = normal(random);
  return array;
}

std::vector<double> in_double(const float* from, long floats) {
  return std::vector<double>(from, from + floats);
}

// With `saves`, both kinds of filters are the same, as saved products require.
Case case_of(const Sizes& s, bool saves, std::mt19937& random) {
  auto made = [&](const char* what) { return normal_floats(count(s, what), random); };
  auto zeros = [&](const char* what) { return std::vector<double>(count(s, what)); };
  Case c{made("x"),     made("f"),  made("f"),  made("m"),  made("out"),
         zeros("out"),  zeros("x"), zeros("f"), zeros("m"), zeros("m")};
  if (saves) std::copy_n(c.filters.get(), count(s, "f"), c.sum_filters.get());
  compute(s, c.x.get(), c.filters.get(), c.sum_filters.get(), c.m.get(), c.g.get(),
          c.output.data(), c.d_x.data(), c.d_filters.data(), c.d_m.data(), c.d_m_terms.data());
  return c;
}

bool agrees(const mcn::Kernel& kernel, const Sizes& s, const Case& c, long parts, bool saves,
            bool wants_m) {
  const bool by_maps = kernel.splits_maps(s);
  const long sums = kernel.filter_sums(s), size = count(s, "x");
  parts = std::min(parts, kernel.most_parts(s));
  std::unique_ptr<float[]> our_output(new float[c.output.size()]),
      our_d_filters(new float[c.d_filters.size()]);
  std::unique_ptr<float[]> our_d_x(new float[size * parts]), filter_sums(new float[sums * parts]);
  std::vector<double> m_sums(parts * kernel.m_sums(s)), our_d_m(c.d_m.size());
  std::unique_ptr<float[]> saved(saves ? new float[kernel.products(s)] : nullptr);
  for (long part = 0; part < parts; ++part)
    kernel.forward(s, c.x.get(), c.filters.get(), c.m.get(), our_output.get(), saved.get(), part,
                   parts);
  for (long part = 0; part < parts; ++part) {
    kernel.backward(s, c.x.get(), c.filters.get(), wants_m ? c.sum_filters.get() : nullptr,
                    c.m.get(), c.g.get(), saved.get(), our_d_x.get() + (by_maps ? part * size : 0),
                    filter_sums.get() + (by_maps ? 0 : part * sums),
                    m_sums.data() + part * kernel.m_sums(s), part, parts);
    for (std::size_t i = 0; i < our_d_m.size(); ++i)
      our_d_m[i] += m_sums[part * our_d_m.size() + i];
    for (long i = 0; by_maps && part && i < size; ++i) our_d_x[i] += our_d_x[part * size + i];
  }
  for (long part = 0; part < parts; ++part)
    kernel.add_filter_sums(s, filter_sums.get(), by_maps ? 1 : parts, our_d_filters.get(), part,
                           parts);
  const std::vector<double> d_m = wants_m ? c.d_m : std::vector<double>(c.d_m.size());
  const double found[] = {distance(our_output, c.output), distance(our_d_x, c.d_x),
                          distance(our_d_filters, c.d_filters), distance(our_d_m, d_m)};
  // The terms of dM may cancel to less than their rounding errors, above all with one tap and
  // plane.
  double difference = 0, terms = 0;
  for (std::size_t i = 0; i < d_m.size(); ++i) {
    difference += (our_d_m[i] - d_m[i]) * (our_d_m[i] - d_m[i]);
    terms += c.d_m_terms[i] * c.d_m_terms[i];
  }
  const bool d_m_agrees = found[3] <= 1e-4 || difference <= 1e-12 * terms;
  const bool good = are_small(found, 3) && d_m_agrees;
  if (!good)
    std::printf(
        "%s: images %ld, %ldx%ld, slices %ld, channels %ld, taps %ld, maps %ld, planes %ld, "
        "strides %ld %ld, low %ld %ld,"
        " parts %ld, saves %d, wants m %d: %g %g %g %g\n",
        kernel.instruction_set, s.images, s.height, s.width, s.slices, s.channels, s.taps, s.maps,
        s.planes, s.stride_y, s.stride_x, s.low_y, s.low_x, parts, saves, wants_m, found[0],
        found[1], found[2], found[3]);
  return good;
}

// Compares a sum of convolutions of blocks with the kernel's own convolutions, added in float64.
bool blocks_agree(const mcn::Kernel& kernel, const Sizes& one, long threads, std::mt19937& random) {
  std::normal_distribution<float> normal;
  const long n = 1 + random() % 4, products = 1 + random() % 5;
  auto made = [&](long floats) {
    std::unique_ptr<float[]> array(new float[floats]);
    for (long i = 0; i < floats; ++i) array[i] = normal(random);
    return array;
  };
  auto take = made(products * n), give = made(n * products);
  take[0] = give[products - 1] = 0;  // terms that are left out
  const mcn::Blocks blocks{one, n, products, take.get(), give.get()};
  const long in = one.images * one.height * one.width, c = one.channels, h = one.maps;
  const long out = one.images * one.out_height * one.out_width, f = blocks.filter_floats();
  auto x = made(in * n * c), filters = made(products * f), g = made(out * n * h);
  const long parts = blocks.parts(threads), sums = kernel.filter_sums(one);
  std::unique_ptr<float[]> y(new float[out * n * h]), d_x(new float[in * n * c]),
      of_filters(new float[products * parts * sums]), d_filters(new float[products * f]);
  for (long part = 0; part < parts; ++part)
    blocks.forward(kernel, x.get(), filters.get(), y.get(), part, parts);
  for (long part = 0; part < parts; ++part)
    blocks.backward(kernel, x.get(), filters.get(), g.get(), d_x.get(), of_filters.get(), part,
                    parts);
  for (long p = 0; p < products; ++p)
    kernel.add_filter_sums(one, of_filters.get() + p * parts * sums, parts,
                           d_filters.get() + p * f, 0, 1);

  std::vector<double> expected_y(out * n * h), expected_d_x(in * n * c),
      expected_d_filters(products * f);
  const std::vector<float> m(one.taps * one.taps, 1.0f);
  std::vector<double> m_sums(kernel.m_sums(one));
  const bool by_maps = kernel.splits_maps(one);
  for (long p = 0; p < products; ++p) {
    std::unique_ptr<float[]> u(new float[in * c]), product(new float[out * h]),
        d_product(new float[out * h]), d_u(new float[in * c]), filter_sums(new float[sums]),
        d_f(new float[f]);
    for (long q = 0; q < in * c; ++q) {
      double sum = 0;
      for (long b = 0; b < n; ++b)
        sum += double(take[p * n + b]) * x[q / c * n * c + b * c + q % c];
      u[q] = sum;
    }
    for (long q = 0; q < out * h; ++q) {
      double sum = 0;
      for (long k = 0; k < n; ++k)
        sum += double(give[k * products + p]) * g[q / h * n * h + k * h + q % h];
      d_product[q] = sum;
    }
    kernel.forward(one, u.get(), filters.get() + p * f, m.data(), product.get(), nullptr, 0, 1);
    kernel.backward(one, u.get(), filters.get() + p * f, nullptr, m.data(), d_product.get(),
                    nullptr, d_u.get(), filter_sums.get(), m_sums.data(), 0, 1);
    kernel.add_filter_sums(one, filter_sums.get(), 1, d_f.get(), 0, 1);
    for (long i = 0; i < f; ++i) expected_d_filters[p * f + i] = d_f[i];
    for (long q = 0; q < out * h; ++q)
      for (long k = 0; k < n; ++k)
        expected_y[q / h * n * h + k * h + q % h] += double(give[k * products + p]) * product[q];
    for (long q = 0; q < in * c; ++q)
      for (long b = 0; b < n; ++b)
        expected_d_x[q / c * n * c + b * c + q % c] += double(take[p * n + b]) * d_u[q];
  }
  const double found[] = {distance(y, expected_y), distance(d_x, expected_d_x),
                          distance(d_filters, expected_d_filters)};
  const bool good = are_small(found, 3);
  if (!good)
    std::printf(
        "%s: %ld blocks, %ld products, images %ld, %ldx%ld, channels %ld, taps %ld, maps %ld, "
        "strides %ld %ld, low %ld %ld, by maps %d, parts %ld: %g %g %g\n",
        kernel.instruction_set, n, products, one.images, one.height, one.width, c, one.taps, h,
        one.stride_y, one.stride_x, one.low_y, one.low_x, by_maps, parts, found[0], found[1],
        found[2]);
  return good;
}

// Compares planes in lanes with the kernel's slices, whose m has the signs.
bool lanes_agree(const mcn::Kernel& kernel, const mcn::HadamardKernel& hadamard, const Sizes& s,
                 long parts, std::mt19937& random) {
  auto made = [&](long floats) { return normal_floats(floats, random); };
  const long k = s.planes, size = count(s, "x"), outputs = count(s, "out"), f = count(s, "f");
  const long taps = s.taps * s.taps;
  auto x = made(size), filters = made(f), sum_filters = made(f), m = made(taps * k),
       g = made(outputs);
  const long backward_parts = std::min(parts, s.images);
  std::unique_ptr<float[]> y(new float[outputs]), d_x(new float[size]), d_filters(new float[f]),
      sums(new float[backward_parts * hadamard.filter_sums(s)]);
  std::vector<double> m_sums(backward_parts * taps * k), d_m(taps * k);
  for (long part = 0; part < parts; ++part)
    hadamard.forward(s, x.get(), filters.get(), m.get(), y.get(), part, parts);
  for (long part = 0; part < backward_parts; ++part)
    hadamard.backward(s, x.get(), filters.get(), sum_filters.get(), m.get(), g.get(), d_x.get(),
                      sums.get() + part * hadamard.filter_sums(s),
                      m_sums.data() + part * taps * k, part, backward_parts);
  for (long part = 0; part < parts; ++part)
    hadamard.add_filter_sums(s, sums.get(), backward_parts, d_filters.get(), part, parts);
  for (long i = 0; i < backward_parts * taps * k; ++i) d_m[i % (taps * k)] += m_sums[i];

  Sizes sliced = s;
  sliced.slices = k, sliced.channels /= k;
  std::unique_ptr<float[]> sliced_m(new float[k * taps * k]);
  auto sign = [](long a, long b) { return __builtin_popcountl(a & b) % 2 ? -1 : 1; };
  for (long i = 0; i < k * taps * k; ++i)
    sliced_m[i] = sign(i / (taps * k), i % k) * m[i % (taps * k)];
  std::unique_ptr<float[]> our_y(new float[outputs]), our_d_x(new float[size]),
      our_sums(new float[kernel.filter_sums(sliced)]), our_d_filters(new float[f]);
  std::vector<double> our_m_sums(kernel.m_sums(sliced)), expected_d_m(taps * k);
  kernel.forward(sliced, x.get(), filters.get(), sliced_m.get(), our_y.get(), nullptr, 0, 1);
  kernel.backward(sliced, x.get(), filters.get(), sum_filters.get(), sliced_m.get(), g.get(),
                  nullptr, our_d_x.get(), our_sums.get(), our_m_sums.data(), 0, 1);
  kernel.add_filter_sums(sliced, our_sums.get(), 1, our_d_filters.get(), 0, 1);
  for (long i = 0; i < k * taps * k; ++i)
    expected_d_m[i % (taps * k)] += sign(i / (taps * k), i % k) * our_m_sums[i];
  const double found[] = {distance(y, in_double(our_y.get(), outputs)),
                          distance(d_x, in_double(our_d_x.get(), size)),
                          distance(d_filters, in_double(our_d_filters.get(), f)),
                          distance(d_m, expected_d_m)};
  const bool good = are_small(found, 3) && found[3] <= 1e-4;
  if (!good)
    std::printf(
        "%s, planes in lanes: images %ld, %ldx%ld, channels %ld, taps %ld, maps %ld, planes %ld, "
        "strides %ld %ld, low %ld %ld, parts %ld: %g %g %g %g\n",
        kernel.instruction_set, s.images, s.height, s.width, s.channels, s.taps, s.maps, k,
        s.stride_y, s.stride_x, s.low_y, s.low_x, parts, found[0], found[1], found[2], found[3]);
  return good;
}

// Compares the code for few channels with the kernel, where M is one.
bool narrow_agrees(const mcn::Kernel& kernel, const mcn::NarrowKernel& narrow, const Sizes& s,
                   long parts, std::mt19937& random) {
  auto made = [&](long floats) { return normal_floats(floats, random); };
  const long size = count(s, "x"), outputs = count(s, "out"), f = count(s, "f");
  auto x = made(size), filters = made(f), g = made(outputs);
  const long floats = narrow.filter_sums(s);
  std::unique_ptr<float[]> y(new float[outputs]), d_x(new float[size]), d_filters(new float[f]),
      sums(new float[parts * floats]);
  for (long part = 0; part < parts; ++part) {
    narrow.forward(s, x.get(), filters.get(), y.get(), part, parts);
    narrow.features_gradient(s, filters.get(), g.get(), d_x.get(), part, parts);
    narrow.filters_gradient(s, x.get(), g.get(), sums.get() + part * floats, part, parts);
  }
  for (long part = 0; part < parts; ++part)
    narrow.add_filter_sums(s, sums.get(), parts, d_filters.get(), part, parts);

  const std::vector<float> m(s.taps * s.taps, 1.0f);
  std::unique_ptr<float[]> our_y(new float[outputs]), our_d_x(new float[size]),
      our_sums(new float[kernel.filter_sums(s)]), our_d_filters(new float[f]);
  std::vector<double> m_sums(kernel.m_sums(s));
  kernel.forward(s, x.get(), filters.get(), m.data(), our_y.get(), nullptr, 0, 1);
  kernel.backward(s, x.get(), filters.get(), nullptr, m.data(), g.get(), nullptr, our_d_x.get(),
                  our_sums.get(), m_sums.data(), 0, 1);
  kernel.add_filter_sums(s, our_sums.get(), 1, our_d_filters.get(), 0, 1);
  const double found[] = {distance(y, in_double(our_y.get(), outputs)),
                          distance(d_x, in_double(our_d_x.get(), size)),
                          distance(d_filters, in_double(our_d_filters.get(), f))};
  const bool good = are_small(found, 3);
  if (!good)
    std::printf(
        "%s, few channels: images %ld, %ldx%ld, channels %ld, taps %ld, maps %ld, strides %ld %ld, "
        "low %ld %ld, parts %ld: %g %g %g\n",
        kernel.instruction_set, s.images, s.height, s.width, s.channels, s.taps, s.maps,
        s.stride_y, s.stride_x, s.low_y, s.low_x, parts, found[0], found[1], found[2]);
  return good;
}

int main(int, char** arguments) {
  std::mt19937 random(std::atoi(arguments[1]));
  auto among = [&](std::vector<long> values) { return values[random() % values.size()]; };
  std::vector<const mcn::Kernel*> kernels{&mcn::baseline::kernel};
  std::vector<const mcn::HadamardKernel*> of_lanes{&mcn::baseline::hadamard};
  std::vector<const mcn::NarrowKernel*> narrow{&mcn::baseline::narrow};
#ifdef MCN_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    kernels.push_back(&mcn::avx2::kernel), of_lanes.push_back(&mcn::avx2::hadamard),
        narrow.push_back(&mcn::avx2::narrow);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    kernels.push_back(&mcn::avx512::kernel), of_lanes.push_back(&mcn::avx512::hadamard),
        narrow.push_back(&mcn::avx512::narrow);
#endif
  bool good = true;
  for (long n = std::atol(arguments[2]); n > 0; --n) {
    Sizes s{};
    s.planes = among({1, 2, 3, 4, 8});
    s.images = among({1, 2, 3, 5});
    s.taps = among({1, 2, 3, 4, 5});
    s.height = 1 + random() % 20, s.width = 1 + random() % 20;
    s.slices = among({1, 1, 2, 4, 8});
    s.channels = s.planes * among({1, 2, 3, 4, 16});
    if (s.slices > 1) s.channels = among({1, 2, 3, 5, 16, 17, 32});
    s.maps = among({1, 2, 3, 4, 5, 8, 12, 16, 20, 32, 40});
    s.stride_y = among({1, 1, 2, 3}), s.stride_x = among({1, 1, 2, 3});
    const bool is_wide = n % 20 == 0;     // enough to be split by maps
    const bool has_chunks = n % 10 == 5;  // several of a part of a sum of blocks, see below
    if (is_wide || has_chunks) s.planes = std::min(s.planes, 2L);
    if (is_wide)
      s.channels = s.planes * 128 / s.slices, s.maps = 150, s.height = s.width = 3, s.taps = 3;
    if (has_chunks) {
      s.channels = s.planes * 16 / s.slices, s.height = s.width = 20;
      s.taps = std::min(s.taps, 3L), s.maps = std::min(s.maps, 8L);
    }
    if (s.taps * s.taps * s.slices * s.channels * s.maps * s.planes > 200'000)
      s.images = 1;  // so that the largest filters do not take most of the time
    const long padding = random() % 3;  // SAME, VALID, or taps / 2 zeros on each side
    if (padding == 1) s.height = std::max(s.height, s.taps), s.width = std::max(s.width, s.taps);
    auto side = [&](long pixels, long stride, long& out, long& low) {
      low = padding == 2 ? s.taps / 2 : 0;
      out = (pixels + 2 * low - s.taps) / stride + 1;
      if (padding) return;
      out = (pixels + stride - 1) / stride;
      low = std::max(0L, (out - 1) * stride + s.taps - pixels) / 2;
    };
    side(s.height, s.stride_y, s.out_height, s.low_y);
    side(s.width, s.stride_x, s.out_width, s.low_x);
    const long parts = 1 + random() % 3;
    for (const bool saves : {false, true}) {
      const Case c = case_of(s, saves, random);
      for (const mcn::Kernel* kernel : kernels)
        for (const bool wants_m : {false, true})
          good &= agrees(*kernel, s, c, parts, saves, wants_m);
    }
    s.channels *= s.slices;
    s.slices = 1;
    Sizes lanes = s;
    lanes.planes = among({4, 8});
    lanes.channels = lanes.planes * among({1, 2, 3, 4, 5, 6, 9});
    if (n % 24 == 1) {  // one pixel, of which all taps but one read zeros
      lanes.height = lanes.width = lanes.out_height = lanes.out_width = 1;
      lanes.low_y = lanes.low_x = s.taps / 2;
    }
    for (std::size_t i = 0; n % 4 == 1 && i < kernels.size(); ++i)
      good &= lanes_agree(*kernels[i], *of_lanes[i], lanes, parts, random);
    s.planes = 1;
    Sizes few = s;
    few.channels = among({1, 2, 3, 4, 5, 8, 17});
    few.width = among({std::max(1L, few.width), 7, 20, 33, 70});  // of several blocks and of one
    side(few.width, few.stride_x, few.out_width, few.low_x);
    for (std::size_t i = 0; n % 3 == 1 && i < kernels.size(); ++i)
      good &= narrow_agrees(*kernels[i], *narrow[i], few, parts, random);
    if (has_chunks) s.images = 40;
    for (const mcn::Kernel* kernel : kernels)
      good &= blocks_agree(*kernel, s, has_chunks ? 1 : parts, random);
  }
  return good ? 0 : 1;
}
