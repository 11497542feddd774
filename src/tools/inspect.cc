#include "src/tools/inspect.h"

namespace blk {
namespace {

Task<absl::Status> OpenAndRun(Endpoint* disk, Endpoint::Wish wish, const InspectJob* job) {
  auto device = co_await disk->Open(std::move(wish));
  absl::Status status = device.status();
  if (device.ok()) status = co_await (*job)(device->get());
  absl::Status closed = co_await disk->Close();
  co_return status.ok() ? closed : status;
}

}  // namespace

int InspectDisk(std::string_view tool, std::span<const std::string> words, Endpoint::Wish wish,
                InspectJob job) {
  auto fail = [&](const absl::Status& status) { return ExitStatusOf(tool, status); };
  auto disks = SplitEndpoints(words);
  if (!disks.ok()) return fail(disks.status());
  if (disks->size() != 1)
    return fail(absl::InvalidArgumentError(
        absl::StrCat("name one disk; ", disks->size(), " given. Try `blk ", tool, " -h`")));
  auto disk = Endpoint::Parse((*disks)[0]);
  if (!disk.ok()) return fail(disk.status());
  LoopPool loops(LoopCount(0));
  return fail(loops.RunMain(OpenAndRun(&*disk, std::move(wish), &job)));
}

}  // namespace blk
