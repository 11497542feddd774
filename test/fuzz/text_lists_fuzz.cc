// Files that filters read when they are made: lists of extents and ddrescue's maps. What is taken
// answers for the whole disk. The first byte of the input chooses the filter.
//
// Fuzzes: src/backends/filters/map src/backends/filters/ddrescue
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "src/backends/registry.h"
#include "test/support/array_device.h"
#include "test/support/layers.h"
#include "test/support/queue_loop.h"

namespace {

using namespace blk;

Task<void> Use(Layer* layer, int* done) {
  auto device = co_await layer->Open({});
  BLK_CHECK(device.ok());
  ExtentList list(0, (*device)->size());
  while (!list.full()) {
    const uint64_t before = list.next();
    BLK_CHECK((co_await (*device)->Extents({}, kBaseAllocation, &list)).ok());
    BLK_CHECK(list.next() > before);
  }
  std::string bytes(100, 'x');
  (void)co_await (*device)->Read({}, 500, bytes);
  (void)co_await (*device)->Close();
  ++*done;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const bool rescue = data[0] & 1;
  int fd = memfd_create("list", MFD_CLOEXEC);
  BLK_CHECK(fd >= 0);
  BLK_CHECK(write(fd, data + 1, size - 1) == static_cast<ssize_t>(size - 1));
  test::QueueLoop loop;
  const Spec* spec = AllSpecs().FindFilter(rescue ? "ddrescue" : "extentlist");
  auto layer = test::MakeFilter(
      *spec, {{rescue ? "ddrescue-mapfile" : "extentlist", absl::StrCat("/proc/self/fd/", fd)}},
      std::make_shared<test::ArrayDevice>(10'000));
  if (layer.ok()) {
    int done = 0;
    loop.Spawn(Use(layer->get(), &done));
    while (loop.Run()) continue;
    BLK_CHECK(done == 1);
  }
  close(fd);
  return 0;
}
