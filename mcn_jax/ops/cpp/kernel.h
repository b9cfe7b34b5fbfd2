// The kernel of the factored MCconv and of ordinary convolutions, for float32 on CPUs. See
// kernel.cc.

#ifndef MCN_KERNEL_H_
#define MCN_KERNEL_H_

#include <cstddef>

namespace mcn {

// Sizes of one MCconv. Its channels may form slices, each with an m of its own; the output is the
// sum over the slices. Arrays are dense, with the last axis contiguous:
//   features [images, height, width, channels * slices]
//   filters  [taps, taps, channels * slices, maps]
//   m        [slices, taps, taps, planes]
//   output   [images, out_height, out_width, maps * planes]
// Slice b consists of the channels b, b + slices, b + 2 * slices, ... An ordinary MCconv has one.
// Tap (i, j) of output pixel (y, x) reads pixel (stride_y * y + i - low_y, stride_x * x + j -
// low_x), or zero if there is none. Plane k of map h is channel h * planes + k.
struct Sizes {
  long images, height, width;
  long slices, channels;  // channels: of a slice
  long taps, maps, planes;
  long out_height, out_width;
  long stride_y, stride_x, low_y, low_x;
};

// The kernel, compiled for one instruction set. Each function does one part of the work; parts can
// run at the same time.
struct Kernel {
  const char* instruction_set;

  // Whether the parts of the work are maps, not images. The parts of `backward` then share the
  // filter sums, but each has d_features of its own, which must be added.
  bool (*splits_maps)(const Sizes& sizes);

  // The greatest number of parts of `backward`, each of which has something to do.
  long (*most_parts)(const Sizes& sizes);

  // The number of floats that `forward` saves for `backward`, its products.
  std::size_t (*products)(const Sizes& sizes);

  // Computes a part of the output, and saves its products unless `saved` is null.
  void (*forward)(const Sizes& sizes, const float* features, const float* filters, const float* m,
                  float* output, float* saved, long part, long parts);

  // Numbers of floats and doubles that a part of `backward` needs for its sums.
  std::size_t (*filter_sums)(const Sizes& sizes);
  std::size_t (*m_sums)(const Sizes& sizes);

  // Computes a part of d_features, and this part's sums for d_filters and d_m. `saved` is what
  // `forward` saved if its filters were m_sum_filters, or null; the products are then computed.
  // Without m_sum_filters, the sums for d_m are zero.
  void (*backward)(const Sizes& sizes, const float* features, const float* filters,
                   const float* m_sum_filters, const float* m, const float* cotangent,
                   const float* saved, float* d_features, float* filter_sums, double* m_sums,
                   long part, long parts);

  // Adds the filter sums of `summands` parts, which lie one after another, and writes a part of
  // d_filters.
  void (*add_filter_sums)(const Sizes& sizes, const float* filter_sums, long summands,
                          float* d_filters, long part, long parts);

  // Computes weighted sums of blocks, to[p][i] = sum over b of weights[b * weight_step] *
  // from[b][p][i], for `pixels` pixels p of `length` numbers. Blocks and pixels lie `from_block`,
  // `from_step` and `to_step` apart.
  void (*combine)(const float* from, long from_block, long from_step, const float* weights,
                  long weight_step, long blocks, long pixels, long length, float* to, long to_step);
};

// The MCconv with the Hadamard pattern of 4 or 8 planes, for few maps; see hadamard.cc. Its
// sizes have one slice, and m is [taps, taps, planes]. Each function but `filter_sums` does one
// part of the work.
struct HadamardKernel {
  void (*forward)(const Sizes& sizes, const float* features, const float* filters, const float* m,
                  float* output, long part, long parts);

  // The number of floats that a part of `backward` needs for its sums.
  std::size_t (*filter_sums)(const Sizes& sizes);

  // Computes d_features of a part of the images, and this part's sums for d_filters and d_m, the
  // latter [taps, taps, planes].
  void (*backward)(const Sizes& sizes, const float* features, const float* filters,
                   const float* m_sum_filters, const float* m, const float* cotangent,
                   float* d_features, float* filter_sums, double* m_sums, long part, long parts);

  // Adds the filter sums of `summands` parts, which lie one after another, and writes a part of
  // d_filters.
  void (*add_filter_sums)(const Sizes& sizes, const float* filter_sums, long summands,
                          float* d_filters, long part, long parts);
};

// Ordinary convolutions with few channels; see narrow.cc. Their sizes have one slice and one plane.
// Each function but `filter_sums` does one part of the work.
struct NarrowKernel {
  void (*forward)(const Sizes& sizes, const float* features, const float* filters, float* output,
                  long part, long parts);
  void (*features_gradient)(const Sizes& sizes, const float* filters, const float* cotangent,
                            float* d_features, long part, long parts);

  // The number of floats that a part of `filters_gradient` needs for its sums.
  std::size_t (*filter_sums)(const Sizes& sizes);
  void (*filters_gradient)(const Sizes& sizes, const float* features, const float* cotangent,
                           float* filter_sums, long part, long parts);

  // Adds the filter sums of `summands` parts, which lie one after another, and writes a part of
  // d_filters.
  void (*add_filter_sums)(const Sizes& sizes, const float* filter_sums, long summands,
                          float* d_filters, long part, long parts);
};

namespace avx512 {
extern const Kernel kernel;
extern const HadamardKernel hadamard;
extern const NarrowKernel narrow;
}  // namespace avx512
namespace avx2 {
extern const Kernel kernel;
extern const HadamardKernel hadamard;
extern const NarrowKernel narrow;
}  // namespace avx2
namespace baseline {
extern const Kernel kernel;
extern const HadamardKernel hadamard;
extern const NarrowKernel narrow;
}  // namespace baseline

}  // namespace mcn

#endif  // MCN_KERNEL_H_
