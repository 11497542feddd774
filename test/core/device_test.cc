#include <doctest/doctest.h>

#include "test/support/array_device.h"

namespace blk {
namespace {

Task<int> FlushErrno(const Call* call, test::ArrayDevice* device) {
  co_return ErrnoOf(co_await device->Flush(*call));
}
int FlushWith(const Call& call, test::ArrayDevice& device) {
  LoopPool pool(1);
  return pool.RunMain(FlushErrno(&call, &device));
}

TEST_CASE("a flush is refused when it is late or was cancelled, and does nothing then") {
  test::ArrayDevice device(100);
  std::stop_source source;
  std::stop_token token = source.get_token();
  CHECK(FlushWith({.stop = &token}, device) == 0);
  CHECK(FlushWith({.deadline_ns = 0}, device) == ETIMEDOUT);
  source.request_stop();
  CHECK(FlushWith({.stop = &token}, device) == ECANCELED);
  CHECK(device.flushes == 1);
}

}  // namespace
}  // namespace blk
