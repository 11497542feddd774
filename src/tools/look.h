#pragma once
// What an NBD server says of itself and its exports, and the texts that tell it: the engine of
// `blk info` and of the name nbdinfo. Texts and JSON have nbdinfo's form, byte for byte.
//
// Looking: on the current loop. The texts: any thread.
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "src/backends/nbd_connect.h"
#include "src/core/device.h"
#include "src/proto/nbd.h"

namespace blk {

// One export, or one disk of this process.
struct ExportReport {
  std::string name = {};  // the server's own, where it told one
  std::string description = {};
  std::optional<std::string> content = std::nullopt;
  std::string uri = {};                                             // empty: not to be shown
  std::optional<std::vector<std::string>> contexts = std::nullopt;  // unset: the server tells none
  uint64_t size = 0;
  uint16_t flags = 0;  // of NBD's transmission phase
  std::optional<nbd::BlockSizes> block_sizes = std::nullopt;
};

struct Findings {
  bool nbd = false;  // the next three were found out
  std::string protocol = {};
  bool tls = false;
  nbd::ReplyStyle style = nbd::ReplyStyle::kSimple;
  std::vector<ExportReport> exports = {};
  std::vector<std::pair<std::string, absl::Status>> failures = {};  // exports, and why not
};

struct LookOptions {
  bool list = false;     // all exports, instead of the one that the URI names
  bool content = false;  // read the first bytes and ask file(1)
  bool enter = false;    // what counts is what the server says when the export is entered
  bool show_uri = true;
};

// One connection, as far as the server lets one connection tell everything; an export is entered
// where its content is wanted, or where the server has no other way of telling its size. Fails when
// nothing at all could be found out; an export that could not be looked at is in `failures`.
Task<absl::StatusOr<Findings>> LookAtServer(NbdConnectOptions options, LookOptions look);

// The same of an open device that is no NBD server's.
Task<Findings> LookAtDevice(Device* device, bool content);

// In words. `colour`: with the escape sequences of terminals.
std::string ServerText(const Findings& findings, bool colour = false);    // the connection's line
std::string FindingsText(const Findings& findings, bool colour = false);  // all
std::string FindingsJson(const Findings& findings);

// Whether the first export, or the connection, can do or is `what` (nbdinfo --can, --is).
// InvalidArgument: nobody knows that word.
absl::StatusOr<bool> CanOrIs(const Findings& findings, std::string_view what);

}  // namespace blk
