#include "src/proto/handshake_server.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/core/error.h"
#include "src/core/limits.h"
#include "src/core/trace.h"

namespace blk::nbd {
namespace {

constexpr size_t kFlushBytes = 64 << 10;  // replies to a long LIST are sent in pieces of this size

// What the client broke and has no reply for; the connection ends.
absl::Status Violation(std::string_view what) {
  return ErrnoErrorAsIs(EPROTO, absl::StrCat("NBD handshake: ", what));
}

std::string OptionText(uint32_t option) {
  const std::string_view name = OptionName(option);
  return name.empty() ? absl::StrCat("option ", option) : std::string(name);
}

bool IsPermission(const absl::Status& status) {
  const int error = ErrnoOf(status);
  return error == EPERM || error == EACCES;
}

// The reply for a failure of OpenExport ("Option reply types").
uint32_t ReplyForOpen(const absl::Status& status, bool tls) {
  if (absl::IsUnauthenticated(status)) return tls ? kRepErrPolicy : kRepErrTlsReqd;
  if (ErrnoOf(status) == ESHUTDOWN) return kRepErrShutdown;
  if (absl::IsPermissionDenied(status) || IsPermission(status)) return kRepErrPolicy;
  return kRepErrUnknown;
}

uint32_t ReplyForList(const absl::Status& status) {
  if (ErrnoOf(status) == ESHUTDOWN) return kRepErrShutdown;
  if (absl::IsPermissionDenied(status) || IsPermission(status)) return kRepErrPolicy;
  return kRepErrPlatform;
}

// Whether a query of LIST_META_CONTEXT asks for `context`: by its name, or by its namespace with an
// empty leaf.
bool ListQueryMatches(std::string_view query, std::string_view context) {
  if (query == context) return true;
  return query.ends_with(':') && query.find(':') == query.size() - 1 && context.starts_with(query);
}

class ServerHandshake final : public OptionReplier {
 public:
  ServerHandshake(BufferedReader& reader, ServerHandshakeHost& host, ServerHandshakeOptions options)
      : reader_(reader), host_(host), options_(std::move(options)) {}

  Task<absl::StatusOr<ServerHandshakeResult>> Run();

  void Reply(uint32_t type, std::string_view data) override {
    const bool last = type == kRepAck || (type & kRepErrorBit) != 0;
    if (last) Say("replying to ", OptionText(option_), " with ", OptionReplyName(type));
    out_ += OptionReplyMessage(option_, type, data);
  }
  Task<absl::Status> Flush() override;
  BufferedReader& reader() override { return reader_; }

 private:
  Task<absl::Status> RunOldstyle();
  Task<absl::Status> Greet();
  // Reads one option, leaves its data in data_; false when the client has gone.
  Task<absl::StatusOr<bool>> ReadOption();
  // Answers the option in hand; sets done_ when haggling is over.
  Task<absl::Status> HandleOption();
  bool RefusedUpFront();
  Task<absl::Status> Dispatch();

  Task<absl::Status> ExportName();
  Task<absl::Status> List();
  Task<absl::Status> StartTls();
  Task<absl::Status> InfoOrGo();
  void StructuredReply();
  void ExtendedHeaders();
  Task<absl::Status> MetaContext();
  Task<absl::Status> Unknown();

  // Opens `name`, or keeps it when it is open already; on failure queues the reply. True: held_ is
  // that export.
  Task<bool> Open(std::string name);
  absl::Status AnswerInfo(const InfoRequest& request);
  void SelectContexts(const MetaContextRequest& request);
  void ListContexts(const MetaContextRequest& request);
  bool RefuseData();
  void Error(uint32_t type, std::string_view text) { Reply(type, text.substr(0, kStringBytesMax)); }
  void EnterTransmission(std::string name);
  uint16_t FlagsFor(std::string_view name) const;
  // Debug messages, in nbdkit's words, which scripts look for.
  template <typename... Args>
  void Say(const Args&... args) const {
    if (Verbose() && !options_.log_name.empty())
      LogDebugFrom(options_.log_name, absl::StrCat(args...));
  }
  template <typename... Args>
  void SayOption(const Args&... args) const {
    Say("newstyle negotiation: ", OptionText(option_), ": ", args...);
  }
  void SayFlags(uint16_t flags) const {
    Say(options_.oldstyle ? "oldstyle" : "newstyle", " negotiation: flags: export 0x",
        absl::Hex(flags));
  }
  // Options may not be answered at all unless both sides agreed on fixed newstyle.
  absl::Status RequireFixed() const;

  BufferedReader& reader_;
  ServerHandshakeHost& host_;
  const ServerHandshakeOptions options_;

  bool server_fixed_ = false;
  bool client_fixed_ = false;
  bool zeroes_ = true;
  bool tls_ = false;
  ReplyStyle style_ = ReplyStyle::kSimple;
  std::optional<std::string> held_name_;  // what the host holds open, by the client's name for it
  ExportInfo held_;
  std::string contexts_name_;  // the export that contexts_ were selected for
  std::vector<nbd::MetaContext> contexts_;

  uint32_t option_ = 0;
  uint32_t data_bytes_ = 0;  // as announced; data_ is empty if that was too much
  std::string data_;
  std::string out_;
  bool done_ = false;
  ServerHandshakeResult result_;
};

Task<absl::StatusOr<ServerHandshakeResult>> ServerHandshake::Run() {
  if (options_.oldstyle) {
    BLK_CO_RETURN_IF_ERROR(co_await RunOldstyle());
    co_return std::move(result_);
  }
  BLK_CO_RETURN_IF_ERROR(co_await Greet());
  for (size_t count = 0; !done_; ++count) {
    if (count == limits::kOptionsMax) {
      co_return Violation(absl::StrCat("more than ", limits::kOptionsMax, " options; giving up"));
    }
    BLK_CO_ASSIGN_OR_RETURN(const bool more, co_await ReadOption());
    if (!more) break;
    BLK_CO_RETURN_IF_ERROR(co_await HandleOption());
  }
  result_.tls = tls_;
  co_return std::move(result_);
}

Task<absl::Status> ServerHandshake::Flush() {
  if (out_.empty()) co_return absl::OkStatus();
  const std::string out = std::exchange(out_, {});
  const std::array<iovec, 1> parts{iovec{const_cast<char*>(out.data()), out.size()}};
  co_return co_await reader_.stream()->WriteAll(parts);
}

// "Oldstyle negotiation": one message, and no way to report an error.
Task<absl::Status> ServerHandshake::RunOldstyle() {
  if (options_.tls == TlsMode::kRequire) {
    co_return Violation("the oldstyle handshake cannot carry TLS, but TLS is required");
  }
  absl::StatusOr<ExportInfo> info = co_await host_.OpenExport("");
  if (!info.ok()) co_return info.status();
  held_ = *std::move(info);
  result_.oldstyle = true;
  EnterTransmission("");
  SayFlags(result_.export_info.flags);
  out_ = OldstyleGreeting(held_.size_bytes, result_.export_info.flags);
  co_return co_await Flush();
}

// "Newstyle negotiation": the greeting and the client's flags.
Task<absl::Status> ServerHandshake::Greet() {
  out_ = NewstyleGreeting(options_.handshake_flags);
  BLK_CO_RETURN_IF_ERROR(co_await Flush());
  Say("newstyle negotiation: flags: global 0x", absl::Hex(options_.handshake_flags));
  std::array<char, 4> bytes;
  BLK_CO_RETURN_IF_ERROR(co_await reader_.ReadExactly(bytes));
  const uint32_t flags = LoadU32(bytes.data());
  Say("newstyle negotiation: client flags: 0x", absl::Hex(flags));
  // Each client flag has the number of the server's flag that it answers ("Client flags").
  if ((flags & ~uint32_t{options_.handshake_flags}) != 0) {
    co_return Violation(absl::StrCat("the client set flags ", flags, ", the server offered ",
                                     options_.handshake_flags));
  }
  server_fixed_ = (options_.handshake_flags & kFlagFixedNewstyle) != 0;
  client_fixed_ = (flags & kClientFixedNewstyle) != 0;
  zeroes_ = (flags & kClientNoZeroes) == 0;
  if (options_.tls == TlsMode::kRequire && !client_fixed_) {
    co_return Violation("TLS is required, but without fixed newstyle it cannot be negotiated");
  }
  co_return absl::OkStatus();
}

Task<absl::StatusOr<bool>> ServerHandshake::ReadOption() {
  if (reader_.buffered().empty()) {
    // A client that closes here without ABORT is impolite but common; it is no error.
    BLK_CO_ASSIGN_OR_RETURN(const bool more, co_await reader_.Fill());
    if (!more) co_return false;
  }
  std::array<char, kOptionHeaderBytes> bytes;
  BLK_CO_RETURN_IF_ERROR(co_await reader_.ReadExactly(bytes));
  const absl::StatusOr<OptionHeader> header = ParseOptionHeader(bytes);
  if (!header.ok()) co_return Violation(header.status().message());
  option_ = header->option;
  data_bytes_ = header->length;
  data_.clear();
  if (data_bytes_ > limits::kOptionBytesSkipMax) {
    co_return Violation(absl::StrCat(OptionText(option_), " with ", data_bytes_, " bytes of data"));
  }
  if (data_bytes_ > limits::kOptionBytesMax) {
    BLK_CO_RETURN_IF_ERROR(co_await reader_.Skip(data_bytes_));
  } else if (data_bytes_ > 0) {
    data_.resize(data_bytes_);
    BLK_CO_RETURN_IF_ERROR(co_await reader_.ReadExactly({data_.data(), data_.size()}));
  }
  co_return true;
}

Task<absl::Status> ServerHandshake::HandleOption() {
  // These two come first: the one cannot be answered with an error, the other always succeeds.
  if (option_ == kOptExportName) co_return co_await ExportName();
  BLK_CO_RETURN_IF_ERROR(RequireFixed());
  if (option_ == kOptAbort) {
    Reply(kRepAck, {});
    Say("client sent NBD_OPT_ABORT to abort the connection");
    done_ = true;
    co_await host_.CloseExport();
    // "The server SHOULD gracefully handle the client [...] closing the connection without waiting
    // for a reply."
    (void)co_await Flush();
    co_return absl::OkStatus();
  }
  if (!RefusedUpFront()) BLK_CO_RETURN_IF_ERROR(co_await Dispatch());
  co_return co_await Flush();
}

absl::Status ServerHandshake::RequireFixed() const {
  if (server_fixed_) return absl::OkStatus();
  return Violation(absl::StrCat("the client sent ", OptionText(option_),
                                ", but without fixed newstyle only NBD_OPT_EXPORT_NAME exists"));
}

// Refusals that do not depend on the option; true when one was queued.
bool ServerHandshake::RefusedUpFront() {
  if (host_.ShuttingDown()) {
    Error(kRepErrShutdown, "the server is shutting down");
  } else if (options_.tls == TlsMode::kRequire && !tls_ && option_ != kOptStartTls) {
    Error(kRepErrTlsReqd, "this server requires TLS; send NBD_OPT_STARTTLS first");
  } else if (data_bytes_ > limits::kOptionBytesMax) {
    Error(kRepErrTooBig, absl::StrCat(data_bytes_, " bytes of option data; this server takes ",
                                      limits::kOptionBytesMax));
  } else {
    return false;
  }
  // SET_META_CONTEXT replaces the selection "including when this command fails".
  if (option_ == kOptSetMetaContext) contexts_.clear();
  return true;
}

Task<absl::Status> ServerHandshake::Dispatch() {
  switch (option_) {
    case kOptList:
      co_return co_await List();
    case kOptStartTls:
      co_return co_await StartTls();
    case kOptInfo:
    case kOptGo:
      co_return co_await InfoOrGo();
    case kOptStructuredReply:
      StructuredReply();
      co_return absl::OkStatus();
    case kOptExtendedHeaders:
      ExtendedHeaders();
      co_return absl::OkStatus();
    case kOptListMetaContext:
    case kOptSetMetaContext:
      co_return co_await MetaContext();
    default:
      co_return co_await Unknown();
  }
}

// NBD_OPT_EXPORT_NAME: every failure ends the session.
Task<absl::Status> ServerHandshake::ExportName() {
  if (host_.ShuttingDown()) co_return Violation("the server is shutting down");
  if (options_.tls == TlsMode::kRequire && !tls_) {
    co_return Violation("NBD_OPT_EXPORT_NAME before TLS, which is required");
  }
  if (style_ == ReplyStyle::kExtended) {
    co_return Violation("NBD_OPT_EXPORT_NAME after extended headers were negotiated");
  }
  if (data_bytes_ > kStringBytesMax) {
    co_return Violation(absl::StrCat("an export name of ", data_bytes_, " bytes"));
  }
  BLK_CO_RETURN_IF_ERROR(CheckString("export name", data_));
  const std::string name = data_;
  const bool open = co_await Open(name);
  const std::string refusal = std::exchange(out_, {});
  if (!open) {
    co_return Violation(absl::StrCat("NBD_OPT_EXPORT_NAME: ",
                                     std::string_view(refusal).substr(kOptionReplyHeaderBytes)));
  }
  if (held_.block_sizes_required) {
    co_return Violation("the export needs a client that obeys its block sizes; use NBD_OPT_GO");
  }
  EnterTransmission(name);
  SayFlags(result_.export_info.flags);
  out_ = ExportNameReply(held_.size_bytes, result_.export_info.flags, zeroes_);
  co_return co_await Flush();
}

// NBD_OPT_LIST
Task<absl::Status> ServerHandshake::List() {
  if (RefuseData()) co_return absl::OkStatus();
  SayOption("advertising exports");
  const absl::StatusOr<ExportCatalog> catalog = co_await host_.ListExports();
  if (!catalog.ok()) {
    Error(ReplyForList(catalog.status()), catalog.status().message());
    co_return absl::OkStatus();
  }
  for (const ListedExport& entry : catalog->exports) {
    // A name that is no NBD string could not be asked for either; a description is cut.
    if (!CheckString("export name", entry.name).ok()) continue;
    ListedExport shown{entry.name, entry.description.substr(0, kStringBytesMax)};
    if (!CheckString("description", shown.description).ok()) shown.description.clear();
    Reply(kRepServer, EncodeServerReply(shown));
    if (out_.size() >= kFlushBytes) BLK_CO_RETURN_IF_ERROR(co_await Flush());
  }
  Reply(kRepAck, {});
  co_return absl::OkStatus();
}

// NBD_OPT_STARTTLS, "TLS support"
Task<absl::Status> ServerHandshake::StartTls() {
  if (RefuseData()) co_return absl::OkStatus();
  if (tls_) {
    Error(kRepErrInvalid, "TLS has been negotiated already");
    co_return absl::OkStatus();
  }
  if (options_.tls == TlsMode::kOff || !client_fixed_) {
    Error(kRepErrPolicy, "this server does not use TLS");
    co_return absl::OkStatus();
  }
  // Clear text that arrived behind the option would be taken for the client's own words inside TLS.
  if (!reader_.buffered().empty()) {
    co_return Violation("the client sent data behind NBD_OPT_STARTTLS without waiting");
  }
  Reply(kRepAck, {});
  BLK_CO_RETURN_IF_ERROR(co_await Flush());
  BLK_CO_ASSIGN_OR_RETURN(Stream* const secure, co_await host_.StartTls(reader_.stream()));
  reader_.set_stream(secure);
  // "The server MUST NOT preserve any negotiation state"
  style_ = ReplyStyle::kSimple;
  contexts_.clear();
  held_name_.reset();
  co_await host_.CloseExport();
  tls_ = true;
  Say("using TLS on this connection");
  co_return absl::OkStatus();
}

void ServerHandshake::StructuredReply() {
  if (RefuseData()) return;
  if (!options_.structured_replies) {
    Error(kRepErrUnsup, "structured replies are turned off on this server");
  } else if (style_ == ReplyStyle::kExtended) {
    Error(kRepErrExtHeaderReqd, "extended headers have been negotiated and take precedence");
  } else if (style_ == ReplyStyle::kStructured) {
    Error(kRepErrInvalid, "structured replies have been negotiated already");
  } else {
    SayOption("client requested structured replies");
    style_ = ReplyStyle::kStructured;
    Reply(kRepAck, {});
  }
}

void ServerHandshake::ExtendedHeaders() {
  if (RefuseData()) return;
  if (!options_.extended_headers || !options_.structured_replies) {
    Error(kRepErrUnsup, "extended headers are turned off on this server");
  } else if (style_ == ReplyStyle::kExtended) {
    Error(kRepErrInvalid, "extended headers have been negotiated already");
  } else {
    SayOption("client requested extended headers");
    style_ = ReplyStyle::kExtended;
    Reply(kRepAck, {});
  }
}

// NBD_OPT_INFO and NBD_OPT_GO
Task<absl::Status> ServerHandshake::InfoOrGo() {
  const absl::StatusOr<InfoRequest> request = ParseInfoRequest(data_);
  if (!request.ok()) {
    Error(kRepErrInvalid, request.status().message());
    co_return absl::OkStatus();
  }
  if (!co_await Open(request->export_name)) co_return absl::OkStatus();
  SayFlags(FlagsFor(request->export_name));
  Reply(kRepInfo, EncodeInfoExport(held_.size_bytes, FlagsFor(request->export_name)));
  const bool promises = request->Wants(kInfoBlockSize);
  if (promises && !held_.announce_block_sizes && !held_.block_sizes_required)
    SayOption("NBD_INFO_BLOCK_SIZE: client requested but no plugin or filter provided block size ",
              "information, ignoring client request");
  if (request->Wants(kInfoName)) {
    Reply(kRepInfo, EncodeInfoText(kInfoName, held_.canonical_name));
  }
  if (request->Wants(kInfoDescription)) {
    if (held_.description.empty()) {
      SayOption("NBD_INFO_DESCRIPTION: no description to send");
    } else {
      Reply(kRepInfo, EncodeInfoText(kInfoDescription, held_.description));
    }
  }
  if ((promises && held_.announce_block_sizes) || held_.block_sizes_required) {
    Reply(kRepInfo, EncodeInfoBlockSize(held_.block_sizes));
  }
  if (held_.block_sizes_required && !promises) {
    Error(kRepErrBlockSizeReqd, "ask for NBD_INFO_BLOCK_SIZE and obey it to use this export");
    co_return absl::OkStatus();
  }
  Reply(kRepAck, {});
  if (option_ == kOptGo) EnterTransmission(request->export_name);
  co_return absl::OkStatus();
}

// NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT
Task<absl::Status> ServerHandshake::MetaContext() {
  const bool set = option_ == kOptSetMetaContext;
  if (set) contexts_.clear();  // "including when this command fails"
  if (!options_.meta_contexts) {
    Error(kRepErrUnsup, "metadata contexts are turned off on this server");
    co_return absl::OkStatus();
  }
  if (style_ == ReplyStyle::kSimple) {
    Error(kRepErrInvalid, "negotiate structured replies or extended headers first");
    co_return absl::OkStatus();
  }
  const absl::StatusOr<MetaContextRequest> request = ParseMetaContextRequest(data_);
  if (!request.ok()) {
    Error(absl::IsResourceExhausted(request.status()) ? kRepErrTooBig : kRepErrInvalid,
          request.status().message());
    co_return absl::OkStatus();
  }
  for (const std::string& query : request->queries) {
    if (query.find(':') != std::string::npos && query.front() != ':') continue;
    Error(kRepErrInvalid, "a query must begin with a namespace and a colon");
    co_return absl::OkStatus();
  }
  if (!co_await Open(request->export_name)) co_return absl::OkStatus();
  if (set) {
    SelectContexts(*request);
  } else {
    ListContexts(*request);
  }
  SayOption("reply complete");
  co_return absl::OkStatus();
}

void ServerHandshake::SelectContexts(const MetaContextRequest& request) {
  SayOption("set count: ", request.queries.size());
  for (const std::string& query : request.queries) SayOption("set ", query);
  std::vector<nbd::MetaContext> selected;
  for (const std::string& context : held_.contexts) {
    // Wildcards select nothing here; what is unknown is ignored.
    if (std::find(request.queries.begin(), request.queries.end(), context) ==
        request.queries.end()) {
      continue;
    }
    if (selected.size() == limits::kMetaContextsMax) {
      Error(kRepErrTooBig, absl::StrCat("at most ", limits::kMetaContextsMax, " contexts"));
      return;
    }
    selected.push_back({static_cast<uint32_t>(selected.size() + 1), context});
  }
  for (const nbd::MetaContext& context : selected) {
    SayOption("replying with ", context.name, " id ", context.id);
    Reply(kRepMetaContext, EncodeMetaContextReply(context));
  }
  Reply(kRepAck, {});
  contexts_ = std::move(selected);
  contexts_name_ = request.export_name;
}

void ServerHandshake::ListContexts(const MetaContextRequest& request) {
  SayOption("query count: ", request.queries.size());
  for (const std::string& context : held_.contexts) {
    bool wanted = request.queries.empty();
    for (const std::string& query : request.queries) {
      wanted = wanted || ListQueryMatches(query, context);
    }
    // The id is reserved and zero in this reply.
    if (!wanted) continue;
    SayOption("replying with ", context, " id 0");
    Reply(kRepMetaContext, EncodeMetaContextReply({0, context}));
  }
  Reply(kRepAck, {});
}

Task<absl::Status> ServerHandshake::Unknown() {
  // PEEK_EXPORT is withdrawn but its number stays the document's.
  if (option_ != kOptPeekExport) {
    BLK_CO_ASSIGN_OR_RETURN(const bool handled,
                            co_await host_.PrivateOption(option_, data_, *this));
    if (handled) co_return absl::OkStatus();
  }
  Error(kRepErrUnsup, absl::StrCat("this server does not know ", OptionText(option_)));
  co_return absl::OkStatus();
}

Task<bool> ServerHandshake::Open(std::string name) {
  SayOption("client requested export '", name, "'");
  // An INFO and the GO after it must tell the same, so an open export stays open.
  if (held_name_ == name) co_return true;
  held_name_.reset();
  absl::StatusOr<ExportInfo> info = co_await host_.OpenExport(name);
  if (!info.ok()) {
    Error(ReplyForOpen(info.status(), tls_), info.status().message());
    co_return false;
  }
  held_ = *std::move(info);
  held_.canonical_name.resize(std::min(held_.canonical_name.size(), kStringBytesMax));
  held_.description.resize(std::min(held_.description.size(), kStringBytesMax));
  held_name_ = std::move(name);
  co_return true;
}

// Queues NBD_REP_ERR_INVALID for an option that must come alone.
bool ServerHandshake::RefuseData() {
  if (data_bytes_ == 0) return false;
  Error(kRepErrInvalid, absl::StrCat(OptionText(option_), " takes no data"));
  return true;
}

uint16_t ServerHandshake::FlagsFor(std::string_view name) const {
  unsigned flags = held_.flags | kFlagHasFlags;
  if (style_ == ReplyStyle::kSimple) flags &= ~kFlagSendDf;
  if ((flags & kFlagSendWriteZeroes) == 0) flags &= ~kFlagSendFastZero;
  const bool contexts = !contexts_.empty() && contexts_name_ == name;
  if (style_ != ReplyStyle::kExtended || !contexts) flags &= ~kFlagBlockStatusPayload;
  return static_cast<uint16_t>(flags);
}

void ServerHandshake::EnterTransmission(std::string name) {
  done_ = true;
  result_.transmission = true;
  result_.style = style_;
  result_.export_info = held_;
  result_.export_info.flags = FlagsFor(name);
  // Contexts of another export do not count ("NBD_OPT_SET_META_CONTEXT").
  if (contexts_name_ == name) result_.contexts = contexts_;
  result_.export_name = std::move(name);
}

}  // namespace

Task<absl::StatusOr<Stream*>> ServerHandshakeHost::StartTls(Stream*) {
  return absl::StatusOr<Stream*>(absl::UnimplementedError("TLS is on, but no TLS was provided"));
}

Task<absl::StatusOr<bool>> ServerHandshakeHost::PrivateOption(uint32_t, std::string,
                                                              OptionReplier&) {
  return absl::StatusOr<bool>(false);
}

Task<absl::StatusOr<ServerHandshakeResult>> RunServerHandshake(BufferedReader& reader,
                                                               ServerHandshakeHost& host,
                                                               ServerHandshakeOptions options) {
  ServerHandshake handshake(reader, host, options);
  co_return co_await handshake.Run();
}

}  // namespace blk::nbd
