#pragma once
// Shows how far a copy is: a bar on a terminal, JSON objects, or nbdcopy's "N/100" lines.
#include <cstdint>
#include <memory>

#include "src/core/loop.h"
#include "src/core/scope.h"
#include "src/tools/copy_engine.h"

namespace blk {

struct ProgressChoice {
  enum class Form { kNone, kBar, kJson, kPercent };
  Form form = Form::kNone;
  int fd = 2;  // standard error
};

class ProgressDisplay {
 public:
  using Form = ProgressChoice::Form;

  // Writes until Finish(). `total_bytes` 0: unknown. On the current loop.
  ProgressDisplay(ProgressChoice choice, uint64_t total_bytes, const CopyProgress* progress);
  void Start();
  // The last line; `ok`: all was copied.
  Task<void> Finish(bool ok);

 private:
  Task<void> Run();
  void Show(bool last, bool ok);

  const Form form_;
  const int fd_;
  const uint64_t total_;
  const CopyProgress& progress_;
  int64_t start_ns_ = 0;
  int shown_percent_ = -1;
  std::stop_source stop_;
  std::stop_token stop_token_ = stop_.get_token();
  TaskScope scope_;
};

}  // namespace blk
