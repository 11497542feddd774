#include <doctest/doctest.h>

#include "src/core/scope.h"
#include "test/backends/try_device.h"
#include "test/support/array_device.h"
#include "test/support/layers.h"

namespace blk {

const Spec& RetrySpec();
const Spec& RetryRequestSpec();

namespace {

using test::ArrayDevice;
using test::MakeFilter;
using test::OnLoop;

// A device over a shared array that fails its n-th operation and all after it.
class FailingDevice final : public Filter {
 public:
  FailingDevice(DevicePtr below, Facts facts, int good, int error)
      : Filter(std::move(below), std::move(facts)), good_(good), error_(error) {}
  bool closed = false;
  int in_flight = 0;

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    BLK_CO_RETURN_IF_ERROR(co_await Begin());
    co_return co_await below().Read(call, offset, into);
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    BLK_CO_RETURN_IF_ERROR(co_await Begin());
    co_return co_await below().Write(call, offset, from);
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    list->Append(1, kExtentData);  // and fails in the middle
    BLK_CO_RETURN_IF_ERROR(co_await Begin());
    co_return co_await below().Extents(call, context, list);
  }
  Task<absl::Status> DoFlush(const Call& call) override {
    BLK_CO_RETURN_IF_ERROR(co_await Begin());
    co_return co_await below().Flush(call);
  }
  Task<absl::Status> DoClose() override {
    BLK_CHECK(!closed && in_flight == 0);
    closed = true;
    return absl::OkStatus();
  }

 private:
  Task<absl::Status> Begin() {
    BLK_CHECK(!closed);
    ++in_flight;
    co_await Yield();
    --in_flight;
    if (good_-- > 0) co_return absl::OkStatus();
    co_return ErrnoErrorAsIs(error_, "it is broken");
  }
  int good_;
  const int error_;
};

// Opens failing devices over one array, in the given order of how many operations succeed; then
// ones that never fail. -1: cannot be opened.
struct Flaky {
  explicit Flaky(std::vector<int> good_operations, int error = EIO)
      : array(std::make_shared<ArrayDevice>(50'000)), good(std::move(good_operations)) {
    layer = std::make_shared<test::DeviceLayer>(
        [this, error](const OpenArgs& args) -> absl::StatusOr<DevicePtr> {
          size_t index = layer->opened.size() - 1;
          int operations = index < good.size() ? good[index] : 1 << 30;
          if (operations < 0) return ErrnoErrorAsIs(ECONNREFUSED, "nobody there");
          Facts facts = array->facts();
          facts.read_only = args.read_only;
          facts.size = size;
          devices.push_back(std::make_shared<FailingDevice>(array, facts, operations, error));
          return devices.back();
        });
  }
  std::shared_ptr<ArrayDevice> array;
  std::vector<int> good;
  uint64_t size = 50'000;
  std::shared_ptr<test::DeviceLayer> layer;
  std::vector<std::shared_ptr<FailingDevice>> devices;
};

template <typename... Args>
Task<absl::Status> OpenUseClose(Layer* layer, OpenArgs args,
                                Task<absl::Status> (*use)(Device*, Args...), Args... more) {
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await layer->Open(std::move(args)));
  absl::Status status = co_await use(device.get(), std::move(more)...);
  BLK_CO_RETURN_IF_ERROR(co_await device->Close());
  co_return status;
}
absl::Status Try(const Spec& spec, test::Words words, Flaky* flaky,
                 Task<absl::Status> (*use)(Device*), OpenArgs args = {}) {
  auto layer = MakeFilter(spec, words, flaky->layer);
  if (!layer.ok()) return layer.status();
  return OnLoop(OpenUseClose<>, layer->get(), std::move(args), use);
}

Task<absl::Status> WriteThenRead(Device* device) {
  std::string data(3000, 'w'), got(3000, 'x');
  BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, 100, data));
  BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, 100, got));
  if (got != data) co_return absl::DataLossError("other bytes");
  co_return absl::OkStatus();
}

const test::Words kQuick = {{"retry-delay", "1us"}};
test::Words Quick(test::Words more) {
  more.insert(more.end(), kQuick.begin(), kQuick.end());
  return more;
}

TEST_CASE("retry opens again, with the same arguments, and closes what it opened") {
  Flaky flaky({1, 0, -1, 0});
  OpenArgs args;
  args.export_name = "disk";
  CHECK(Try(RetrySpec(), kQuick, &flaky, WriteThenRead, args).message() == "");
  CHECK(flaky.layer->opened.size() == 5);
  for (const OpenArgs& opened : flaky.layer->opened) {
    CHECK(opened.export_name == "disk");
    CHECK_FALSE(opened.read_only);
  }
  for (const auto& device : flaky.devices) CHECK(device->closed);
}

// ---- What was not flushed when the disk was opened again

Task<absl::Status> WriteReadFlush(Device* device) {
  std::string data(3000, 'w');
  BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, 100, data));
  BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, 100, data));
  co_return co_await device->Flush({});
}
Task<absl::Status> WriteFlushReadFlush(Device* device) {
  std::string data(3000, 'w');
  BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, 100, data));
  BLK_CO_RETURN_IF_ERROR(co_await device->Write(Call().With(kFua), 200, data));
  BLK_CO_RETURN_IF_ERROR(co_await device->Flush({}));
  BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, 100, data));
  co_return co_await device->Flush({});
}
// OK if the flush fails that could not vouch for what was written, and nothing after it.
Task<absl::Status> FlushFailsOnce(Device* device) {
  std::string data(10, 'w');
  const absl::Status lost = co_await WriteReadFlush(device);
  if (ErrnoOf(lost) != EIO || lost.message().find("may be lost") == lost.message().npos)
    co_return absl::InternalError(absl::StrCat("flush: ", lost.message()));
  for (int i = 0; i < 3; ++i) {
    BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, 100, data));
    BLK_CO_RETURN_IF_ERROR(co_await device->Flush({}));
  }
  co_return absl::OkStatus();
}

TEST_CASE("retry: a flush never says of what may be lost that it is safe") {
  Flaky read_failed({1});  // the read fails, and so does the flush before closing
  CHECK(Try(RetrySpec(), kQuick, &read_failed, FlushFailsOnce).message() == "");
  CHECK(read_failed.layer->opened.size() == 2);
  Flaky flush_failed({2});
  CHECK(Try(RetrySpec(), kQuick, &flush_failed, FlushFailsOnce).message() == "");
  CHECK(flush_failed.layer->opened.size() == 2);
  Flaky all_flushed({3});
  CHECK(Try(RetrySpec(), kQuick, &all_flushed, WriteFlushReadFlush).message() == "");
  CHECK(all_flushed.layer->opened.size() == 2);
  CHECK(all_flushed.array->flushes == 2);
}

Task<absl::Status> OneLosesOtherFlushes(Layer* layer) {
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr writer, co_await layer->Open({}));
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr other, co_await layer->Open({}));
  std::string data(10, 'w');
  BLK_CO_RETURN_IF_ERROR(co_await writer->Write({}, 100, data));
  BLK_CO_RETURN_IF_ERROR(co_await writer->Read({}, 100, data));
  absl::Status flush = co_await other->Flush({});
  BLK_CO_RETURN_IF_ERROR(co_await writer->Close());
  BLK_CO_RETURN_IF_ERROR(co_await other->Close());
  writer = other = nullptr;
  // Who comes later has lost nothing.
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr later, co_await layer->Open({}));
  BLK_CO_RETURN_IF_ERROR(co_await later->Flush({}));
  BLK_CO_RETURN_IF_ERROR(co_await later->Close());
  co_return flush;
}

TEST_CASE("retry: what one client lost, no flush of another covers") {
  Flaky flaky({1});
  auto layer = MakeFilter(RetrySpec(), kQuick, flaky.layer);
  CHECK(ErrnoOf(OnLoop(OneLosesOtherFlushes, layer->get())) == EIO);
}

TEST_CASE("retry gives up after so many times, with the last error") {
  for (int retries : {0, 1, 4}) {
    Flaky flaky({0, 0, 0, 0, 0, 0, 0, 0}, ENOSPC);
    auto status =
        Try(RetrySpec(), Quick({{"retries", absl::StrCat(retries)}}), &flaky, WriteThenRead);
    CHECK(ErrnoOf(status) == ENOSPC);
    CHECK(flaky.layer->opened.size() == static_cast<size_t>(retries) + 1);
  }
  Flaky gone({0, -1, -1, -1, -1, -1, -1});
  CHECK(ErrnoOf(Try(RetrySpec(), kQuick, &gone, WriteThenRead)) == ECONNREFUSED);
  CHECK(gone.layer->opened.size() == 6);
}

TEST_CASE("retry only after the errors that it was given") {
  Flaky flaky({0, 0}, ENOSPC);
  CHECK(ErrnoOf(Try(RetrySpec(), Quick({{"retry-errno", "EIO,ESHUTDOWN"}}), &flaky,
                    WriteThenRead)) == ENOSPC);
  CHECK(flaky.layer->opened.size() == 1);
  Flaky named({0, 0}, ENOSPC);
  CHECK(Try(RetrySpec(), Quick({{"retry-errno", "EIO:ENOSPC"}}), &named, WriteThenRead).ok());
  CHECK_FALSE(Try(RetrySpec(), Quick({{"retry-errno", "EFOO"}}), &named, WriteThenRead).ok());
  CHECK_FALSE(Try(RetrySpec(), {{"retry-delay", "0"}}, &named, WriteThenRead).ok());
}

TEST_CASE("retry-readonly: afterwards writes are refused at once") {
  Flaky flaky({0});
  CHECK(ErrnoOf(Try(RetrySpec(), Quick({{"retry-readonly", "yes"}}), &flaky, WriteThenRead)) ==
        EPERM);
  REQUIRE(flaky.layer->opened.size() == 2);
  CHECK(flaky.layer->opened[1].read_only);
}

Task<absl::Status> ReadEnd(Device* device) {
  char byte;
  co_return co_await device->Read({}, device->size() - 1, std::span(&byte, 1));
}

TEST_CASE("a disk that came back smaller is not served") {
  Flaky flaky({1, 0, 0, 0, 0, 0, 0});
  auto layer = MakeFilter(RetrySpec(), kQuick, flaky.layer);
  auto shrink = [](Device* device, Flaky* flaky) -> Task<absl::Status> {
    BLK_CO_RETURN_IF_ERROR(co_await ReadEnd(device));
    flaky->size = 40'000;
    absl::Status status = co_await ReadEnd(device);
    flaky->size = 60'000;  // larger is fine, but stays unknown
    flaky->good.clear();
    if (device->size() != 50'000) co_return absl::InternalError("size");
    absl::Status again = co_await ReadEnd(device);
    if (!again.ok()) co_return again;
    co_return status;
  };
  Task<absl::Status> (*use)(Device*, Flaky*) = shrink;
  auto status = OnLoop(OpenUseClose<Flaky*>, layer->get(), OpenArgs(), use, &flaky);
  CHECK(status.message().find("40000") != std::string::npos);
}

Task<void> WriteOne(Device* device, uint64_t offset, absl::Status* status) {
  char byte = static_cast<char>(offset);
  status->Update(co_await device->Write({}, offset, std::span(&byte, 1)));
}
Task<absl::Status> WriteTogether(Device* device) {
  TaskScope scope;
  absl::Status status;
  for (uint64_t at = 0; at < 100; ++at) scope.Spawn(WriteOne(device, at, &status));
  co_await scope.Join();
  BLK_CO_RETURN_IF_ERROR(status);
  std::string got(100, 'x');
  BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, 0, got));
  for (int i = 0; i < 100; ++i)
    if (got[i] != static_cast<char>(i)) co_return absl::DataLossError("lost");
  co_return absl::OkStatus();
}

TEST_CASE("requests that fail together open the disk again once, when all have ended") {
  Flaky flaky({7, 20, 3});
  CHECK(Try(RetrySpec(), Quick({{"retry-exponential", "no"}}), &flaky, WriteTogether).message() ==
        "");
  CHECK(flaky.layer->opened.size() == 4);
}

Task<absl::Status> AskExtents(Device* device) {
  ExtentList list(0, 50'000);
  BLK_CO_RETURN_IF_ERROR(co_await device->Extents({}, kBaseAllocation, &list));
  if (list.extents() != std::vector<Extent>{{1, kExtentData}, {49'999, kExtentHoleZero}})
    co_return absl::DataLossError("extents");
  co_return absl::OkStatus();
}

TEST_CASE("extents of a failed attempt are forgotten") {
  Flaky flaky({0, 0});
  CHECK(Try(RetrySpec(), kQuick, &flaky, AskExtents).message() == "");
}

Task<absl::Status> Wait3Times(Device* device) {
  int64_t start_ns = Loop::Current()->NowNs();
  char byte;
  (void)co_await device->Read({}, 0, std::span(&byte, 1));
  co_return absl::InternalError(absl::StrCat((Loop::Current()->NowNs() - start_ns) / 1'000'000));
}
int64_t WaitedMs(const test::Words& words) {
  Flaky flaky({0, 0, 0, 0, 0});
  std::string text(Try(RetrySpec(), words, &flaky, Wait3Times).message());
  return std::stoll(text);
}

TEST_CASE("the delay doubles, or does not") {
  int64_t doubling = WaitedMs({{"retries", "3"}, {"retry-delay", "20ms"}});
  CHECK(doubling >= 140);
  int64_t same = WaitedMs({{"retries", "3"}, {"retry-delay", "20ms"}, {"retry-exponential", "no"}});
  CHECK(same >= 60);
  CHECK(same < 140);
}

Task<absl::Status> WriteThenFlush(Device* device) {
  std::string data(3000, 'w');
  BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, 100, data));
  co_return co_await device->Flush({});
}

TEST_CASE("a flush that was answered with an error is not asked again, nor one lost with writes") {
  Flaky answered({1}, EIO);
  CHECK(ErrnoOf(Try(RetrySpec(), kQuick, &answered, WriteThenFlush)) == EIO);
  CHECK(answered.layer->opened.size() == 1);
  Flaky lost({1, 0, -1}, ECONNRESET);
  CHECK(ErrnoOf(Try(RetrySpec(), kQuick, &lost, WriteThenFlush)) == EIO);
  Flaky request({1}, EIO);
  CHECK(ErrnoOf(Try(RetryRequestSpec(), {{"retry-request-delay", "1us"}}, &request,
                    WriteThenFlush)) == EIO);
}

TEST_CASE("retry-request repeats on the same device, and opening too") {
  const test::Words quick = {{"retry-request-delay", "1us"}};
  Flaky broken({0});
  CHECK(ErrnoOf(Try(RetryRequestSpec(), quick, &broken, WriteThenRead)) == EIO);
  CHECK(broken.layer->opened.size() == 1);
  Flaky late({-1, -1});
  CHECK(Try(RetryRequestSpec(), quick, &late, WriteThenRead).ok());
  Flaky too_late({-1, -1, -1});
  CHECK(ErrnoOf(Try(RetryRequestSpec(), quick, &too_late, WriteThenRead)) == ECONNREFUSED);
  Flaky once({-1});
  CHECK(ErrnoOf(Try(RetryRequestSpec(),
                    {{"retry-request-delay", "1us"}, {"retry-request-open", "false"}}, &once,
                    WriteThenRead)) == ECONNREFUSED);
}

}  // namespace
}  // namespace blk
