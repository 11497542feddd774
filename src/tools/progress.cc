#include "src/tools/progress.h"

#include <unistd.h>

#include <algorithm>
#include <string>

#include "absl/strings/str_format.h"
#include "src/core/units.h"

namespace blk {
namespace {

constexpr int64_t kIntervalNs = 250'000'000;
constexpr int kBarWidth = 30;

void WriteAll(int fd, const std::string& text) {
  [[maybe_unused]] ssize_t ignored = write(fd, text.data(), text.size());
}

std::string Bar(double share) {
  int filled = static_cast<int>(share * kBarWidth);
  return std::string(filled, '#') + std::string(kBarWidth - filled, '.');
}

std::string Clock(double seconds) {
  auto s = static_cast<int64_t>(seconds);
  return s >= 3600 ? absl::StrFormat("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60)
                   : absl::StrFormat("%d:%02d", s / 60, s % 60);
}

}  // namespace

ProgressDisplay::ProgressDisplay(ProgressChoice choice, uint64_t total_bytes,
                                 const CopyProgress* progress)
    : form_(choice.form), fd_(choice.fd), total_(total_bytes), progress_(*progress) {}

void ProgressDisplay::Start() {
  if (form_ == Form::kNone) return;
  start_ns_ = Loop::Current()->NowNs();
  if (form_ == Form::kPercent) Show(false, true);  // readers may count on 0/100
  scope_.Spawn(Run());
}

Task<void> ProgressDisplay::Run() {
  while ((co_await Loop::Current()->Sleep(kIntervalNs, &stop_token_)).ok()) Show(false, true);
}

Task<void> ProgressDisplay::Finish(bool ok) {
  stop_.request_stop();
  co_await scope_.Join();
  if (form_ != Form::kNone) Show(true, ok);
}

void ProgressDisplay::Show(bool last, bool ok) {
  const double seconds = (Loop::Current()->NowNs() - start_ns_) / 1e9;
  const uint64_t done = progress_.done.load();
  const double share =
      total_ == 0 ? (last && ok ? 1 : 0) : std::min(1.0, static_cast<double>(done) / total_);
  const double rate = seconds > 0 ? done / seconds : 0;
  const double left = rate > 0 && total_ > done ? (total_ - done) / rate : 0;
  switch (form_) {
    case Form::kNone:
      break;
    case Form::kBar: {
      std::string text =
          absl::StrFormat("\r[%s] %3d%%  %s of %s  %s/s", Bar(share), static_cast<int>(share * 100),
                          FormatSizeRounded(done), total_ ? FormatSizeRounded(total_) : "?",
                          FormatSizeRounded(static_cast<uint64_t>(rate)));
      absl::StrAppend(&text, last ? "  in " : "  left ", Clock(last ? seconds : left), "  ");
      WriteAll(fd_, last ? text + "\n" : text);
      break;
    }
    case Form::kJson:
      WriteAll(fd_,
               absl::StrFormat("{\"done\": %d, \"total\": %d, \"read\": %d, \"written\": %d, "
                               "\"zeroed\": %d, \"seconds\": %.3f, \"bytes_per_second\": %.0f, "
                               "\"seconds_left\": %.1f, \"state\": \"%s\"}\n",
                               done, total_, progress_.read.load(), progress_.written.load(),
                               progress_.zeroed.load(), seconds, rate, last ? 0.0 : left,
                               !last ? "running"
                               : ok  ? "finished"
                                     : "failed"));
      break;
    case Form::kPercent: {
      int percent = static_cast<int>(share * 100);
      if (percent == shown_percent_ || (last && !ok)) break;
      shown_percent_ = percent;
      WriteAll(fd_, absl::StrCat(percent, "/100\n"));
      break;
    }
  }
}

}  // namespace blk
