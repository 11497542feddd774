#include "src/tools/libnbd_options.h"

#include <getopt.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "absl/strings/ascii.h"
#include "src/core/units.h"

namespace blk {
namespace {

constexpr int kFirstRow = 256;  // beyond all letters

const LibnbdRow* FindRow(const LibnbdProgram& program, int code) {
  if (code >= kFirstRow) return &program.rows[code - kFirstRow];
  for (const LibnbdRow& row : program.rows)
    if (code && row.letter == code) return &row;
  return nullptr;
}

std::vector<option> LongOptions(const LibnbdProgram& program) {
  std::vector<option> result;
  for (const LibnbdRow& row : program.rows)
    result.push_back({row.name, static_cast<int>(row.value), nullptr,
                      kFirstRow + static_cast<int>(result.size())});
  result.push_back({});
  return result;
}

// The lists with which shells complete.
void PrintLongOptions(const LibnbdProgram& program) {
  for (const LibnbdRow& row : program.rows) {
    bool listed = std::strcmp(row.name, "long-options") != 0 &&
                  std::strcmp(row.name, "short-options") != 0 && !row.newer;
    if (listed) std::printf("--%s\n", row.name);
  }
}

void PrintShortOptions(const LibnbdProgram& program) {
  for (const char* letter = program.short_options; *letter; ++letter)
    if (*letter != ':') std::printf("-%c\n", *letter);
}

// Rows without an action of their own.
void DoCommonRow(const LibnbdProgram& program, std::string_view name) {
  if (name == "help") std::fputs(program.usage, stdout);
  if (name == "long-options") PrintLongOptions(program);
  if (name == "short-options") PrintShortOptions(program);
  if (name == "version") {
    const std::string version(kLibnbdVersion);
    std::printf("%s %s\nlibnbd %s\n", program.name, version.c_str(), version.c_str());
  }
}

// A whole number with one of the letters of sizes, and nothing else.
std::optional<uint64_t> SizeWithUnit(const char* text) {
  size_t digits = std::strspn(text, "0123456789");
  bool has_unit = digits > 0 && absl::ascii_isalpha(text[digits]) && !text[digits + 1];
  if (!has_unit) return std::nullopt;
  auto size = ParseSize(text);
  if (!size.ok()) return std::nullopt;
  return size->bytes;
}

}  // namespace

std::optional<std::vector<std::string>> ParseLibnbdOptions(const LibnbdProgram& program,
                                                           std::string_view shown_name,
                                                           std::span<const std::string> arguments,
                                                           int* exit_status) {
  std::vector<std::string> texts(arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& text : texts) argv.push_back(text.data());
  argv.push_back(nullptr);
  const int argc = static_cast<int>(texts.size());
  const std::vector<option> long_options = LongOptions(program);
  *exit_status = 0;
  optind = 0;  // begins anew
  for (;;) {
    int code = getopt_long(argc, argv.data(), program.short_options, long_options.data(), nullptr);
    if (code == -1) break;
    const LibnbdRow* row = FindRow(program, code);
    if (!row) {  // getopt has said what was wrong
      *exit_status = WrongLibnbdUsage(program);
      return std::nullopt;
    }
    if (!row->take) {
      DoCommonRow(program, row->name);
      return std::nullopt;
    }
    if (absl::Status status = row->take(optarg); !status.ok()) {
      *exit_status = LibnbdExitStatus(shown_name, status);
      return std::nullopt;
    }
  }
  return std::vector<std::string>(argv.begin() + optind, argv.begin() + argc);
}

int WrongLibnbdUsage(const LibnbdProgram& program) {
  std::fputs(program.usage, stderr);
  return 1;
}

int LibnbdExitStatus(std::string_view shown_name, const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "%.*s: %s\n", static_cast<int>(shown_name.size()), shown_name.data(),
               std::string(status.message()).c_str());
  return 1;
}

std::optional<uint32_t> ScanUnsigned(const char* text) {
  if (auto size = SizeWithUnit(text); size && *size <= UINT32_MAX)
    return static_cast<uint32_t>(*size);
  unsigned value;
  if (std::sscanf(text, "%u", &value) != 1) return std::nullopt;
  return value;
}

std::optional<uint64_t> ScanUnsigned64(const char* text) {
  if (auto size = SizeWithUnit(text)) return size;
  uint64_t value;
  if (std::sscanf(text, "%" SCNu64, &value) != 1) return std::nullopt;
  return value;
}

LibnbdRow LibnbdSwitch(const char* name, bool* flag, bool value, char letter) {
  auto take = [flag, value](const char*) {
    *flag = value;
    return absl::OkStatus();
  };
  return {.name = name, .letter = letter, .take = take};
}

void AddLibnbdColourRows(std::vector<LibnbdRow>* rows, bool* colour) {
  for (const char* name : {"color", "colors", "colour", "colours"})
    rows->push_back(LibnbdSwitch(name, colour));
  for (const char* name : {"no-color", "no-colors", "no-colour", "no-colours"})
    rows->push_back(LibnbdSwitch(name, colour, false));
}

}  // namespace blk
