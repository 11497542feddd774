#pragma once
// Trying devices in tests: a layer from its Spec and parameters, one coroutine on one device, and
// random operations against an array of bytes. One loop.
#include <algorithm>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "src/core/layer.h"
#include "src/core/loop.h"
#include "src/core/spec.h"

namespace blk {

using Words = std::vector<std::pair<std::string, std::string>>;

inline absl::StatusOr<LayerPtr> MakeReady(const Spec& spec, const Words& words) {
  std::shared_ptr<void> config = spec.NewConfig();
  ParamReader reader(spec.params(), config.get(), spec.name());
  for (const auto& [key, value] : words) BLK_RETURN_IF_ERROR(reader.Give(key, value));
  BLK_RETURN_IF_ERROR(reader.Finish());
  BLK_ASSIGN_OR_RETURN(LayerPtr layer, spec.MakeLayer(config.get(), {}));
  BLK_RETURN_IF_ERROR(layer->Ready());
  return layer;
}

// Opens the default export and gives it to `use`, a coroutine, on one loop.
template <typename Result, typename... Args>
Task<Result> OpenAndUse(LayerPtr layer, OpenArgs open, Task<Result> (*use)(Device*, Args...),
                        std::type_identity_t<Args>... args) {
  auto device = co_await layer->Open(std::move(open));
  BLK_CHECK(device.ok());
  Result result = co_await use(device->get(), std::move(args)...);
  BLK_CHECK((co_await (*device)->Close()).ok());
  co_return result;
}
template <typename Result, typename... Args>
Result Use(const LayerPtr& layer, Task<Result> (*use)(Device*, Args...),
           std::type_identity_t<Args>... args) {
  LoopPool pool(1);
  return pool.RunMain(OpenAndUse<Result, Args...>(layer, {}, use, std::move(args)...));
}

// The device holds what `oracle` holds, and no extent claims zeroes where there are none.
inline Task<absl::Status> CompareAll(Device* device, const std::string& oracle) {
  std::string got(oracle.size(), 'x');
  BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, 0, got));
  for (size_t i = 0; i < got.size(); ++i)
    if (got[i] != oracle[i]) co_return absl::DataLossError(absl::StrCat("byte ", i, " differs"));
  ExtentList list(0, oracle.size());
  while (!list.full()) BLK_CO_RETURN_IF_ERROR(co_await device->Extents({}, kBaseAllocation, &list));
  uint64_t at = 0;
  for (const Extent& extent : list.extents()) {
    if (extent.flags & kExtentZero)
      for (uint64_t i = at; i < at + extent.length; ++i)
        if (oracle[i] != 0) co_return absl::DataLossError(absl::StrCat("no hole at ", i));
    at += extent.length;
  }
  co_return absl::OkStatus();
}

inline Task<absl::Status> OneRandomOperation(Device* device, std::string* oracle, uint64_t random) {
  uint64_t offset = (random >> 8) % oracle->size();
  uint64_t length = std::min((random >> 40) % 30000, oracle->size() - offset);
  uint32_t flags = random & 0x80 ? kFua : 0;
  if (random % 8 == 0) {
    BLK_CO_RETURN_IF_ERROR(co_await device->Zero({.flags = flags}, offset, length));
    std::fill_n(oracle->begin() + offset, length, 0);
  } else if (random % 8 == 1) {
    flags |= kNoHole;
    BLK_CO_RETURN_IF_ERROR(co_await device->Zero({.flags = flags}, offset, length));
    std::fill_n(oracle->begin() + offset, length, 0);
  } else if (random % 8 == 2) {
    // Here a trim makes zeroes or does nothing; after it the oracle takes what is there.
    BLK_CO_RETURN_IF_ERROR(co_await device->Trim({.flags = flags}, offset, length));
    std::span<char> part(oracle->data() + offset, length);
    BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, offset, part));
  } else if (random % 8 == 3) {
    BLK_CO_RETURN_IF_ERROR(co_await device->Cache({}, offset, length));
    BLK_CO_RETURN_IF_ERROR(co_await device->Flush({}));
  } else {
    std::string data(length, static_cast<char>(random >> 3 | 1));
    BLK_CO_RETURN_IF_ERROR(co_await device->Write({.flags = flags}, offset, data));
    oracle->replace(offset, length, data);
  }
  co_return absl::OkStatus();
}

inline Task<absl::Status> RandomOperations(Device* device, uint64_t seed) {
  std::string oracle(device->size(), 0);
  BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, 0, oracle));
  uint64_t random = seed;
  for (int i = 0; i < 400; ++i) {
    random = random * 6364136223846793005 + 1442695040888963407;
    BLK_CO_RETURN_IF_ERROR(co_await OneRandomOperation(device, &oracle, random ^ (random >> 29)));
    if (i % 20 == 0) BLK_CO_RETURN_IF_ERROR(co_await CompareAll(device, oracle));
  }
  co_return co_await CompareAll(device, oracle);
}

}  // namespace blk
