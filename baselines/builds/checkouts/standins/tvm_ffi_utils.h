// Stands in for the header of that name which FlashInfer's sources include: of it they use one macro here.
#pragma once

namespace moe_mono {

struct CheckFailed {};

struct Check {
  bool holds;
  template <typename T>
  Check& operator<<(const T&) {
    return *this;
  }
  ~Check() noexcept(false) {
    if (!holds) throw CheckFailed{};
  }
};

}  // namespace moe_mono

#define TVM_FFI_ICHECK(condition) moe_mono::Check{static_cast<bool>(condition)}
