#pragma once
// Task<T>: a lazy coroutine with symmetric transfer. Await it exactly once, on the loop (thread)
// that made it, as a temporary or through std::move; it resumes its caller on that same loop.
//
// A function that is done at once need not be a coroutine: `return absl::OkStatus();` makes a ready
// Task without a frame. Such a function does its work when it is called, not when it is awaited, so
// callers must await what they call.
//
// Traps: no capturing lambda may be a coroutine; arguments by value, or spans whose owner awaits;
// after a co_await re-check what you relied on before it; hold no blocking lock over a co_await.
#include <coroutine>
#include <cstddef>
#include <optional>
#include <utility>

#include "src/core/error.h"

namespace blk {

template <typename T>
class [[nodiscard]] Task;

namespace internal {

// Coroutine frames come from per-thread free lists of size classes; a frame may be freed on another
// thread than it was made on.
void* AllocateFrame(size_t bytes);
void FreeFrame(void* frame, size_t bytes) noexcept;

struct FinalAwaiter {
  bool await_ready() const noexcept { return false; }
  template <typename Promise>
  std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) const noexcept {
    return self.promise().continuation;
  }
  void await_resume() const noexcept {}
};

struct FramePool {
  static void* operator new(size_t bytes) { return AllocateFrame(bytes); }
  static void operator delete(void* frame, size_t bytes) noexcept { FreeFrame(frame, bytes); }
};

struct PromiseBase : FramePool {
  std::coroutine_handle<> continuation = std::noop_coroutine();
  std::suspend_always initial_suspend() const noexcept { return {}; }
  FinalAwaiter final_suspend() const noexcept { return {}; }
  [[noreturn]] void unhandled_exception() const noexcept {
    CheckFailed("no exception leaves a task", __FILE__, __LINE__);
  }
};

template <typename T>
struct Promise : PromiseBase {
  std::optional<T> result;
  Task<T> get_return_object();
  template <typename U>
  void return_value(U&& value) {
    result.emplace(std::forward<U>(value));
  }
};

template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() const noexcept {}
};

// Runs a task to its end with nobody waiting; only TaskScope and loops start these.
struct Detached {
  struct promise_type : FramePool {
    Detached get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    [[noreturn]] void unhandled_exception() const noexcept {
      CheckFailed("no exception leaves a task", __FILE__, __LINE__);
    }
  };
};

}  // namespace internal

template <typename T>
class [[nodiscard]] Task {
 public:
  using promise_type = internal::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  explicit Task(Handle handle) : handle_(handle) {}
  // A task that is done: a value (or what converts to one).
  template <typename U>
    requires(std::is_convertible_v<U &&, T> && !std::is_same_v<std::remove_cvref_t<U>, Task>)
  Task(U&& value) : value_(std::forward<U>(value)) {}
  Task(Task&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), value_(std::move(other.value_)) {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  // True when awaiting will not suspend; Take() then gives the result without an await.
  bool ready() const { return !handle_; }
  T Take() && { return *std::move(value_); }

  auto operator co_await() && noexcept {
    struct Awaiter {
      Task& task;
      bool await_ready() const noexcept { return !task.handle_; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<> caller) const noexcept {
        task.handle_.promise().continuation = caller;
        return task.handle_;
      }
      T await_resume() const {
        if (!task.handle_) return *std::move(task.value_);
        return *std::move(task.handle_.promise().result);
      }
    };
    return Awaiter{*this};
  }

 private:
  Handle handle_;
  std::optional<T> value_;
};

template <>
class [[nodiscard]] Task<void> {
 public:
  using promise_type = internal::Promise<void>;
  using Handle = std::coroutine_handle<promise_type>;

  Task() = default;  // done
  explicit Task(Handle handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  bool ready() const { return !handle_; }

  auto operator co_await() && noexcept {
    struct Awaiter {
      Handle handle;
      bool await_ready() const noexcept { return !handle; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<> caller) const noexcept {
        handle.promise().continuation = caller;
        return handle;
      }
      void await_resume() const noexcept {}
    };
    return Awaiter{handle_};
  }

 private:
  Handle handle_;
};

namespace internal {
template <typename T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise>::from_promise(*this));
}
inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise>::from_promise(*this));
}
}  // namespace internal

}  // namespace blk
