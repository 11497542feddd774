#include "src/proto/codec.h"

#include <algorithm>
#include <array>
#include <bit>

#include "absl/strings/str_cat.h"
#include "src/core/limits.h"

namespace blk::nbd {
namespace {

void AppendU16(std::string& out, uint16_t value) {
  std::array<char, 2> bytes;
  StoreU16(bytes.data(), value);
  out.append(bytes.data(), bytes.size());
}

void AppendU32(std::string& out, uint32_t value) {
  std::array<char, 4> bytes;
  StoreU32(bytes.data(), value);
  out.append(bytes.data(), bytes.size());
}

void AppendU64(std::string& out, uint64_t value) {
  std::array<char, 8> bytes;
  StoreU64(bytes.data(), value);
  out.append(bytes.data(), bytes.size());
}

// Takes fields from the front of option data; every Take fails (and stays failed) when the data is
// too short, so a caller may check once after several fields of fixed size.
class Cursor {
 public:
  explicit Cursor(std::string_view data) : rest_(data) {}

  bool TakeU16(uint16_t& value) {
    if (!Has(2)) return false;
    value = LoadU16(rest_.data());
    rest_.remove_prefix(2);
    return true;
  }
  bool TakeU32(uint32_t& value) {
    if (!Has(4)) return false;
    value = LoadU32(rest_.data());
    rest_.remove_prefix(4);
    return true;
  }
  bool TakeU64(uint64_t& value) {
    if (!Has(8)) return false;
    value = LoadU64(rest_.data());
    rest_.remove_prefix(8);
    return true;
  }
  bool TakeText(size_t length, std::string_view& text) {
    if (!Has(length)) return false;
    text = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return true;
  }
  std::string_view rest() const { return rest_; }

 private:
  bool Has(size_t length) {
    failed_ = failed_ || rest_.size() < length;
    return !failed_;
  }

  std::string_view rest_;
  bool failed_ = false;
};

// A 32-bit length and that many bytes, which must be a legal string.
absl::Status TakeString(Cursor& cursor, std::string_view what, std::string& out) {
  uint32_t length = 0;
  std::string_view text;
  if (!cursor.TakeU32(length))
    return absl::InvalidArgumentError(absl::StrCat("the length of the ", what, " is missing"));
  if (!cursor.TakeText(length, text)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the ", what, " claims ", length, " bytes, more than the option has"));
  }
  if (absl::Status status = CheckString(what, text); !status.ok()) return status;
  out = text;
  return absl::OkStatus();
}

absl::Status WrongInfoLength(uint16_t type, size_t length) {
  return absl::InvalidArgumentError(
      absl::StrCat("NBD_REP_INFO of type ", type, " has ", length, " bytes"));
}

absl::Status ParseBlockSizes(Cursor& cursor, size_t length, InfoReply& reply) {
  BlockSizes sizes;
  cursor.TakeU32(sizes.minimum);
  cursor.TakeU32(sizes.preferred);
  if (length != 14 || !cursor.TakeU32(sizes.maximum))
    return WrongInfoLength(kInfoBlockSize, length);
  if (sizes.Valid()) reply.block_sizes = sizes;
  return absl::OkStatus();
}

}  // namespace

std::string OldstyleGreeting(uint64_t export_bytes, uint16_t flags) {
  std::string out;
  out.reserve(kOldstyleBytes);
  AppendU64(out, kInitMagic);
  AppendU64(out, kOldstyleMagic);
  AppendU64(out, export_bytes);
  AppendU32(out, flags);
  out.append(kReservedZeroesBytes, '\0');
  return out;
}

std::string NewstyleGreeting(uint16_t handshake_flags) {
  std::string out;
  AppendU64(out, kInitMagic);
  AppendU64(out, kOptionMagic);
  AppendU16(out, handshake_flags);
  return out;
}

std::string ExportNameReply(uint64_t export_bytes, uint16_t flags, bool zeroes) {
  std::string out;
  AppendU64(out, export_bytes);
  AppendU16(out, flags);
  if (zeroes) out.append(kReservedZeroesBytes, '\0');
  return out;
}

absl::StatusOr<OptionHeader> ParseOptionHeader(std::span<const char> bytes) {
  if (bytes.size() < kOptionHeaderBytes)
    return absl::InvalidArgumentError("an option header is 16 bytes");
  if (LoadU64(bytes.data()) != kOptionMagic) {
    return absl::InvalidArgumentError(
        "an option does not begin with IHAVEOPT: the client does not speak NBD");
  }
  return OptionHeader{.option = LoadU32(bytes.data() + 8), .length = LoadU32(bytes.data() + 12)};
}

std::string OptionRequest(uint32_t option, std::string_view data) {
  std::string out;
  out.reserve(kOptionHeaderBytes + data.size());
  AppendU64(out, kOptionMagic);
  AppendU32(out, option);
  AppendU32(out, static_cast<uint32_t>(data.size()));
  out.append(data);
  return out;
}

bool InfoRequest::Wants(Info info) const {
  return std::find(infos.begin(), infos.end(), info) != infos.end();
}

absl::StatusOr<InfoRequest> ParseInfoRequest(std::string_view data) {
  Cursor cursor(data);
  InfoRequest request;
  if (absl::Status status = TakeString(cursor, "export name", request.export_name); !status.ok())
    return status;
  uint16_t count = 0;
  if (!cursor.TakeU16(count))
    return absl::InvalidArgumentError("the number of information requests is missing");
  if (cursor.rest().size() != size_t{count} * 2) {
    return absl::InvalidArgumentError(absl::StrCat(count, " information requests do not fit the ",
                                                   cursor.rest().size(),
                                                   " bytes left in the option"));
  }
  request.infos.resize(count);
  for (uint16_t& info : request.infos) cursor.TakeU16(info);
  // "The client MUST NOT include any information request in the list more than once" is not
  // enforced: repeating one is harmless, and real clients have done it.
  return request;
}

std::string EncodeInfoRequest(std::string_view export_name, std::span<const uint16_t> infos) {
  std::string out;
  AppendU32(out, static_cast<uint32_t>(export_name.size()));
  out.append(export_name);
  AppendU16(out, static_cast<uint16_t>(infos.size()));
  for (const uint16_t info : infos) AppendU16(out, info);
  return out;
}

absl::StatusOr<MetaContextRequest> ParseMetaContextRequest(std::string_view data) {
  Cursor cursor(data);
  MetaContextRequest request;
  if (absl::Status status = TakeString(cursor, "export name", request.export_name); !status.ok())
    return status;
  uint32_t count = 0;
  if (!cursor.TakeU32(count)) return absl::InvalidArgumentError("the number of queries is missing");
  // Each query is at least its length field, so a count that cannot fit is syntax; only then is it
  // a matter of limits.
  if (cursor.rest().size() / 4 < count) {
    return absl::InvalidArgumentError(absl::StrCat(
        count, " queries do not fit the ", cursor.rest().size(), " bytes left in the option"));
  }
  if (count > limits::kMetaQueriesMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat(count, " queries; at most ", limits::kMetaQueriesMax, " are answered"));
  }
  request.queries.resize(count);
  for (std::string& query : request.queries) {
    if (absl::Status status = TakeString(cursor, "query", query); !status.ok()) return status;
  }
  if (!cursor.rest().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(cursor.rest().size(), " bytes follow the last query"));
  }
  return request;
}

std::string EncodeMetaContextRequest(std::string_view export_name,
                                     std::span<const std::string> queries) {
  std::string out;
  AppendU32(out, static_cast<uint32_t>(export_name.size()));
  out.append(export_name);
  AppendU32(out, static_cast<uint32_t>(queries.size()));
  for (const std::string& query : queries) {
    AppendU32(out, static_cast<uint32_t>(query.size()));
    out.append(query);
  }
  return out;
}

absl::Status CheckString(std::string_view what, std::string_view text) {
  if (text.size() > kStringBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("the ", what, " has ", text.size(), " bytes; NBD allows ", kStringBytesMax));
  }
  if (text.find('\0') != std::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("the ", what, " contains a NUL byte"));
  }
  return absl::OkStatus();
}

absl::StatusOr<OptionReplyHeader> ParseOptionReplyHeader(std::span<const char> bytes) {
  if (bytes.size() < kOptionReplyHeaderBytes)
    return absl::InvalidArgumentError("an option reply header is 20 bytes");
  if (LoadU64(bytes.data()) != kOptionReplyMagic) {
    return absl::InvalidArgumentError(
        "an option reply has the wrong magic number: the server does not speak NBD");
  }
  return OptionReplyHeader{.option = LoadU32(bytes.data() + 8),
                           .type = LoadU32(bytes.data() + 12),
                           .length = LoadU32(bytes.data() + 16)};
}

std::string OptionReplyMessage(uint32_t option, uint32_t type, std::string_view data) {
  std::string out;
  out.reserve(kOptionReplyHeaderBytes + data.size());
  AppendU64(out, kOptionReplyMagic);
  AppendU32(out, option);
  AppendU32(out, type);
  AppendU32(out, static_cast<uint32_t>(data.size()));
  out.append(data);
  return out;
}

std::string EncodeServerReply(const ListedExport& entry) {
  std::string out;
  AppendU32(out, static_cast<uint32_t>(entry.name.size()));
  out.append(entry.name);
  out.append(entry.description);
  return out;
}

absl::StatusOr<ListedExport> ParseServerReply(std::string_view data) {
  Cursor cursor(data);
  ListedExport entry;
  if (absl::Status status = TakeString(cursor, "export name", entry.name); !status.ok())
    return status;
  entry.description = cursor.rest();
  if (absl::Status status = CheckString("description", entry.description); !status.ok())
    return status;
  return entry;
}

std::string EncodeMetaContextReply(const MetaContext& context) {
  std::string out;
  AppendU32(out, context.id);
  out.append(context.name);
  return out;
}

absl::StatusOr<MetaContext> ParseMetaContextReply(std::string_view data) {
  Cursor cursor(data);
  MetaContext context;
  if (!cursor.TakeU32(context.id))
    return absl::InvalidArgumentError("NBD_REP_META_CONTEXT without an id");
  context.name = cursor.rest();
  if (absl::Status status = CheckString("context name", context.name); !status.ok()) return status;
  return context;
}

std::string EncodeInfoExport(uint64_t export_bytes, uint16_t flags) {
  std::string out;
  AppendU16(out, kInfoExport);
  AppendU64(out, export_bytes);
  AppendU16(out, flags);
  return out;
}

std::string EncodeInfoText(Info info, std::string_view text) {
  std::string out;
  AppendU16(out, info);
  out.append(text);
  return out;
}

bool BlockSizes::Valid() const {
  return std::has_single_bit(minimum) && minimum <= kBlockSizeMinimumMax &&
         std::has_single_bit(preferred) && preferred >= std::max<uint32_t>(minimum, 512) &&
         maximum >= preferred;
}

std::string EncodeInfoBlockSize(const BlockSizes& sizes) {
  std::string out;
  AppendU16(out, kInfoBlockSize);
  AppendU32(out, sizes.minimum);
  AppendU32(out, sizes.preferred);
  AppendU32(out, sizes.maximum);
  return out;
}

absl::StatusOr<InfoReply> ParseInfoReply(std::string_view data) {
  Cursor cursor(data);
  InfoReply reply;
  if (!cursor.TakeU16(reply.type)) return absl::InvalidArgumentError("NBD_REP_INFO without a type");
  absl::Status status;
  switch (reply.type) {
    case kInfoExport: {
      InfoReply::Export info;
      cursor.TakeU64(info.size_bytes);
      if (data.size() != 12 || !cursor.TakeU16(info.flags))
        return WrongInfoLength(kInfoExport, data.size());
      reply.export_info = info;
      break;
    }
    case kInfoName:
      reply.name = cursor.rest();
      status = CheckString("export name", *reply.name);
      break;
    case kInfoDescription:
      reply.description = cursor.rest();
      status = CheckString("description", *reply.description);
      break;
    case kInfoBlockSize:
      status = ParseBlockSizes(cursor, data.size(), reply);
      break;
    default:
      break;  // "the client MUST ignore information replies it does not understand"
  }
  if (!status.ok()) return status;
  return reply;
}

}  // namespace blk::nbd
