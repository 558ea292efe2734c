// The kernels of the shim by their names, called as torch.mps.compile_shader's library calls them:
// each argument a tensor or some bytes, of which Metal would only see the address.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "simt/emulator.h"

namespace metal {
struct atomic_uint;
}
namespace bnbx {
struct float16;
struct bfloat16;
}  // namespace bnbx

namespace bnbx::metal_shim {

struct Argument {
  std::string dtype;  // of the elements, as torch names it
  void* data;
  int64_t bytes;
  bool is_tensor;
};

using Bound = std::function<void()>;  // one thread's call of a kernel
using Bind = std::function<Bound(const std::vector<Argument>&)>;

void register_kernel(const std::string& name, Bind bind);
std::vector<std::string> kernel_names();

// Runs a kernel; throws std::invalid_argument for arguments that are not what it takes.
void launch(const std::string& name, const std::vector<Argument>& arguments, int64_t threads,
            int64_t group_size);

// Whether elements of a dtype are T.
template <class T>
bool is_dtype(const std::string& dtype) {
  if (std::is_void_v<T>) return true;
  if (std::is_same_v<T, float>) return dtype == "float32";
  if (std::is_same_v<T, float16>) return dtype == "float16";
  if (std::is_same_v<T, bfloat16>) return dtype == "bfloat16";
  if (std::is_same_v<T, uint8_t>) return dtype == "uint8" || dtype == "bool";
  if (std::is_same_v<T, int8_t>) return dtype == "int8";
  if (std::is_same_v<T, int32_t>) return dtype == "int32";
  if (std::is_same_v<T, int64_t>) return dtype == "int64";
  return std::is_same_v<T, ::metal::atomic_uint> && dtype == "int32";
}

// Where a thread is, in the order of BNBX_PLACE.
uint32_t place(int number);

[[noreturn]] inline void refuse(size_t number, const Argument& argument) {
  throw std::invalid_argument("argument " + std::to_string(number) + ": a " + argument.dtype +
                              (argument.is_tensor ? " tensor" : " number") + " of " +
                              std::to_string(argument.bytes) +
                              " bytes is not what the kernel takes");
}

// What a parameter of a kernel is made of.
template <class P>
struct Parameter {  // a number by value: a part of the thread's place
  static_assert(std::is_same_v<P, uint32_t>);
  static constexpr int kArguments = 0;
};

template <class T>
struct Parameter<T*> {
  static constexpr int kArguments = 1;
  static T* bind(size_t number, const Argument& argument) {
    if (!is_dtype<std::remove_const_t<T>>(argument.dtype)) refuse(number, argument);
    return static_cast<T*>(argument.data);
  }
};

template <class T>
struct Parameter<const T&> {
  static constexpr int kArguments = 1;
  static const T& bind(size_t number, const Argument& argument) {
    const bool fits = argument.bytes == sizeof(T) && is_dtype<T>(argument.dtype);
    if (!fits || argument.is_tensor) refuse(number, argument);
    return *static_cast<const T*>(argument.data);
  }
};

template <class... P>
struct Call {
  static constexpr int kArguments = (0 + ... + Parameter<P>::kArguments);

  // Parameters of the place follow all others.
  template <size_t I, class Q>
  static Q value(const std::vector<Argument>& arguments) {
    if constexpr (Parameter<Q>::kArguments == 0) {
      return place(static_cast<int>(I) - kArguments);
    } else {
      return Parameter<Q>::bind(I, arguments[I]);
    }
  }

  template <size_t... I>
  static void call(void (*kernel)(P...), const std::vector<Argument>& arguments,
                   std::index_sequence<I...>) {
    kernel(value<I, P>(arguments)...);
  }

  static Bound bind(void (*kernel)(P...), const std::vector<Argument>& arguments) {
    if (arguments.size() != kArguments) {
      throw std::invalid_argument("expected " + std::to_string(kArguments) + " arguments, got " +
                                  std::to_string(arguments.size()));
    }
    check(arguments, std::index_sequence_for<P...>{});
    return [=] { call(kernel, arguments, std::index_sequence_for<P...>{}); };
  }

  template <size_t... I>
  static void check(const std::vector<Argument>& arguments, std::index_sequence<I...>) {
    (check_one<I, P>(arguments), ...);
  }
  template <size_t I, class Q>
  static void check_one(const std::vector<Argument>& arguments) {
    if constexpr (Parameter<Q>::kArguments == 1) Parameter<Q>::bind(I, arguments[I]);
  }
};

struct Registered {
  template <class... P>
  Registered(const char* name, void (*kernel)(P...)) {
    register_kernel(name, [=](const std::vector<Argument>& arguments) {
      return Call<P...>::bind(kernel, arguments);
    });
  }
};

}  // namespace bnbx::metal_shim
