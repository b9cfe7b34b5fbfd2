// Vectors of floats, memory, and shares of the work, for each file of the native kernel and each
// instruction set.
//
// Vectors are the compiler's (GCC and Clang), V floats wide.

#ifndef MCN_VECTORS_H_
#define MCN_VECTORS_H_

#include <cstddef>
#include <memory>
#include <new>

#if defined(__AVX512F__)
#define V 16
#elif defined(__AVX__)
#define V 8
#else
#define V 4
#endif

#define UNROLL _Pragma("GCC unroll 32")

namespace mcn {
namespace MCN_ISA {
namespace {

typedef float Vec __attribute__((vector_size(4 * V)));
typedef float LooseVec __attribute__((vector_size(4 * V), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }

inline long ceil_div(long a, long b) { return (a + b - 1) / b; }
inline long floor_div(long a, long b) { return a >= 0 ? a / b : -ceil_div(-a, b); }
inline long round_up(long a) { return ceil_div(a, V) * V; }

// Memory that a thread keeps between calls of a file's functions, since fresh pages cost more than
// small layers.
class Arena {
 public:
  // Starts over with room for `floats` in total; what was handed out before is lost.
  void reset(std::size_t floats) {
    if (floats > size_) {
      memory_.reset(static_cast<float*>(::operator new(4 * floats, std::align_val_t(64))));
      size_ = floats;
    }
    used_ = 0;
  }
  float* take(std::size_t floats) {
    float* start = memory_.get() + used_;
    used_ += rounded(floats);
    return start;
  }
  // Vectors may be read and written beyond the end of an array.
  static std::size_t rounded(std::size_t floats) { return (floats + 16 + 4 * V) / 16 * 16; }

 private:
  struct Delete {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<float, Delete> memory_;
  std::size_t size_ = 0, used_ = 0;
};

thread_local Arena arena;

// The share of `all` that belongs to a part.
struct Range {
  long begin, end;
};
inline Range share(long all, long part, long parts) {
  return {all * part / parts, all * (part + 1) / parts};
}

}  // namespace
}  // namespace MCN_ISA
}  // namespace mcn

#endif  // MCN_VECTORS_H_
