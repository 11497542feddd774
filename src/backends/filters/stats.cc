// stats: counts operations, bytes and time, and writes a table at the end.
//
// Parallel-safe: numbers are added up under a lock that is held for moments. Only operations that
// succeed count.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <map>
#include <mutex>

#include "absl/strings/str_format.h"
#include "src/backends/filters/request.h"
#include "src/core/descriptor.h"
#include "src/core/loop.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

struct Config {
  std::string file;
  bool append = false;
  int threshold = 95;
};

// Requests whose length has the same number of bits; for each number of trailing zero bits of
// their offsets how many. Offset 0 is as aligned as can be.
struct SizeGroup {
  uint64_t requests = 0, bytes = 0;
  std::array<uint64_t, 65> by_alignment = {};
};
struct Sum {
  uint64_t requests = 0, bytes = 0;
  int64_t time_ns = 0;
  std::map<int, SizeGroup> groups;  // by floor(log2(length))
};

std::string Amount(double bytes) {
  constexpr double kKi = 1024, kMi = kKi * kKi, kGi = kMi * kKi;
  if (bytes >= kGi) return absl::StrFormat("%.2f GiB", bytes / kGi);
  if (bytes >= kMi) return absl::StrFormat("%.2f MiB", bytes / kMi);
  if (bytes >= kKi) return absl::StrFormat("%.2f KiB", bytes / kKi);
  return absl::StrFormat("%.0f bytes", bytes);
}

std::string PerSecond(uint64_t bytes, int64_t time_us) {
  if (time_us == 0) return "(n/a)/s";
  const double rate = static_cast<double>(bytes) / static_cast<double>(time_us) * 1e6;
  return Amount(rate) + "/s";
}

double Share(uint64_t part, uint64_t whole) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

// Per line: how many are aligned to at least so many bits. Lines with the same count are one.
void AppendAlignments(const SizeGroup& group, std::string* text) {
  uint64_t aligned = group.requests;
  for (int bits = 0; bits < 64 && aligned > 0; ++bits) {
    const uint64_t exactly = group.by_alignment[bits];
    if (exactly > 0)
      absl::StrAppendFormat(text, "         %2d bit aligned: %5.1f%% (%d)\n", bits,
                            Share(aligned, group.requests), aligned);
    aligned -= exactly;
  }
}

// The most frequent sizes, until `threshold` percent of the requests are told.
void AppendHistogram(const Sum& sum, int threshold, std::string* text) {
  std::vector<std::pair<int, const SizeGroup*>> order;
  for (const auto& [bits, group] : sum.groups) order.emplace_back(bits, &group);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(b.second->requests, a.first) < std::pair(a.second->requests, b.first);
  });
  absl::StrAppend(text, "  Request size and alignment breakdown:\n");
  uint64_t told = 0, told_bytes = 0;
  for (const auto& [bits, group] : order) {
    if (Share(told, sum.requests) >= threshold) break;
    absl::StrAppendFormat(text, "    %2d bits: %4.1f%% (%d reqs, %s total)\n", bits,
                          Share(group->requests, sum.requests), group->requests,
                          Amount(static_cast<double>(group->bytes)));
    AppendAlignments(*group, text);
    told += group->requests;
    told_bytes += group->bytes;
  }
  if (told < sum.requests)
    absl::StrAppendFormat(text, "    other sizes: %4.1f%% (%d reqs, %s total)\n",
                          Share(sum.requests - told, sum.requests), sum.requests - told,
                          Amount(static_cast<double>(sum.bytes - told_bytes)));
  absl::StrAppend(text, "\n");
}

class Statistics {
 public:
  void Add(const Request& request, int64_t time_ns) {
    std::lock_guard lock(mutex_);
    Sum& sum = sums_[static_cast<int>(request.operation)];
    ++sum.requests;
    sum.bytes += request.length;
    sum.time_ns += time_ns;
    if (request.length == 0) return;
    SizeGroup& group = sum.groups[std::bit_width(request.length) - 1];
    ++group.requests;
    group.bytes += request.length;
    ++group.by_alignment[std::countr_zero(request.offset)];
  }

  std::string Table(int64_t time_ns, int threshold) const {
    std::lock_guard lock(mutex_);
    const int64_t total_us = time_ns / 1000;
    // As nbdkit counts: prefetches are no operations, and bytes are those that data consists of.
    uint64_t operations = 0, bytes = 0;
    for (Operation operation : kOrder) {
      const Sum& sum = sums_[static_cast<int>(operation)];
      if (operation != Operation::kCache) operations += sum.requests;
      if (operation != Operation::kCache && operation != Operation::kExtents) bytes += sum.bytes;
    }
    std::string text = absl::StrFormat(
        "total: %d ops, %.6f s, %s, %s\n", operations, static_cast<double>(time_ns) / 1e9,
        Amount(static_cast<double>(bytes)), PerSecond(bytes, total_us));
    for (Operation operation : kOrder) {
      const Sum& sum = sums_[static_cast<int>(operation)];
      if (sum.requests == 0) continue;
      absl::StrAppendFormat(
          &text, "%s: %d ops, %.6f s, %s, %s op, %s total\n", OperationName(operation),
          sum.requests, static_cast<double>(sum.time_ns) / 1e9,
          Amount(static_cast<double>(sum.bytes)), PerSecond(sum.bytes, sum.time_ns / 1000),
          PerSecond(sum.bytes, total_us));
      if (threshold > 0 && !sum.groups.empty()) AppendHistogram(sum, threshold, &text);
    }
    return text;
  }

 private:
  static constexpr Operation kOrder[] = {Operation::kRead, Operation::kWrite,   Operation::kTrim,
                                         Operation::kZero, Operation::kExtents, Operation::kCache,
                                         Operation::kFlush};
  mutable std::mutex mutex_;
  std::array<Sum, kOperations> sums_;
};

class StatsDevice final : public RequestFilter {
 public:
  StatsDevice(DevicePtr below, Statistics* statistics)
      : RequestFilter(std::move(below)), statistics_(*statistics) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    const int64_t start_ns = Loop::Current()->NowNs();
    Task<absl::Status> task = Perform(&below(), request);
    if (!task.ready()) return Finish(request, std::move(task), start_ns);
    absl::Status status = std::move(task).Take();
    Count(request, status, start_ns);
    return status;
  }

 private:
  Task<absl::Status> Finish(Request request, Task<absl::Status> task, int64_t start_ns) {
    absl::Status status = co_await std::move(task);
    Count(request, status, start_ns);
    co_return status;
  }
  void Count(const Request& request, const absl::Status& status, int64_t start_ns) {
    if (status.ok()) statistics_.Add(request, Loop::Current()->NowNs() - start_ns);
  }

  Statistics& statistics_;
};

class StatsLayer final : public FilterLayer {
 public:
  StatsLayer(LayerPtr below, Config config)
      : FilterLayer(std::move(below)), config_(std::move(config)) {}

  absl::Status Ready() override {
    int flags = O_WRONLY | O_CREAT | O_CLOEXEC | (config_.append ? O_APPEND : O_TRUNC);
    file_.Reset(open(config_.file.c_str(), flags, 0666));
    if (!file_.valid()) return ErrnoError(errno, absl::StrCat("cannot open ", config_.file));
    return absl::OkStatus();
  }
  Task<absl::Status> Start() override {
    start_ns_ = Loop::Current()->NowNs();
    return FilterLayer::Start();
  }
  Task<absl::Status> Stop() override {
    std::string table = statistics_.Table(Loop::Current()->NowNs() - start_ns_, config_.threshold);
    if (write(file_.get(), table.data(), table.size()) != static_cast<ssize_t>(table.size()))
      LogError(absl::StrCat("stats: cannot write to ", config_.file));
    return FilterLayer::Stop();
  }

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs&) override {
    return std::make_shared<StatsDevice>(std::move(device), &statistics_);
  }

 private:
  const Config config_;
  Descriptor file_;
  int64_t start_ns_ = 0;
  Statistics statistics_;
};

}  // namespace

const Spec& StatsSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("stats", "count operations, bytes and time")
          .Param("statsfile", &Config::file,
                 {.help = "file for the table that is written at the end",
                  .required = true,
                  .path = PathUse::kCreate})
          .Param("statsappend", &Config::append, {.help = "keep what is in the file"})
          .Param("statsthreshold", &Config::threshold,
                 {.help = "how many requests the table of sizes tells of; 0: no such table",
                  .unit = "percent",
                  .min = "0",
                  .max = "100"})
          .Description(
              "Sizes are grouped by powers of two, the most frequent first, with how many requests "
              "of each were aligned to how many bits.")
          .Example("stats(statsfile=/dev/null)+memory:64K")
          .PrintedExample("stats(statsfile=/dev/stderr)+disk.img")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<StatsLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

}  // namespace blk
