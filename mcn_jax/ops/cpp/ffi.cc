// The XLA handlers of the native kernel: sizes, threads, and the choice of the instruction set.

#include "xla/ffi/api/ffi.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "blocks.h"
#include "kernel.h"

namespace ffi = xla::ffi;

namespace mcn {
namespace {

// What is compiled for one instruction set.
struct Code {
  const Kernel& kernel;
  const HadamardKernel& hadamard;
  const NarrowKernel& narrow;
};

const Code& code() {
  static const Code baseline{baseline::kernel, baseline::hadamard, baseline::narrow};
#ifdef MCN_X86
  __builtin_cpu_init();
  static const Code avx512{avx512::kernel, avx512::hadamard, avx512::narrow},
      avx2{avx2::kernel, avx2::hadamard, avx2::narrow};
  static const Code& best =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")
          ? avx512
      : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2
                                                                        : baseline;
  return best;
#else
  return baseline;
#endif
}

const Kernel& kernel() { return code().kernel; }

// Work that several threads take from, part by part. The thread that waits works too, and waits
// only for parts that another thread has begun. So it never waits for a thread that waits itself,
// even if all threads of the pool are in this function.
class Work {
 public:
  Work(long parts, std::function<void(long)> function)
      : function_(std::move(function)), parts_(parts) {}

  void take_parts() {
    for (long part; (part = next_.fetch_add(1)) < parts_;) {
      function_(part);
      std::lock_guard<std::mutex> lock(mutex_);
      if (++done_ == parts_) all_done_.notify_all();
    }
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [this] { return done_ == parts_; });
  }

 private:
  const std::function<void(long)> function_;
  const long parts_;
  std::atomic<long> next_{0};
  long done_ = 0;
  std::mutex mutex_;
  std::condition_variable all_done_;
};

void in_parallel(ffi::ThreadPool& pool, long parts, std::function<void(long)> function) {
  auto work = std::make_shared<Work>(parts, std::move(function));
  for (long helpers = std::min<long>(parts, pool.num_threads()) - 1; helpers > 0; --helpers)
    pool.Schedule([work] { work->take_parts(); });
  work->take_parts();
  work->wait();
}

// The number of parts of work that can be cut into `most` parts: one per thread, and at least one.
long parts_of(ffi::ThreadPool& pool, long most) {
  return std::max<long>(1, std::min<long>(pool.num_threads(), most));
}

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;

ffi::ErrorOr<Sizes> sizes_of(const Array& features, const Array& filters, const Array& m,
                             ffi::Span<const int64_t> output, int64_t stride_y, int64_t stride_x,
                             int64_t low_y, int64_t low_x) {
  auto x = features.dimensions(), f = filters.dimensions(), k = m.dimensions();
  auto wrong = [](const char* what) {
    return ffi::Unexpected(ffi::Error::InvalidArgument(std::string("the native kernel: ") + what));
  };
  if (x.size() != 4 || f.size() != 4 || k.size() != 4 || output.size() != 4)
    return wrong("features, filters, M and output need four dimensions");
  if (f[0] != f[1] || k[1] != f[0] || k[2] != f[0] || k[0] < 1 || x[3] % k[0] || f[2] != x[3] ||
      f[3] < 1 || k[3] < 1 ||
      output[0] != x[0] || output[3] != f[3] * k[3] || stride_y < 1 || stride_x < 1)
    return wrong("the shapes do not fit each other");
  return Sizes{x[0],      x[1],     x[2],     k[0],  x[3] / k[0], f[0], f[3], k[3], output[1],
               output[2], stride_y, stride_x, low_y, low_x};
}

// Saved products, or null if the array is empty.
ffi::ErrorOr<float*> saved_of(const Array& products, const Sizes& sizes) {
  const std::size_t count = products.element_count();
  if (count == 0) return static_cast<float*>(nullptr);
  if (count != kernel().products(sizes))
    return ffi::Unexpected(ffi::Error::InvalidArgument("the native kernel: wrong products"));
  return products.typed_data();
}

// Adds the sums for M of all parts, which lie one after another.
void add_parts(const std::vector<double>& sums, Array& d_m) {
  const std::size_t count = d_m.element_count();
  for (std::size_t n = 0; n < count; ++n) {
    double sum = 0;
    for (std::size_t place = n; place < sums.size(); place += count) sum += sums[place];
    d_m.typed_data()[n] = static_cast<float>(sum);
  }
}

ffi::Error forward(ffi::ThreadPool pool, Array features, Array filters, Array m, Result output,
                   Result products, int64_t stride_y, int64_t stride_x, int64_t low_y,
                   int64_t low_x) {
  auto found =
      sizes_of(features, filters, m, output->dimensions(), stride_y, stride_x, low_y, low_x);
  if (found.has_error()) return found.error();
  const Sizes sizes = *found;
  auto saved = saved_of(*products, sizes);
  if (saved.has_error()) return saved.error();
  const long parts = parts_of(pool, sizes.images * sizes.out_height);
  in_parallel(pool, parts, [&](long part) {
    kernel().forward(sizes, features.typed_data(), filters.typed_data(), m.typed_data(),
                     output->typed_data(), *saved, part, parts);
  });
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, Array features, Array filters, Array m_sum_filters,
                    Array m, Array cotangent, Array products, Result d_features, Result d_filters,
                    Result d_m, int64_t stride_y, int64_t stride_x, int64_t low_y, int64_t low_x) {
  auto found =
      sizes_of(features, filters, m, cotangent.dimensions(), stride_y, stride_x, low_y, low_x);
  if (found.has_error()) return found.error();
  const Sizes sizes = *found;
  auto saved = saved_of(products, sizes);
  if (saved.has_error()) return saved.error();
  if (m_sum_filters.element_count() != 0 &&
      m_sum_filters.element_count() != filters.element_count())
    return ffi::Error::InvalidArgument("the native kernel: wrong filters for the gradient of M");
  // Empty if nobody needs the gradient of M, which is then zero.
  const float* const in_m_sum =
      m_sum_filters.element_count() ? m_sum_filters.typed_data() : nullptr;
  const Kernel& best = kernel();
  const bool by_maps = best.splits_maps(sizes);
  const long threads = std::max<long>(1, pool.num_threads());
  const long parts = std::min(threads, best.most_parts(sizes));
  const long filter_sums = best.filter_sums(sizes), m_sums = best.m_sums(sizes);
  const long summands = by_maps ? 1 : parts, copies = by_maps ? parts - 1 : 0;
  const long size = sizes.images * sizes.height * sizes.width * sizes.slices * sizes.channels;
  // Not vectors, which would be filled with zeros first.
  std::unique_ptr<float[]> of_filters(new float[summands * filter_sums]),
      of_features(new float[copies * size]);
  std::vector<double> of_m(parts * m_sums);
  float* const d_x = d_features->typed_data();
  in_parallel(pool, parts, [&](long part) {
    best.backward(sizes, features.typed_data(), filters.typed_data(), in_m_sum, m.typed_data(),
                  cotangent.typed_data(), *saved,
                  by_maps && part > 0 ? of_features.get() + (part - 1) * size : d_x,
                  of_filters.get() + (by_maps ? 0 : part * filter_sums),
                  of_m.data() + part * m_sums, part, parts);
  });
  in_parallel(pool, threads, [&](long part) {
    best.add_filter_sums(sizes, of_filters.get(), summands, d_filters->typed_data(), part, threads);
    const long end = size * (part + 1) / threads;
    for (long copy = 0; copy < copies; ++copy)
      for (long n = size * part / threads; n < end; ++n) d_x[n] += of_features[copy * size + n];
  });
  add_parts(of_m, *d_m);
  return ffi::Error::Success();
}

// Sizes for planes in lanes, which save no products.
ffi::ErrorOr<Sizes> sizes_in_lanes(const Array& features, const Array& filters, const Array& m,
                                   ffi::Span<const int64_t> output, const Array& products,
                                   int64_t stride_y, int64_t stride_x, int64_t low_y,
                                   int64_t low_x) {
  auto found = sizes_of(features, filters, m, output, stride_y, stride_x, low_y, low_x);
  if (found.has_error()) return found;
  if (found->slices != 1 || (found->planes != 4 && found->planes != 8) ||
      found->channels % found->planes || products.element_count())
    return ffi::Unexpected(ffi::Error::InvalidArgument(
        "the native kernel: planes in lanes are four or eight, without slices and products"));
  return found;
}

ffi::Error hadamard_forward(ffi::ThreadPool pool, Array features, Array filters, Array m,
                            Result output, Result products, int64_t stride_y, int64_t stride_x,
                            int64_t low_y, int64_t low_x) {
  auto found = sizes_in_lanes(features, filters, m, output->dimensions(), *products, stride_y,
                              stride_x, low_y, low_x);
  if (found.has_error()) return found.error();
  const Sizes sizes = *found;
  const long parts = parts_of(pool, sizes.images * sizes.out_height);
  in_parallel(pool, parts, [&](long part) {
    code().hadamard.forward(sizes, features.typed_data(), filters.typed_data(), m.typed_data(),
                            output->typed_data(), part, parts);
  });
  return ffi::Error::Success();
}

ffi::Error hadamard_backward(ffi::ThreadPool pool, Array features, Array filters,
                             Array m_sum_filters, Array m, Array cotangent, Array products,
                             Result d_features, Result d_filters, Result d_m, int64_t stride_y,
                             int64_t stride_x, int64_t low_y, int64_t low_x) {
  auto found = sizes_in_lanes(features, filters, m, cotangent.dimensions(), products, stride_y,
                              stride_x, low_y, low_x);
  if (found.has_error()) return found.error();
  const Sizes sizes = *found;
  if (m_sum_filters.element_count() != filters.element_count())
    return ffi::Error::InvalidArgument("the native kernel: wrong filters for the gradient of M");
  const HadamardKernel& best = code().hadamard;
  const long threads = std::max<long>(1, pool.num_threads());
  const long parts = std::min<long>(threads, sizes.images);
  const long filter_sums = best.filter_sums(sizes), m_sums = m.element_count();
  // Not a vector, which would be filled with zeros first.
  std::unique_ptr<float[]> of_filters(new float[parts * filter_sums]);
  std::vector<double> of_m(parts * m_sums);
  in_parallel(pool, parts, [&](long part) {
    best.backward(sizes, features.typed_data(), filters.typed_data(), m_sum_filters.typed_data(),
                  m.typed_data(), cotangent.typed_data(), d_features->typed_data(),
                  of_filters.get() + part * filter_sums, of_m.data() + part * m_sums, part, parts);
  });
  in_parallel(pool, threads, [&](long part) {
    best.add_filter_sums(sizes, of_filters.get(), parts, d_filters->typed_data(), part, threads);
  });
  add_parts(of_m, *d_m);
  return ffi::Error::Success();
}

// Sizes of an ordinary convolution.
ffi::ErrorOr<Sizes> plain_sizes(ffi::Span<const int64_t> x, ffi::Span<const int64_t> f,
                                ffi::Span<const int64_t> y, int64_t stride_y, int64_t stride_x,
                                int64_t low_y, int64_t low_x) {
  if (x.size() != 4 || f.size() != 4 || y.size() != 4 || f[0] != f[1] || f[2] != x[3] ||
      f[0] < 1 || f[2] < 1 || f[3] < 1 || y[0] != x[0] || y[1] < 1 || y[2] < 1 || y[3] != f[3] ||
      stride_y < 1 || stride_x < 1)
    return ffi::Unexpected(ffi::Error::InvalidArgument(
        "the native kernel: the shapes of a convolution do not fit each other"));
  return Sizes{x[0], x[1], x[2], 1,        x[3],     f[0],  f[3],
               1,    y[1], y[2], stride_y, stride_x, low_y, low_x};
}

ffi::Error narrow_forward(ffi::ThreadPool pool, Array features, Array filters, Result output,
                          int64_t stride_y, int64_t stride_x, int64_t low_y, int64_t low_x) {
  auto sizes = plain_sizes(features.dimensions(), filters.dimensions(), output->dimensions(),
                           stride_y, stride_x, low_y, low_x);
  if (sizes.has_error()) return sizes.error();
  const long parts = parts_of(pool, sizes->images * sizes->out_height);
  in_parallel(pool, parts, [&](long part) {
    code().narrow.forward(*sizes, features.typed_data(), filters.typed_data(),
                          output->typed_data(), part, parts);
  });
  return ffi::Error::Success();
}

ffi::Error narrow_features_gradient(ffi::ThreadPool pool, Array filters, Array cotangent,
                                    Result d_features, int64_t stride_y, int64_t stride_x,
                                    int64_t low_y, int64_t low_x) {
  auto sizes = plain_sizes(d_features->dimensions(), filters.dimensions(), cotangent.dimensions(),
                           stride_y, stride_x, low_y, low_x);
  if (sizes.has_error()) return sizes.error();
  const long parts = parts_of(pool, sizes->images);
  in_parallel(pool, parts, [&](long part) {
    code().narrow.features_gradient(*sizes, filters.typed_data(), cotangent.typed_data(),
                                    d_features->typed_data(), part, parts);
  });
  return ffi::Error::Success();
}

ffi::Error narrow_filters_gradient(ffi::ThreadPool pool, Array features, Array cotangent,
                                   Result d_filters, int64_t stride_y, int64_t stride_x,
                                   int64_t low_y, int64_t low_x) {
  auto sizes = plain_sizes(features.dimensions(), d_filters->dimensions(), cotangent.dimensions(),
                           stride_y, stride_x, low_y, low_x);
  if (sizes.has_error()) return sizes.error();
  const NarrowKernel& best = code().narrow;
  const long parts = parts_of(pool, sizes->images * sizes->out_height);
  const long floats = best.filter_sums(*sizes);
  // Not a vector, which would be filled with zeros first.
  std::unique_ptr<float[]> sums(new float[parts * floats]);
  in_parallel(pool, parts, [&](long part) {
    best.filters_gradient(*sizes, features.typed_data(), cotangent.typed_data(),
                          sums.get() + part * floats, part, parts);
  });
  in_parallel(pool, parts, [&](long part) {
    best.add_filter_sums(*sizes, sums.get(), parts, d_filters->typed_data(), part, parts);
  });
  return ffi::Error::Success();
}

ffi::ErrorOr<Blocks> blocks_of(const Array& features, const Array& filters, const Array& take,
                               const Array& give, ffi::Span<const int64_t> output,
                               int64_t stride_y, int64_t stride_x, int64_t low_y, int64_t low_x) {
  auto x = features.dimensions(), f = filters.dimensions(), a = take.dimensions(),
       c = give.dimensions();
  auto wrong = [](const char* what) {
    return ffi::Unexpected(ffi::Error::InvalidArgument(std::string("the native kernel: ") + what));
  };
  if (x.size() != 4 || f.size() != 5 || a.size() != 2 || c.size() != 2 || output.size() != 4)
    return wrong("features and output need four dimensions, filters five, matrices two");
  if (f[1] != f[2] || a[0] != f[0] || c[1] != f[0] || c[0] != a[1] || x[3] != a[1] * f[3] ||
      output[0] != x[0] || output[3] != a[1] * f[4] || stride_y < 1 || stride_x < 1)
    return wrong("the shapes do not fit each other");
  return Blocks{{x[0], x[1], x[2], 1, f[3], f[1], f[4], 1, output[1], output[2], stride_y,
                 stride_x, low_y, low_x},
                a[1],
                a[0],
                take.typed_data(),
                give.typed_data()};
}

ffi::Error blocks_forward(ffi::ThreadPool pool, Array features, Array filters, Array take,
                          Array give, Result output, int64_t stride_y, int64_t stride_x,
                          int64_t low_y, int64_t low_x) {
  auto found = blocks_of(features, filters, take, give, output->dimensions(), stride_y, stride_x,
                         low_y, low_x);
  if (found.has_error()) return found.error();
  const Blocks blocks = *found;
  const long parts = blocks.parts(pool.num_threads());
  in_parallel(pool, parts, [&](long part) {
    blocks.forward(kernel(), features.typed_data(), filters.typed_data(), output->typed_data(),
                   part, parts);
  });
  return ffi::Error::Success();
}

ffi::Error blocks_backward(ffi::ThreadPool pool, Array features, Array filters, Array take,
                           Array give, Array cotangent, Result d_features, Result d_filters,
                           int64_t stride_y, int64_t stride_x, int64_t low_y, int64_t low_x) {
  auto found = blocks_of(features, filters, take, give, cotangent.dimensions(), stride_y, stride_x,
                         low_y, low_x);
  if (found.has_error()) return found.error();
  const Blocks blocks = *found;
  const long parts = blocks.parts(pool.num_threads());
  const long sums = parts * kernel().filter_sums(blocks.one);  // of a product
  // Not a vector, which would be filled with zeros first.
  std::unique_ptr<float[]> of_filters(new float[blocks.products * sums]);
  in_parallel(pool, parts, [&](long part) {
    blocks.backward(kernel(), features.typed_data(), filters.typed_data(), cotangent.typed_data(),
                    d_features->typed_data(), of_filters.get(), part, parts);
  });
  const long threads = std::max<long>(1, pool.num_threads());
  in_parallel(pool, blocks.products * threads, [&](long task) {
    const long g = task / threads;
    kernel().add_filter_sums(blocks.one, of_filters.get() + g * sums, parts,
                             d_filters->typed_data() + g * blocks.filter_floats(), task % threads,
                             threads);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace mcn

#define EXPORT extern "C" __attribute__((visibility("default")))

// The number of floats among the products of a layer, as `forward` saves them.
EXPORT int64_t mcn_native_products(const int64_t* sizes) {
  const mcn::Sizes s{sizes[0], sizes[1], sizes[2], sizes[3],  sizes[4],  sizes[5],  sizes[6],
                     sizes[7], sizes[8], sizes[9], sizes[10], sizes[11], sizes[12], sizes[13]};
  return mcn::kernel().products(s);
}

EXPORT const char* mcn_native_instruction_set() { return mcn::kernel().instruction_set; }

namespace mcn {
namespace {

// The arrays of a handler: `Arguments` arguments, then `Results` results, then the attributes of a
// convolution.
template <int Arguments, int Results, typename Binding>
auto bound(Binding binding) {
  if constexpr (Arguments > 0)
    return bound<Arguments - 1, Results>(std::move(binding).template Arg<Array>());
  else if constexpr (Results > 0)
    return bound<0, Results - 1>(std::move(binding).template Ret<Array>());
  else
    return std::move(binding)
        .template Attr<int64_t>("stride_y")
        .template Attr<int64_t>("stride_x")
        .template Attr<int64_t>("low_y")
        .template Attr<int64_t>("low_x");
}

template <int Arguments, int Results>
auto bound() {
  return bound<Arguments, Results>(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>());
}

}  // namespace
}  // namespace mcn

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(McnMcconvForward, mcn::forward, (mcn::bound<3, 2>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(McnMcconvBackward, mcn::backward, (mcn::bound<6, 3>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(McnHadamardForward, mcn::hadamard_forward, (mcn::bound<3, 2>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(McnHadamardBackward, mcn::hadamard_backward, (mcn::bound<6, 3>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(McnNarrowForward, mcn::narrow_forward, (mcn::bound<2, 1>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(McnNarrowFeaturesGradient, mcn::narrow_features_gradient,
                              (mcn::bound<2, 1>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(McnNarrowFiltersGradient, mcn::narrow_filters_gradient,
                              (mcn::bound<2, 1>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(McnBlocksForward, mcn::blocks_forward, (mcn::bound<4, 1>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(McnBlocksBackward, mcn::blocks_backward, (mcn::bound<5, 2>()));
#pragma GCC visibility pop
