// Fuzzes: src/backends/script/parse src/backends/script/wire
// What scripts and programs print: nothing of it may do more than be refused.
#include <cstdint>
#include <string_view>

#include "src/backends/script/parse.h"
#include "src/backends/script/wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace blk;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  auto head = script::ParseReplyLine(text.substr(0, text.find('\n')));
  if (head.ok()) BLK_CHECK(head->payload_bytes <= limits::kProgramOutputBytesMax);
  (void)script::ReadSize(text);
  (void)script::ReadBlockSizes(text);
  (void)script::ReadSupport(text);
  (void)script::ReadThreadModel(text);
  (void)script::ReadExports(text);
  (void)script::ReportedError("name", "method", text);
  ExtentList list(1000, 5000, 3);
  if (script::ReadExtents(text, &list).ok())
    BLK_CHECK(!list.empty() && list.next() <= list.end() && list.size() <= 3);
  return 0;
}
