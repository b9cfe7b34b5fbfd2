// XLA's entries to the kernel, and the choice of the instruction set.
#include "kernel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

namespace {

const char* InstructionSet() {
#ifdef MCN_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    return "avx512";
  if (avx2) return "avx2";
#endif
  return "baseline";
}

const char* const kInstructionSet = InstructionSet();

mcn::Sizes SizesOf(const Array& x, const Array& c, const Array& m,
                   ffi::Span<const int64_t> out, int64_t stride_y, int64_t stride_x,
                   int64_t low_y, int64_t low_x) {
  auto a = x.dimensions(), b = c.dimensions();
  return {a[0], a[1], a[2], a[3], b[0], b[3], m.dimensions()[2], out[1], out[2],
          stride_y, stride_x, low_y, low_x};
}

#ifdef MCN_X86
#define MCN_CALL(F, ...)                                            \
  (kInstructionSet[3] == '5'   ? mcn::avx512::F(__VA_ARGS__)        \
   : kInstructionSet[3] == '2' ? mcn::avx2::F(__VA_ARGS__)          \
                               : mcn::baseline::F(__VA_ARGS__))
#else
#define MCN_CALL(F, ...) mcn::baseline::F(__VA_ARGS__)
#endif

ffi::Error Forward(Array x, Array c, Array m, Result y, int64_t stride_y, int64_t stride_x,
                   int64_t low_y, int64_t low_x) {
  const auto s = SizesOf(x, c, m, y->dimensions(), stride_y, stride_x, low_y, low_x);
  MCN_CALL(Forward, s, x.typed_data(), c.typed_data(), m.typed_data(), y->typed_data());
  return ffi::Error::Success();
}

ffi::Error Backward(Array x, Array c, Array sum, Array m, Array dy, Result dx, Result dc,
                    Result dm, int64_t stride_y, int64_t stride_x, int64_t low_y,
                    int64_t low_x) {
  const auto s = SizesOf(x, c, m, dy.dimensions(), stride_y, stride_x, low_y, low_x);
  MCN_CALL(Backward, s, x.typed_data(), c.typed_data(), sum.typed_data(), m.typed_data(),
           dy.typed_data(), dx->typed_data(), dc->typed_data(), dm->typed_data());
  return ffi::Error::Success();
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* mcn_native_instruction_set() {
  return kInstructionSet;
}

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(McnMcconvForward, Forward,
                              ffi::Ffi::Bind()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("stride_y")
                                  .Attr<int64_t>("stride_x")
                                  .Attr<int64_t>("low_y")
                                  .Attr<int64_t>("low_x"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(McnMcconvBackward, Backward,
                              ffi::Ffi::Bind()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("stride_y")
                                  .Attr<int64_t>("stride_x")
                                  .Attr<int64_t>("low_y")
                                  .Attr<int64_t>("low_x"));
#pragma GCC visibility pop
