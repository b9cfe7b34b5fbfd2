// Sums of convolutions of blocks of channels, for filter maps. See ../block_convolution.py.

#ifndef MCN_BLOCKS_H_
#define MCN_BLOCKS_H_

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "kernel.h"

namespace mcn {

// With `blocks` n blocks of channels of the input and of the output, and P `products`, which are
// ordinary convolutions whose sizes for all images are `one`:
//
//   u[g] = sum over b of  take[g, b] * x[b],     output[k] = sum over g of  give[k, g] * p[g],
//   p[g] = the convolution of u[g] with filters[g]
//
// Arrays are dense, with the last axis contiguous:
//   x    [images, height, width, n * channels]   filters [P, taps, taps, channels, maps]
//   take [P, n], give [n, P]                     output  [images, out_height, out_width, n * maps]
//
// Each part of the work is some of the images. A thread takes so many of them at a time that what
// it adds up stays in cache.
struct Blocks {
  Sizes one;
  long blocks, products;
  const float *take, *give;

  // Up to four per thread, so that a thread that starts late leaves its share to the others.
  long parts(long threads) const {
    const long chunks = (one.images + most_images() - 1) / most_images();
    return std::max(1L, std::min(one.images, std::clamp(chunks, threads, 4 * threads)));
  }
  long filter_floats() const { return one.taps * one.taps * one.channels * one.maps; }

  // Computes a part of the output.
  void forward(const Kernel& kernel, const float* x, const float* filters, float* output, long part,
               long parts) const {
    const long most = images_at_once(parts);
    float* const u = scratch(most * (u_floats() + products * p_floats()));
    float* const p = u + most * u_floats();
    const std::vector<float> m(one.taps * one.taps, 1.0f);
    for_chunks(part, parts, [&](long first, long images) {
      const long floats = images * p_floats();
      for (long g = 0; g < products; ++g) {
        add_input(kernel, g, x + first * blocks * u_floats(), images, u);
        kernel.forward(of_images(images), u, filters + g * filter_floats(), m.data(),
                       p + g * floats, nullptr, 0, 1);
      }
      float* const to = output + first * blocks * p_floats();
      for (long k = 0; k < blocks; ++k)
        kernel.combine(p, floats, one.maps, give + k * products, 1, products, images * out_pixels(),
                       one.maps, to + k * one.maps, blocks * one.maps);
    });
  }

  // Computes a part of d_x, and this part's sums for d_filters, [P, parts, kernel.filter_sums].
  void backward(const Kernel& kernel, const float* x, const float* filters, const float* cotangent,
                float* d_x, float* filter_sums, long part, long parts) const {
    const long most = images_at_once(parts), sums = kernel.filter_sums(one);
    float* const u = scratch(most * ((1 + products) * u_floats() + p_floats()) + sums);
    float* const d_u = u + most * u_floats();
    float* const d_p = d_u + products * most * u_floats();
    float* const own = d_p + most * p_floats();
    const std::vector<float> m(one.taps * one.taps, 1.0f);
    std::vector<double> unused(kernel.m_sums(one));
    bool is_first = true;
    for_chunks(part, parts, [&](long first, long images) {
      const long floats = images * u_floats();
      for (long g = 0; g < products; ++g) {
        add_input(kernel, g, x + first * blocks * u_floats(), images, u);
        kernel.combine(cotangent + first * blocks * p_floats(), one.maps, blocks * one.maps,
                       give + g, products, blocks, images * out_pixels(), one.maps, d_p, one.maps);
        float* const total = filter_sums + (g * parts + part) * sums;
        kernel.backward(of_images(images), u, filters + g * filter_floats(), nullptr, m.data(), d_p,
                        nullptr, d_u + g * floats, is_first ? total : own, unused.data(), 0, 1);
        if (!is_first)
          for (long n = 0; n < sums; ++n) total[n] += own[n];
      }
      float* const to = d_x + first * blocks * u_floats();
      for (long b = 0; b < blocks; ++b)
        kernel.combine(d_u, floats, one.channels, take + b, blocks, products, images * pixels(),
                       one.channels, to + b * one.channels, blocks * one.channels);
      is_first = false;
    });
    for (long g = 0; g < products && is_first; ++g)  // no images
      std::fill_n(filter_sums + (g * parts + part) * sums, sums, 0.0f);
  }

 private:
  static constexpr long kBlockFloats = 32 << 10;  // of a block of channels at a time

  long pixels() const { return one.height * one.width; }
  long out_pixels() const { return one.out_height * one.out_width; }
  long u_floats() const { return pixels() * one.channels; }  // of an image
  long p_floats() const { return out_pixels() * one.maps; }
  long most_images() const { return std::max(1L, kBlockFloats / std::max(1L, u_floats())); }
  long images_at_once(long parts) const {
    return std::max(1L, std::min(most_images(), (one.images + parts - 1) / parts));
  }
  Sizes of_images(long count) const {
    Sizes some = one;
    some.images = count;
    return some;
  }
  // Computes u[g] of some images.
  void add_input(const Kernel& kernel, long g, const float* x, long images, float* u) const {
    kernel.combine(x, one.channels, blocks * one.channels, take + g * blocks, 1, blocks,
                   images * pixels(), one.channels, u, one.channels);
  }
  // Calls function(first image, images) for the chunks of a part.
  template <typename F>
  void for_chunks(long part, long parts, const F& function) const {
    const long end = one.images * (part + 1) / parts, most = images_at_once(parts);
    for (long n = one.images * part / parts; n < end; n += most)
      function(n, std::min(most, end - n));
  }
  // Memory that a thread keeps between calls, since fresh pages cost more than small layers.
  static float* scratch(std::size_t floats) {
    struct Delete {
      void operator()(float* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    thread_local std::unique_ptr<float, Delete> memory;
    thread_local std::size_t size = 0;
    if (floats > size) {
      memory.reset(static_cast<float*>(::operator new(4 * floats, std::align_val_t(64))));
      size = floats;
    }
    return memory.get();
  }
};

}  // namespace mcn

#endif  // MCN_BLOCKS_H_
