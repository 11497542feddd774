#include "src/proto/codec.h"

#include <doctest/doctest.h>

#include <array>
#include <string>
#include <string_view>

#include "src/core/limits.h"

namespace blk::nbd {
namespace {

using namespace std::string_view_literals;

std::span<const char> Bytes(std::string_view text) { return {text.data(), text.size()}; }

TEST_CASE("codec: a compact request, byte by byte") {
  const auto wire =
      "\x25\x60\x95\x13"
      "\x00\x01"
      "\x00\x06"
      "\x01\x02\x03\x04\x05\x06\x07\x08"
      "\x11\x12\x13\x14\x15\x16\x17\x18"
      "\x21\x22\x23\x24"sv;
  REQUIRE(wire.size() == kRequestBytes);
  Request request;
  for (size_t size = 0; size < wire.size(); ++size) {
    CHECK(ParseRequest(Bytes(wire.substr(0, size)), request) == ParseResult::kShort);
  }
  REQUIRE(ParseRequest(Bytes(wire), request) == ParseResult::kComplete);
  CHECK(request.flags == kCmdFlagFua);
  CHECK(request.type == kCmdWriteZeroes);
  CHECK(request.cookie == 0x0102030405060708);
  CHECK(request.offset == 0x1112131415161718);
  CHECK(request.length == 0x21222324);
  std::array<char, kRequestBytes> out;
  StoreRequest(out.data(), request);
  CHECK(std::string_view(out.data(), out.size()) == wire);
  CHECK(ParseExtendedRequest(Bytes(wire), request) == ParseResult::kBadMagic);
  CHECK(ParseRequest(Bytes("GET "), request) == ParseResult::kBadMagic);
}

TEST_CASE("codec: an extended request, byte by byte") {
  const auto wire =
      "\x21\xe4\x1c\x71"
      "\x00\x20"
      "\x00\x01"
      "\x01\x02\x03\x04\x05\x06\x07\x08"
      "\x11\x12\x13\x14\x15\x16\x17\x18"
      "\x21\x22\x23\x24\x25\x26\x27\x28"sv;
  REQUIRE(wire.size() == kExtendedRequestBytes);
  Request request;
  for (size_t size = 0; size < wire.size(); ++size) {
    CHECK(ParseExtendedRequest(Bytes(wire.substr(0, size)), request) == ParseResult::kShort);
  }
  REQUIRE(ParseExtendedRequest(Bytes(wire), request) == ParseResult::kComplete);
  CHECK(request.flags == kCmdFlagPayloadLen);
  CHECK(request.type == kCmdWrite);
  CHECK(request.length == 0x2122232425262728);
  std::array<char, kExtendedRequestBytes> out;
  StoreExtendedRequest(out.data(), request);
  CHECK(std::string_view(out.data(), out.size()) == wire);
  CHECK(ParseRequest(Bytes(wire), request) == ParseResult::kBadMagic);
}

TEST_CASE("codec: reply headers of the three kinds") {
  std::array<char, 32> out;
  Reply reply;

  StoreSimpleReply(out.data(), kErrorNoSpace, 0x0102030405060708);
  const auto simple = "\x67\x44\x66\x98\x00\x00\x00\x1c\x01\x02\x03\x04\x05\x06\x07\x08"sv;
  CHECK(std::string_view(out.data(), kSimpleReplyBytes) == simple);
  REQUIRE(ParseReply(Bytes(simple), ReplyStyle::kSimple, reply) == ParseResult::kComplete);
  CHECK(reply.simple);
  CHECK(reply.error == kErrorNoSpace);
  CHECK(reply.cookie == 0x0102030405060708);
  CHECK(reply.flags == kChunkFlagDone);
  CHECK(reply.header_bytes == kSimpleReplyBytes);
  CHECK(ParseReply(Bytes(simple), ReplyStyle::kStructured, reply) == ParseResult::kComplete);
  CHECK(ParseReply(Bytes(simple), ReplyStyle::kExtended, reply) == ParseResult::kBadMagic);

  StoreStructuredReply(out.data(), kChunkFlagDone, kChunkErrorOffset, 9, 14);
  const auto structured =
      "\x66\x8e\x33\xef\x00\x01\x80\x02\x00\x00\x00\x00\x00\x00\x00\x09\x00\x00\x00\x0e"sv;
  CHECK(std::string_view(out.data(), kStructuredReplyBytes) == structured);
  REQUIRE(ParseReply(Bytes(structured), ReplyStyle::kStructured, reply) == ParseResult::kComplete);
  CHECK_FALSE(reply.simple);
  CHECK(reply.error == 0);
  CHECK(reply.type == kChunkErrorOffset);
  CHECK(reply.length == 14);
  CHECK(reply.header_bytes == kStructuredReplyBytes);
  CHECK(ParseReply(Bytes(structured), ReplyStyle::kSimple, reply) == ParseResult::kBadMagic);
  CHECK(ParseReply(Bytes(structured), ReplyStyle::kExtended, reply) == ParseResult::kBadMagic);

  StoreExtendedReply(out.data(), 0, kChunkBlockStatusExt, 9, 0x1122, 24);
  const auto extended =
      "\x6e\x8a\x27\x8c\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x09"
      "\x00\x00\x00\x00\x00\x00\x11\x22\x00\x00\x00\x00\x00\x00\x00\x18"sv;
  CHECK(std::string_view(out.data(), kExtendedReplyBytes) == extended);
  REQUIRE(ParseReply(Bytes(extended), ReplyStyle::kExtended, reply) == ParseResult::kComplete);
  CHECK(reply.flags == 0);
  CHECK(reply.offset == 0x1122);
  CHECK(reply.length == 24);
  CHECK(reply.header_bytes == kExtendedReplyBytes);
  CHECK(ParseReply(Bytes(extended), ReplyStyle::kStructured, reply) == ParseResult::kBadMagic);

  const auto every_truncation_is_short = [&reply](std::string_view wire, ReplyStyle style) {
    for (size_t size = 0; size < wire.size(); ++size) {
      CHECK(ParseReply(Bytes(wire.substr(0, size)), style, reply) == ParseResult::kShort);
    }
  };
  every_truncation_is_short(simple, ReplyStyle::kStructured);
  every_truncation_is_short(structured, ReplyStyle::kStructured);
  every_truncation_is_short(extended, ReplyStyle::kExtended);
}

TEST_CASE("codec: holes") {
  std::array<char, kOffsetHoleBytes> out;
  StoreOffsetHole(out.data(), 0x0102030405060708, 0x1000);
  CHECK(std::string_view(out.data(), out.size()) == "\1\2\3\4\5\6\7\10\0\0\x10\0"sv);
  const std::optional<OffsetHole> hole = ParseOffsetHole(out);
  REQUIRE(hole.has_value());
  CHECK(hole->offset == 0x0102030405060708);
  CHECK(hole->length == 0x1000);
  for (size_t size = 0; size < out.size(); ++size) {
    CHECK_FALSE(ParseOffsetHole(std::span(out).first(size)).has_value());
  }
  StoreOffsetHole(out.data(), 1, 0);
  CHECK_FALSE(ParseOffsetHole(out).has_value());
}

TEST_CASE("codec: block status with 32 bits") {
  std::array<char, 4 + 2 * 8> out;
  StoreBlockStatusHeader(out.data(), 7);
  StoreBlockStatusExtent(out.data() + 4, 512, 3);
  StoreBlockStatusExtent(out.data() + 12, 0xffffffff, 0);
  CHECK(std::string_view(out.data(), out.size()) ==
        "\0\0\0\7\0\0\2\0\0\0\0\3\xff\xff\xff\xff\0\0\0\0"sv);
  const auto view = BlockStatusView::Parse(kChunkBlockStatus, out);
  REQUIRE(view.has_value());
  CHECK(view->context_id() == 7);
  REQUIRE(view->size() == 2);
  CHECK((*view)[0].length == 512);
  CHECK((*view)[0].status == 3);
  CHECK((*view)[1].length == 0xffffffff);
  for (const size_t size : {0, 3, 4, 5, 11, 13, 19}) {
    CHECK_FALSE(BlockStatusView::Parse(kChunkBlockStatus, std::span(out).first(size)).has_value());
  }
  CHECK(BlockStatusView::Parse(kChunkBlockStatus, std::span(out).first(12))->size() == 1);
  StoreBlockStatusExtent(out.data() + 12, 0, 0);
  CHECK_FALSE(BlockStatusView::Parse(kChunkBlockStatus, out).has_value());
}

TEST_CASE("codec: block status with 64 bits") {
  std::array<char, 8 + 2 * 16> out;
  StoreBlockStatusExtHeader(out.data(), 7, 2);
  StoreBlockStatusExtExtent(out.data() + 8, uint64_t{1} << 40, 3);
  StoreBlockStatusExtExtent(out.data() + 24, 1, uint64_t{1} << 63);
  CHECK(std::string_view(out.data(), 24) == "\0\0\0\7\0\0\0\2\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\3"sv);
  const auto view = BlockStatusView::Parse(kChunkBlockStatusExt, out);
  REQUIRE(view.has_value());
  CHECK(view->context_id() == 7);
  REQUIRE(view->size() == 2);
  CHECK((*view)[0].length == uint64_t{1} << 40);
  CHECK((*view)[1].status == uint64_t{1} << 63);
  for (size_t size = 0; size < out.size(); ++size) {
    CHECK_FALSE(
        BlockStatusView::Parse(kChunkBlockStatusExt, std::span(out).first(size)).has_value());
  }
  StoreBlockStatusExtHeader(out.data(), 7, 3);  // the count disagrees with the length
  CHECK_FALSE(BlockStatusView::Parse(kChunkBlockStatusExt, out).has_value());
}

TEST_CASE("codec: error payloads") {
  std::array<char, 64> out;
  size_t size = StoreErrorPayload(out.data(), kErrorIo, "disk on fire");
  CHECK(std::string_view(out.data(), size) ==
        "\0\0\0\5\0\x0c"
        "disk on fire"sv);
  auto error = ParseErrorPayload(kChunkError, std::span(out).first(size));
  REQUIRE(error.has_value());
  CHECK(error->error == kErrorIo);
  CHECK(error->message == "disk on fire");
  CHECK_FALSE(error->offset.has_value());
  CHECK_FALSE(ParseErrorPayload(kChunkError, std::span(out).first(size + 1)).has_value());
  CHECK_FALSE(ParseErrorPayload(kChunkErrorOffset, std::span(out).first(size)).has_value());
  CHECK(ParseErrorPayload(kChunkErrorBit + 77, std::span(out).first(size + 1)).has_value());

  size = StoreErrorPayload(out.data(), kErrorInvalid, "", 0x1000);
  CHECK(std::string_view(out.data(), size) == "\0\0\0\x16\0\0\0\0\0\0\0\0\x10\0"sv);
  error = ParseErrorPayload(kChunkErrorOffset, std::span(out).first(size));
  REQUIRE(error.has_value());
  CHECK(error->offset == 0x1000);
  for (size_t shorter = 0; shorter < size; ++shorter) {
    CHECK_FALSE(ParseErrorPayload(kChunkErrorOffset, std::span(out).first(shorter)).has_value());
  }
  size = StoreErrorPayload(out.data(), kErrorNone, "success is no error");
  CHECK_FALSE(ParseErrorPayload(kChunkError, std::span(out).first(size)).has_value());
}

TEST_CASE("codec: a long error text is cut, a longer claim is refused") {
  std::array<char, kErrorPayloadBytesMax> out;
  const std::string text(5000, 'x');
  const size_t size = StoreErrorPayload(out.data(), kErrorIo, text, 1);
  CHECK(size == kErrorPayloadBytesMax);
  const auto error = ParseErrorPayload(kChunkErrorOffset, out);
  REQUIRE(error.has_value());
  CHECK(error->message.size() == kStringBytesMax);
  std::string wire(kErrorHeaderBytes + 4097, 'x');
  StoreU32(wire.data(), kErrorIo);
  StoreU16(wire.data() + 4, 4097);
  CHECK_FALSE(ParseErrorPayload(kChunkError, Bytes(wire)).has_value());
}

TEST_CASE("codec: the filter of a block status request") {
  std::array<char, 16> out;
  const std::array<uint32_t, 2> ids{1, 0x01020304};
  REQUIRE(StoreStatusFilter(out.data(), uint64_t{1} << 33, ids) == out.size());
  CHECK(std::string_view(out.data(), out.size()) == "\0\0\0\2\0\0\0\0\0\0\0\1\1\2\3\4"sv);
  const auto filter = StatusFilterView::Parse(out);
  REQUIRE(filter.has_value());
  CHECK(filter->effect_length() == uint64_t{1} << 33);
  REQUIRE(filter->size() == 2);
  CHECK((*filter)[1] == 0x01020304);
  CHECK(StatusFilterView::Parse(std::span(out).first(8))->size() == 0);
  for (const size_t size : {0, 7, 9, 10, 11, 13}) {
    CHECK_FALSE(StatusFilterView::Parse(std::span(out).first(size)).has_value());
  }
}

TEST_CASE("codec: greetings") {
  const std::string oldstyle = OldstyleGreeting(0x0102030405060708, 0x0103);
  REQUIRE(oldstyle.size() == kOldstyleBytes);
  CHECK(oldstyle.substr(0, 28) ==
        "NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\1\2\3\4\5\6\7\10\0\0\1\3"sv);
  CHECK(oldstyle.substr(28) == std::string(124, '\0'));
  CHECK(NewstyleGreeting(3) == "NBDMAGICIHAVEOPT\0\3"sv);
  CHECK(ExportNameReply(0x1000, 3, false) == "\0\0\0\0\0\0\x10\0\0\3"sv);
  CHECK(ExportNameReply(0, 1, true).size() == 134);
}

TEST_CASE("codec: option headers and replies") {
  CHECK(OptionRequest(kOptGo, "xy") == "IHAVEOPT\0\0\0\7\0\0\0\2xy"sv);
  const auto header = ParseOptionHeader(Bytes(OptionRequest(kOptGo, "xy")));
  REQUIRE(header.ok());
  CHECK(header->option == kOptGo);
  CHECK(header->length == 2);
  CHECK_FALSE(ParseOptionHeader(Bytes("IHAVEOPX\0\0\0\7\0\0\0\2"sv)).ok());
  CHECK(OptionReplyMessage(kOptList, kRepErrInvalid, "no") ==
        "\0\3\xe8\x89\x04\x55\x65\xa9\0\0\0\3\x80\0\0\3\0\0\0\2no"sv);
  const auto reply = ParseOptionReplyHeader(Bytes(OptionReplyMessage(kOptList, kRepAck)));
  REQUIRE(reply.ok());
  CHECK(reply->option == kOptList);
  CHECK(reply->type == kRepAck);
  CHECK(reply->length == 0);
  CHECK_FALSE(ParseOptionReplyHeader(Bytes("IHAVEOPT\0\0\0\7\0\0\0\2xxxx"sv)).ok());
}

TEST_CASE("codec: the data of INFO and GO") {
  const std::array<uint16_t, 2> infos{kInfoName, kInfoBlockSize};
  const std::string wire = EncodeInfoRequest("disk", infos);
  CHECK(wire == "\0\0\0\4disk\0\2\0\1\0\3"sv);
  const auto request = ParseInfoRequest(wire);
  REQUIRE(request.ok());
  CHECK(request->export_name == "disk");
  CHECK(request->Wants(kInfoBlockSize));
  CHECK_FALSE(request->Wants(kInfoDescription));
  for (size_t size = 0; size < wire.size(); ++size) {
    CHECK_FALSE(ParseInfoRequest(std::string_view(wire).substr(0, size)).ok());
  }
  CHECK_FALSE(ParseInfoRequest(wire + "x").ok());
  CHECK_FALSE(ParseInfoRequest("\xff\xff\xff\xff"sv).ok());
  CHECK_FALSE(ParseInfoRequest("\0\0\0\2a\0\0\0"sv).ok());
  CHECK(ParseInfoRequest(EncodeInfoRequest(std::string(4096, 'n'), {})).ok());
  CHECK_FALSE(ParseInfoRequest(EncodeInfoRequest(std::string(4097, 'n'), {})).ok());
}

TEST_CASE("codec: the data of meta context options") {
  const std::array<std::string, 2> queries{"base:allocation", "x:"};
  const std::string wire = EncodeMetaContextRequest("d", queries);
  CHECK(wire ==
        "\0\0\0\1d\0\0\0\2\0\0\0\x0f"
        "base:allocation\0\0\0\2x:"sv);
  const auto request = ParseMetaContextRequest(wire);
  REQUIRE(request.ok());
  CHECK(request->export_name == "d");
  REQUIRE(request->queries.size() == 2);
  CHECK(request->queries[1] == "x:");
  for (size_t size = 0; size < wire.size(); ++size) {
    const auto cut = ParseMetaContextRequest(std::string_view(wire).substr(0, size));
    CHECK(cut.status().code() == absl::StatusCode::kInvalidArgument);
  }
  CHECK_FALSE(ParseMetaContextRequest(wire + "x").ok());
  const auto claims_many = ParseMetaContextRequest("\0\0\0\0\xff\xff\xff\xff"sv);
  CHECK(claims_many.status().code() == absl::StatusCode::kInvalidArgument);
  const std::vector<std::string> many(limits::kMetaQueriesMax + 1);
  CHECK(ParseMetaContextRequest(EncodeMetaContextRequest("", many)).status().code() ==
        absl::StatusCode::kResourceExhausted);
}

TEST_CASE("codec: list entries and contexts") {
  CHECK(EncodeServerReply({"a", "big"}) == "\0\0\0\1abig"sv);
  const auto entry = ParseServerReply("\0\0\0\1abig"sv);
  REQUIRE(entry.ok());
  CHECK(entry->name == "a");
  CHECK(entry->description == "big");
  CHECK_FALSE(ParseServerReply("\0\0\0\5abig"sv).ok());
  CHECK_FALSE(ParseServerReply("\0\0\0"sv).ok());
  CHECK(EncodeMetaContextReply({5, "base:allocation"}) == "\0\0\0\5base:allocation"sv);
  const auto context = ParseMetaContextReply("\0\0\0\5x:y"sv);
  REQUIRE(context.ok());
  CHECK(context->id == 5);
  CHECK(context->name == "x:y");
  CHECK_FALSE(ParseMetaContextReply("\0\0\0"sv).ok());
}

TEST_CASE("codec: information replies") {
  CHECK(EncodeInfoExport(0x0102, 0x0103) == "\0\0\0\0\0\0\0\0\1\2\1\3"sv);
  CHECK(EncodeInfoText(kInfoDescription, "d") == "\0\2d"sv);
  CHECK(EncodeInfoBlockSize({1, 4096, 0x02000000}) == "\0\3\0\0\0\1\0\0\x10\0\2\0\0\0"sv);
  const auto info = ParseInfoReply(EncodeInfoExport(0x0102, 0x0103));
  REQUIRE(info.ok());
  CHECK(info->export_info->size_bytes == 0x0102);
  CHECK(info->export_info->flags == 0x0103);
  CHECK(ParseInfoReply("\0\1n"sv)->name == "n");
  CHECK(ParseInfoReply("\0\2d"sv)->description == "d");
  CHECK(ParseInfoReply(EncodeInfoBlockSize({512, 4096, 65536}))->block_sizes ==
        BlockSizes{512, 4096, 65536});
  const auto unknown = ParseInfoReply("\x12\x34whatever"sv);
  REQUIRE(unknown.ok());
  CHECK(unknown->type == 0x1234);
  CHECK_FALSE(ParseInfoReply("\0"sv).ok());
  CHECK_FALSE(ParseInfoReply(EncodeInfoExport(1, 1) + "x").ok());
  CHECK_FALSE(ParseInfoReply(EncodeInfoExport(1, 1).substr(0, 11)).ok());
  const auto impossible = ParseInfoReply(EncodeInfoBlockSize({3, 4096, 65536}));
  REQUIRE(impossible.ok());
  CHECK_FALSE(impossible->block_sizes.has_value());
  CHECK_FALSE(ParseInfoReply(EncodeInfoBlockSize({1, 4096, 65536}).substr(0, 13)).ok());
}

TEST_CASE("codec: which block sizes are possible") {
  CHECK(BlockSizes{1, 512, 512}.Valid());
  CHECK(BlockSizes{65536, 65536, 0xffffffff}.Valid());
  CHECK(BlockSizes{1, 4096, 5000}.Valid());
  CHECK_FALSE(BlockSizes{0, 4096, 65536}.Valid());
  CHECK_FALSE(BlockSizes{131072, 131072, 1 << 25}.Valid());
  CHECK_FALSE(BlockSizes{1, 256, 65536}.Valid());
  CHECK_FALSE(BlockSizes{4096, 512, 65536}.Valid());
  CHECK_FALSE(BlockSizes{1, 4096, 2048}.Valid());
}

TEST_CASE("codec: strings") {
  CHECK(CheckString("name", std::string(4096, 'x')).ok());
  CHECK_FALSE(CheckString("name", std::string(4097, 'x')).ok());
  CHECK_FALSE(CheckString("name", "a\0b"sv).ok());
}

TEST_CASE("nbd: errno and wire errors") {
  CHECK(WireErrorFromErrno(0) == 0);
  CHECK(WireErrorFromErrno(EROFS) == kErrorPerm);
  CHECK(WireErrorFromErrno(EDQUOT) == kErrorNoSpace);
  CHECK(WireErrorFromErrno(EFBIG) == kErrorNoSpace);
  CHECK(WireErrorFromErrno(ENOTSUP) == 95);
  CHECK(WireErrorFromErrno(ESHUTDOWN) == 108);
  CHECK(WireErrorFromErrno(EOVERFLOW) == 75);
  CHECK(WireErrorFromErrno(ENOENT) == kErrorIo);
  for (const int error : {EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN}) {
    CHECK(ErrnoFromWireError(WireErrorFromErrno(error)) == error);
  }
  CHECK(ErrnoFromWireError(0) == 0);
  CHECK(ErrnoFromWireError(4711) == EINVAL);
  CHECK(WireErrorFor(kCmdWriteZeroes, kCmdFlagFastZero, ENOTSUP) == kErrorNotSupported);
  CHECK(WireErrorFor(kCmdWriteZeroes, 0, ENOTSUP) == kErrorInvalid);
  CHECK(WireErrorFor(kCmdTrim, kCmdFlagFastZero, ENOTSUP) == kErrorInvalid);
  CHECK(WireErrorFor(kCmdRead, kCmdFlagDf, EOVERFLOW) == kErrorOverflow);
  CHECK(WireErrorFor(kCmdTrim, 0, EOVERFLOW) == kErrorOverflow);
  CHECK(WireErrorFor(kCmdWrite, 0, EOVERFLOW) == kErrorInvalid);
}

}  // namespace
}  // namespace blk::nbd
