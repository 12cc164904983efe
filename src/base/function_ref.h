// A function that is called before the call that it is passed to returns: borrowed, where
// std::function would copy it, and allocate for all but the smallest.
#pragma once

#include <type_traits>
#include <utility>

namespace tensorkey::internal {

template <typename Signature>
class FunctionRef;

template <typename Result, typename... Arguments>
class FunctionRef<Result(Arguments...)> {
 public:
  template <typename Function,
            std::enable_if_t<!std::is_same_v<std::remove_cvref_t<Function>, FunctionRef>, int> = 0>
  FunctionRef(Function&& function) noexcept
      : function_(&function), call_([](const void* target, Arguments... arguments) -> Result {
          using Target = std::remove_reference_t<Function>;
          return (*const_cast<Target*>(static_cast<const Target*>(target)))(
              std::forward<Arguments>(arguments)...);
        }) {}

  Result operator()(Arguments... arguments) const {
    return call_(function_, std::forward<Arguments>(arguments)...);
  }

 private:
  const void* function_;
  Result (*call_)(const void*, Arguments...);
};

}  // namespace tensorkey::internal
