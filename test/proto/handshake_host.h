#pragma once
// A program behind a server handshake, for tests: a table of exports, and a note of what the
// handshake did with it.
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "src/proto/handshake_server.h"

namespace blk::nbd {

class TestHost final : public ServerHandshakeHost {
 public:
  TestHost() {
    ExportInfo disk;
    disk.size_bytes = 0x100000;
    disk.flags = kFlagSendFlush | kFlagSendDf | kFlagBlockStatusPayload | kFlagSendFastZero;
    disk.canonical_name = "disk";
    disk.description = "a test disk";
    disk.contexts = {"base:allocation", "qemu:dirty-bitmap:b", "qemu:allocation-depth"};
    exports["disk"] = disk;
    exports[""] = disk;
    ExportInfo other;
    other.size_bytes = 512;
    other.canonical_name = "other";
    other.contexts = {"base:allocation"};
    exports["other"] = other;
  }

  Task<absl::StatusOr<ExportCatalog>> ListExports() override {
    if (!list_error.ok()) return absl::StatusOr<ExportCatalog>(list_error);
    ExportCatalog catalog;
    for (const auto& [name, info] : exports) {
      if (!name.empty()) catalog.exports.push_back({name, info.description});
    }
    return absl::StatusOr<ExportCatalog>(std::move(catalog));
  }
  Task<absl::StatusOr<ExportInfo>> OpenExport(std::string name) override {
    held.reset();
    ++opens;
    if (!open_error.ok()) return absl::StatusOr<ExportInfo>(open_error);
    const auto found = exports.find(name);
    if (found == exports.end()) {
      return absl::StatusOr<ExportInfo>(absl::NotFoundError("no export " + name));
    }
    held = name;
    return absl::StatusOr<ExportInfo>(found->second);
  }
  Task<void> CloseExport() override {
    held.reset();
    return {};
  }
  Task<absl::StatusOr<Stream*>> StartTls(Stream*) override {
    if (secure == nullptr) return absl::StatusOr<Stream*>(absl::InternalError("bad certificate"));
    return absl::StatusOr<Stream*>(secure);
  }
  bool ShuttingDown() override { return shutting_down; }
  Task<absl::StatusOr<bool>> PrivateOption(uint32_t option, std::string data,
                                           OptionReplier& replier) override {
    if (option != private_option) return absl::StatusOr<bool>(false);
    replier.Reply(kRepInfo, data);
    replier.Reply(kRepAck, {});
    return absl::StatusOr<bool>(true);
  }

  std::map<std::string, ExportInfo> exports;
  std::optional<std::string> held;
  int opens = 0;
  absl::Status list_error, open_error;
  Stream* secure = nullptr;
  bool shutting_down = false;
  uint32_t private_option = 0xffffffff;
};

}  // namespace blk::nbd
