#include "src/proto/handshake_client.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "src/core/error.h"
#include "src/core/limits.h"

namespace blk::nbd {
namespace {

absl::Status Violation(std::string_view what) {
  return ErrnoErrorAsIs(EPROTO, absl::StrCat("NBD handshake: ", what));
}

// A stranger's text, fit for a terminal.
std::string Printable(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = c == '\n' ? ' ' : '?';
  }
  return out;
}

// What an error reply means to the caller ("Option reply types").
int ErrnoForReply(uint32_t reply) {
  switch (reply) {
    case kRepErrUnknown:
      return ENOENT;
    case kRepErrPolicy:
    case kRepErrTlsReqd:
      return EPERM;
    case kRepErrShutdown:
      return ESHUTDOWN;
    case kRepErrInvalid:
    case kRepErrBlockSizeReqd:
      return EINVAL;
    case kRepErrTooBig:
      return EMSGSIZE;
    default:
      return EOPNOTSUPP;
  }
}

std::string ReplyText(uint32_t type) {
  const std::string_view name = OptionReplyName(type);
  return name.empty() ? absl::StrCat("reply type ", type) : std::string(name);
}

absl::Status TakeNothing(std::string_view) { return absl::OkStatus(); }

}  // namespace

absl::Status ClientHandshake::Broken(absl::Status why) {
  state_ = State::kEnded;
  broken_ = std::move(why);
  return broken_;
}

absl::Status ClientHandshake::Usable() const {
  if (!broken_.ok()) return broken_;
  BLK_CHECK(state_ == State::kHaggling);  // Start() was not called, or Go() has succeeded
  return absl::OkStatus();
}

absl::Status ClientHandshake::Refused(uint32_t option, uint32_t reply) const {
  const int error = ErrnoForReply(reply);
  std::string text = absl::StrCat("the server refused ", OptionName(option), ": ");
  if (reply == kRepErrTlsReqd) {
    absl::StrAppend(&text, "it requires TLS; use an nbds:// or nbds+unix:// URI");
  } else {
    absl::StrAppend(&text, ReplyText(reply));
  }
  if (!refusal_.empty()) absl::StrAppend(&text, " (", refusal_, ")");
  return ErrnoErrorAsIs(error, text);
}

Task<absl::Status> ClientHandshake::Send(std::string bytes) {
  const std::array<iovec, 1> parts{iovec{bytes.data(), bytes.size()}};
  const absl::Status status = co_await reader_.stream()->WriteAll(parts);
  if (!status.ok()) co_return Broken(status);
  co_return absl::OkStatus();
}

Task<absl::Status> ClientHandshake::Start() {
  BLK_CHECK(state_ == State::kNew);
  state_ = State::kHaggling;
  const absl::Status status = co_await Greet();
  if (!status.ok()) co_return Broken(status);
  if (options_.tls == ClientTls::kOff) co_return absl::OkStatus();
  co_return co_await NegotiateTls();
}

// "Oldstyle negotiation", "Newstyle negotiation": the first words.
Task<absl::Status> ClientHandshake::Greet() {
  std::array<char, 16> magic;
  BLK_CO_RETURN_IF_ERROR(co_await reader_.ReadExactly(magic));
  if (LoadU64(magic.data()) != kInitMagic) {
    co_return Violation(absl::StrCat("this is no NBD server; it began with \"",
                                     Printable({magic.data(), magic.size()}), "\""));
  }
  const uint64_t style = LoadU64(magic.data() + 8);
  if (style == kOldstyleMagic) co_return co_await ReadOldstyle();
  if (style != kOptionMagic)
    co_return Violation("a greeting that is neither oldstyle nor newstyle");
  std::array<char, 2> flag_bytes;
  BLK_CO_RETURN_IF_ERROR(co_await reader_.ReadExactly(flag_bytes));
  // "The client SHOULD ignore any handshake flags it does not recognize", and may answer only what
  // was offered.
  const uint16_t flags = LoadU16(flag_bytes.data());
  const bool fixed = (flags & kFlagFixedNewstyle) != 0;
  handshake_style_ = fixed ? HandshakeStyle::kNewstyleFixed : HandshakeStyle::kNewstyle;
  no_zeroes_ = (flags & kFlagNoZeroes) != 0;
  std::string answer(4, '\0');
  StoreU32(answer.data(),
           (fixed ? kClientFixedNewstyle : 0u) | (no_zeroes_ ? kClientNoZeroes : 0u));
  co_return co_await Send(std::move(answer));
}

Task<absl::Status> ClientHandshake::ReadOldstyle() {
  handshake_style_ = HandshakeStyle::kOldstyle;
  std::array<char, kOldstyleBytes - 16> rest;
  BLK_CO_RETURN_IF_ERROR(co_await reader_.ReadExactly(rest));
  oldstyle_export_.size_bytes = LoadU64(rest.data());
  oldstyle_export_.flags = static_cast<uint16_t>(LoadU32(rest.data() + 8));
  co_return Finish(oldstyle_export_);
}

// "TLS support", "Client-side requirements": first of all options, so that the rest is under TLS.
Task<absl::Status> ClientHandshake::NegotiateTls() {
  const bool required = options_.tls == ClientTls::kRequire;
  BLK_CHECK(options_.tls_upgrade != nullptr);
  if (handshake_style_ != HandshakeStyle::kNewstyleFixed) {
    if (!required) co_return absl::OkStatus();
    co_return Broken(
        ErrnoErrorAsIs(EPERM, "TLS is required, but the server is too old to have it"));
  }
  BLK_CO_ASSIGN_OR_RETURN(const uint32_t reply, co_await Ask(kOptStartTls));
  if (reply != kRepAck) {
    if (!required) co_return absl::OkStatus();
    co_return Annotate(Refused(kOptStartTls, reply), "TLS is required");
  }
  // Clear text that came with the answer would be taken for the server's own words inside TLS.
  if (!reader_.buffered().empty()) {
    co_return Broken(Violation("the server sent data before TLS was set up"));
  }
  const absl::StatusOr<Stream*> secure = co_await options_.tls_upgrade->StartTls(reader_.stream());
  if (!secure.ok()) co_return Broken(secure.status());
  reader_.set_stream(*secure);
  tls_ = true;
  co_return absl::OkStatus();
}

// Extended headers if the server has them, else structured replies, else neither. Once a
// connection.
Task<absl::Status> ClientHandshake::NegotiateReplyStyle() {
  BLK_CO_RETURN_IF_ERROR(Usable());
  if (handshake_style_ != HandshakeStyle::kNewstyleFixed) co_return absl::OkStatus();
  if (std::exchange(reply_style_known_, true)) co_return absl::OkStatus();
  struct Candidate {
    bool wanted;
    uint32_t option;
    ReplyStyle style;
  };
  const std::array<Candidate, 2> candidates{{
      {options_.extended_headers, kOptExtendedHeaders, ReplyStyle::kExtended},
      {options_.structured_replies, kOptStructuredReply, ReplyStyle::kStructured},
  }};
  for (const Candidate& candidate : candidates) {
    if (!candidate.wanted) continue;
    BLK_CO_ASSIGN_OR_RETURN(const uint32_t reply, co_await Ask(candidate.option));
    if (reply == kRepAck) {
      reply_style_ = candidate.style;
      break;
    }
    // These two will be the answer to whatever follows; any other error only means "no".
    if (reply == kRepErrTlsReqd || reply == kRepErrShutdown) {
      reply_style_known_ = false;
      co_return Refused(candidate.option, reply);
    }
  }
  co_return absl::OkStatus();
}

// NBD_OPT_LIST
Task<absl::StatusOr<std::vector<ListedExport>>> ClientHandshake::List() {
  BLK_CO_RETURN_IF_ERROR(Usable());
  std::vector<ListedExport> exports;
  if (handshake_style_ == HandshakeStyle::kOldstyle) {
    exports.emplace_back();
    co_return exports;
  }
  size_t bytes = 0;
  const auto take = [&exports, &bytes](std::string_view data) -> absl::Status {
    BLK_ASSIGN_OR_RETURN(ListedExport entry, ParseServerReply(data));
    bytes += data.size();
    if (bytes > limits::kListedBytesMax) return Violation("the list of exports is too long");
    exports.push_back(std::move(entry));
    return absl::OkStatus();
  };
  BLK_CO_ASSIGN_OR_RETURN(const uint32_t reply,
                          co_await Ask(kOptList, "", kRepServer, limits::kListedExportsMax, take));
  if (reply != kRepAck) co_return Refused(kOptList, reply);
  co_return exports;
}

// NBD_OPT_LIST_META_CONTEXT
Task<absl::StatusOr<std::vector<std::string>>> ClientHandshake::ListMetaContexts(
    std::string name, std::vector<std::string> queries) {
  BLK_CO_RETURN_IF_ERROR(Usable());
  if (handshake_style_ == HandshakeStyle::kNewstyleFixed) {
    BLK_CO_RETURN_IF_ERROR(co_await NegotiateReplyStyle());
  }
  if (reply_style_ == ReplyStyle::kSimple) {
    co_return ErrnoErrorAsIs(EOPNOTSUPP, "the server has no metadata contexts");
  }
  std::vector<std::string> contexts;
  const auto take = [&contexts](std::string_view data) -> absl::Status {
    BLK_ASSIGN_OR_RETURN(MetaContext context, ParseMetaContextReply(data));
    contexts.push_back(std::move(context.name));
    return absl::OkStatus();
  };
  BLK_CO_ASSIGN_OR_RETURN(const uint32_t reply,
                          co_await Ask(kOptListMetaContext, EncodeMetaContextRequest(name, queries),
                                       kRepMetaContext, limits::kRepliesPerOptionMax, take));
  if (reply != kRepAck) co_return Refused(kOptListMetaContext, reply);
  co_return contexts;
}

// NBD_OPT_SET_META_CONTEXT. A refusal means that there are no contexts, no more: GO tells what is
// really wrong.
Task<absl::StatusOr<std::vector<MetaContext>>> ClientHandshake::SelectContexts(
    const std::string& name) {
  std::vector<MetaContext> contexts;
  if (options_.contexts.empty() || reply_style_ == ReplyStyle::kSimple) co_return contexts;
  const auto take = [&contexts](std::string_view data) -> absl::Status {
    BLK_ASSIGN_OR_RETURN(MetaContext context, ParseMetaContextReply(data));
    for (const MetaContext& other : contexts) {
      if (other.id == context.id) return Violation("two metadata contexts have one id");
    }
    contexts.push_back(std::move(context));
    return absl::OkStatus();
  };
  BLK_CO_ASSIGN_OR_RETURN(
      const uint32_t reply,
      co_await Ask(kOptSetMetaContext, EncodeMetaContextRequest(name, options_.contexts),
                   kRepMetaContext, limits::kMetaContextsMax, take));
  if (reply != kRepAck) contexts.clear();
  co_return contexts;
}

Task<absl::StatusOr<ServerExport>> ClientHandshake::Info(std::string name) {
  BLK_CO_RETURN_IF_ERROR(Usable());
  BLK_CO_RETURN_IF_ERROR(CheckString("export name", name));
  if (handshake_style_ == HandshakeStyle::kOldstyle) co_return Oldstyle(name);
  if (handshake_style_ == HandshakeStyle::kNewstyle || !options_.go) {
    co_return ErrnoErrorAsIs(EOPNOTSUPP, "the server is too old for NBD_OPT_INFO");
  }
  co_return co_await Describe(kOptInfo, std::move(name));
}

Task<absl::StatusOr<ServerExport>> ClientHandshake::Go(std::string name) {
  BLK_CO_RETURN_IF_ERROR(Usable());
  BLK_CO_RETURN_IF_ERROR(CheckString("export name", name));
  absl::StatusOr<ServerExport> described;
  switch (handshake_style_) {
    case HandshakeStyle::kOldstyle:
      described = Oldstyle(name);
      break;
    case HandshakeStyle::kNewstyle:
      described = co_await ExportName(std::move(name));
      break;
    case HandshakeStyle::kNewstyleFixed:
      described = options_.go ? co_await Describe(kOptGo, std::move(name))
                              : co_await ExportName(std::move(name));
      break;
  }
  if (described.ok()) state_ = State::kEnded;
  co_return described;
}

// NBD_OPT_INFO and NBD_OPT_GO, with what must go before them.
Task<absl::StatusOr<ServerExport>> ClientHandshake::Describe(uint32_t option, std::string name) {
  BLK_CO_RETURN_IF_ERROR(co_await NegotiateReplyStyle());
  ServerExport described;
  BLK_CO_ASSIGN_OR_RETURN(described.contexts, co_await SelectContexts(name));
  bool has_export = false;
  const auto take = [&described, &has_export](std::string_view data) -> absl::Status {
    BLK_ASSIGN_OR_RETURN(InfoReply info, ParseInfoReply(data));
    Apply(std::move(info), described, has_export);
    return absl::OkStatus();
  };
  // Asking for block sizes is the promise to obey them.
  const std::array<uint16_t, 3> wanted{kInfoName, kInfoDescription, kInfoBlockSize};
  described.canonical_name = name;
  BLK_CO_ASSIGN_OR_RETURN(const uint32_t reply,
                          co_await Ask(option, EncodeInfoRequest(name, wanted), kRepInfo,
                                       limits::kRepliesPerOptionMax, take));
  const bool may_fall_back = option == kOptGo && reply_style_ != ReplyStyle::kExtended;
  if (reply == kRepErrUnsup && may_fall_back) {
    std::vector<MetaContext> contexts = std::move(described.contexts);
    BLK_CO_ASSIGN_OR_RETURN(described, co_await ExportName(std::move(name)));
    described.contexts = std::move(contexts);
    co_return described;
  }
  if (reply != kRepAck) {
    co_return Annotate(Refused(option, reply), absl::StrCat("export \"", Printable(name), "\""));
  }
  if (!has_export) co_return Broken(Violation("the server accepted an export without its size"));
  described.name = std::move(name);
  if (absl::Status status = Finish(described); !status.ok()) co_return Broken(status);
  co_return described;
}

void ClientHandshake::Apply(InfoReply info, ServerExport& described, bool& has_export) {
  if (info.export_info.has_value()) {
    has_export = true;
    described.size_bytes = info.export_info->size_bytes;
    described.flags = info.export_info->flags;
  }
  if (info.name.has_value()) described.canonical_name = *std::move(info.name);
  if (info.description.has_value()) described.description = *std::move(info.description);
  if (info.block_sizes.has_value()) {
    described.block_sizes = *info.block_sizes;
    described.block_sizes_told = true;
  }
}

// NBD_OPT_EXPORT_NAME: the server answers with the export or hangs up.
Task<absl::StatusOr<ServerExport>> ClientHandshake::ExportName(std::string name) {
  BLK_CO_RETURN_IF_ERROR(co_await Send(OptionRequest(kOptExportName, name)));
  std::array<char, kExportNameReplyBytes> bytes;
  const absl::Status got = co_await reader_.ReadExactly(bytes);
  if (!got.ok()) {
    if (ErrnoOf(got) != ECONNRESET) co_return Broken(got);
    co_return Broken(ErrnoErrorAsIs(
        ENOENT, absl::StrCat("the server closed the connection when asked for export \"",
                             Printable(name), "\"; it may not have it, or may require TLS")));
  }
  if (!no_zeroes_) {
    const absl::Status skipped = co_await reader_.Skip(kReservedZeroesBytes);
    if (!skipped.ok()) co_return Broken(skipped);
  }
  ServerExport described;
  described.size_bytes = LoadU64(bytes.data());
  described.flags = LoadU16(bytes.data() + 8);
  described.canonical_name = name;
  described.name = std::move(name);
  if (absl::Status status = Finish(described); !status.ok()) co_return Broken(status);
  co_return described;
}

absl::StatusOr<ServerExport> ClientHandshake::Oldstyle(const std::string& name) const {
  if (name.empty()) return oldstyle_export_;
  return ErrnoErrorAsIs(ENOENT, absl::StrCat("export \"", Printable(name),
                                             "\": an oldstyle server has one export, without a "
                                             "name; leave the name out"));
}

// What holds for every way of learning about an export.
absl::Status ClientHandshake::Finish(ServerExport& described) const {
  if (described.size_bytes > limits::kDiskBytesMax) {
    return ErrnoErrorAsIs(EOVERFLOW, absl::StrCat("an export of ", described.size_bytes,
                                                  " bytes; the largest possible has 2^63-1"));
  }
  described.style = reply_style_;
  unsigned flags = described.flags;
  if (reply_style_ == ReplyStyle::kSimple) flags &= ~kFlagSendDf;
  if (reply_style_ != ReplyStyle::kExtended) flags &= ~kFlagBlockStatusPayload;
  described.flags = static_cast<uint16_t>(flags);
  return absl::OkStatus();
}

// NBD_OPT_ABORT. "The client SHOULD gracefully handle the server closing the connection [...]
// without a reply."
Task<void> ClientHandshake::Abort() {
  if (state_ != State::kHaggling) co_return;
  if (handshake_style_ == HandshakeStyle::kOldstyle) {
    // The transmission phase has begun already.
    std::string goodbye(kRequestBytes, '\0');
    StoreRequest(goodbye.data(), {.type = kCmdDisconnect});
    (void)co_await Send(std::move(goodbye));
  } else if (handshake_style_ == HandshakeStyle::kNewstyleFixed) {
    (void)co_await Ask(kOptAbort);
  }
  state_ = State::kEnded;
}

Task<absl::StatusOr<uint32_t>> ClientHandshake::Ask(uint32_t option) {
  co_return co_await Ask(option, "", kRepAck, 0, TakeNothing);
}

Task<absl::StatusOr<uint32_t>> ClientHandshake::Ask(
    uint32_t option, std::string data, uint32_t expected, size_t replies_max,
    absl::FunctionRef<absl::Status(std::string_view)> take) {
  if (handshake_style_ != HandshakeStyle::kNewstyleFixed) {
    co_return ErrnoErrorAsIs(EOPNOTSUPP,
                             absl::StrCat("the server is too old for ", OptionName(option)));
  }
  BLK_CO_RETURN_IF_ERROR(co_await Send(OptionRequest(option, data)));
  co_return co_await Await(option, expected, replies_max, take);
}

Task<absl::StatusOr<uint32_t>> ClientHandshake::Await(
    uint32_t option, uint32_t expected, size_t replies_max,
    absl::FunctionRef<absl::Status(std::string_view)> take) {
  std::string data;
  for (size_t count = 0;; ++count) {
    absl::StatusOr<OptionReplyHeader> header = co_await ReadReply(option, data);
    if (!header.ok()) co_return Broken(Annotate(header.status(), OptionName(option)));
    refusal_ = IsOptionError(header->type) ? Printable(data) : "";
    if (header->type == kRepAck || IsOptionError(header->type)) co_return header->type;
    if (header->type != expected) {
      co_return Broken(
          Violation(absl::StrCat(ReplyText(header->type), " in answer to ", OptionName(option))));
    }
    if (count == replies_max) {
      co_return Broken(
          Violation(absl::StrCat("more than ", replies_max, " replies to ", OptionName(option))));
    }
    const absl::Status taken = take(data);
    if (!taken.ok()) co_return Broken(Violation(taken.message()));
  }
}

Task<absl::StatusOr<bool>> ClientHandshake::OfferArena(int fd, uint64_t bytes) {
  BLK_CO_RETURN_IF_ERROR(Usable());
  if (handshake_style_ != HandshakeStyle::kNewstyleFixed || tls_) co_return false;
  std::string data(kArenaOptionBytes, '\0');
  StoreU32(data.data(), kArenaVersion);
  StoreU64(data.data() + 8, bytes);
  const std::string message = OptionRequest(kOptArena, data);
  const absl::Status sent = co_await reader_.stream()->WriteWithDescriptor(message, fd);
  if (ErrnoOf(sent) == EOPNOTSUPP) co_return false;
  if (!sent.ok()) co_return Broken(sent);
  BLK_CO_ASSIGN_OR_RETURN(uint32_t reply, co_await Await(kOptArena, kRepAck, 0, TakeNothing));
  co_return reply == kRepAck;
}

Task<absl::StatusOr<OptionReplyHeader>> ClientHandshake::ReadReply(uint32_t option,
                                                                   std::string& data) {
  std::array<char, kOptionReplyHeaderBytes> bytes;
  BLK_CO_RETURN_IF_ERROR(co_await reader_.ReadExactly(bytes));
  const absl::StatusOr<OptionReplyHeader> parsed = ParseOptionReplyHeader(bytes);
  if (!parsed.ok()) co_return Violation(parsed.status().message());
  const OptionReplyHeader header = *parsed;
  if (header.option != option) {
    co_return Violation(
        absl::StrCat("an answer to option ", header.option, " instead of ", option));
  }
  if (header.length > limits::kOptionReplyBytesMax) {
    co_return Violation(absl::StrCat("a reply of ", header.length, " bytes to ", OptionName(option),
                                     "; at most ", limits::kOptionReplyBytesMax, " make sense"));
  }
  data.resize(header.length);
  if (header.length > 0) {
    BLK_CO_RETURN_IF_ERROR(co_await reader_.ReadExactly({data.data(), data.size()}));
  }
  co_return header;
}

}  // namespace blk::nbd
