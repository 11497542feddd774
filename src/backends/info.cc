// info: a small disk of facts about the client, its connection or the time.
// Parallel-safe: what a device tells is fixed when it is opened, or is the clock.
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "src/core/loop.h"
#include "src/core/spec.h"

namespace blk {
namespace {

enum class Mode { kExportName, kBase64ExportName, kAddress, kTime, kUptime, kConnectionTime };

struct Config {
  Mode mode = Mode::kExportName;
};

Facts InfoFacts(uint64_t size, bool same_for_all) {
  Facts facts;
  facts.size = size;
  facts.read_only = true;
  facts.flush = false;
  facts.fua = Support::kNone;
  facts.cache = Support::kNative;
  facts.multi_conn = same_for_all;  // two connections to one export see one disk
  return facts;
}

class TextDevice final : public Device {
 public:
  TextDevice(std::string text, bool same_for_all)
      : Device(InfoFacts(text.size(), same_for_all)), text_(std::move(text)) {}

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t offset, std::span<char> into) override {
    std::memcpy(into.data(), text_.data() + offset, into.size());
    return absl::OkStatus();
  }

 private:
  const std::string text_;
};

// 8 bytes of seconds and 4 of microseconds, big-endian: the time between `since_us` and the read.
class ClockDevice final : public Device {
 public:
  static constexpr size_t kBytes = 12;
  using Clock = int64_t (*)();

  ClockDevice(Clock clock, int64_t since_us)
      : Device(InfoFacts(kBytes, false)), clock_(clock), since_us_(since_us) {}

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t offset, std::span<char> into) override {
    const int64_t microseconds = std::max<int64_t>(clock_() - since_us_, 0);
    const uint64_t seconds = __builtin_bswap64(microseconds / 1'000'000);
    const uint32_t rest = __builtin_bswap32(microseconds % 1'000'000);
    char bytes[kBytes];
    std::memcpy(bytes, &seconds, sizeof(seconds));
    std::memcpy(bytes + sizeof(seconds), &rest, sizeof(rest));
    std::memcpy(into.data(), bytes + offset, into.size());
    return absl::OkStatus();
  }

 private:
  const Clock clock_;
  const int64_t since_us_;
};

int64_t WallClockUs() {
  timeval now;
  gettimeofday(&now, nullptr);
  return int64_t{now.tv_sec} * 1'000'000 + now.tv_usec;
}

// Never jumps when the time of the machine is set.
int64_t SteadyClockUs() { return Loop::Current()->NowNs() / 1000; }

class InfoLayer final : public Layer {
 public:
  explicit InfoLayer(Mode mode) : mode_(mode) {}

  Task<absl::Status> Start() override {
    started_us_ = SteadyClockUs();
    return absl::OkStatus();
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override { return MakeDevice(args); }

 private:
  absl::StatusOr<DevicePtr> MakeDevice(const OpenArgs& args) const {
    switch (mode_) {
      case Mode::kExportName:
        return std::make_shared<TextDevice>(args.export_name, true);
      case Mode::kBase64ExportName: {
        std::string bytes;
        // Abseil would do without the padding at the end.
        if (args.export_name.size() % 4 != 0 || !absl::Base64Unescape(args.export_name, &bytes)) {
          return ErrnoErrorAsIs(
              ENOENT, absl::StrCat("info: the export name '", absl::CHexEscape(args.export_name),
                                   "' is not base64"));
        }
        return std::make_shared<TextDevice>(std::move(bytes), true);
      }
      case Mode::kAddress:
        if (args.peer == nullptr) {
          return ErrnoErrorAsIs(
              ENOTSUP, "info: without a server there is no client whose address could be told");
        }
        return std::make_shared<TextDevice>(args.peer->text, false);
      case Mode::kTime:
        return std::make_shared<ClockDevice>(WallClockUs, 0);
      case Mode::kUptime:
        return std::make_shared<ClockDevice>(SteadyClockUs, started_us_);
      case Mode::kConnectionTime:
        return std::make_shared<ClockDevice>(SteadyClockUs, SteadyClockUs());
    }
    return ErrnoErrorAsIs(EINVAL, "info: unknown mode");
  }

  const Mode mode_;
  int64_t started_us_ = 0;
};

absl::StatusOr<LayerPtr> MakeLayer(const Config& config) {
  return std::make_shared<InfoLayer>(config.mode);
}

}  // namespace

const Spec& InfoSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("info", "facts about client, connection and time, as a disk")
          .Description(
              "A read-only disk that holds the export name that the client asked for, the same "
              "decoded from base64, the client's address and port (`unix` for a Unix socket), or "
              "a time: since 1970, since the server began, or since the client connected. Times "
              "are 12 bytes, to be read at once: 8 of seconds and 4 of microseconds, both "
              "big-endian.")
          .Param("mode", &Config::mode,
                 {{"exportname", Mode::kExportName},
                  {"base64exportname", Mode::kBase64ExportName},
                  {"address", Mode::kAddress},
                  {"time", Mode::kTime},
                  {"uptime", Mode::kUptime},
                  {"conntime", Mode::kConnectionTime}},
                 {.help = "what the disk tells", .magic = true})
          .Example("info", "the export name")
          .PrintedExample("info:address", "the client's address")
          .PrintedExample("info:conntime", "how long the client has been connected")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
