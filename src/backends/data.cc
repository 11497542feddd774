// data: a disk whose content is written on the command line. Writes go to memory and are lost at
// exit. Parallel-safe: the store behind it is.
#include <unistd.h>

#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "src/backends/data/describe.h"
#include "src/backends/data/evaluate.h"
#include "src/backends/data/image.h"
#include "src/backends/data/inputs.h"
#include "src/backends/data/parse.h"
#include "src/backends/page_store.h"
#include "src/backends/store_device.h"
#include "src/core/spec.h"
#include "src/core/suggest.h"
#include "src/core/trace.h"

namespace blk {
namespace {

struct Config {
  std::optional<std::string> data;
  std::optional<std::string> raw;
  std::optional<std::string> base64;
  std::optional<Size> size;
  std::string allocator = "sparse";
  std::vector<std::pair<std::string, std::string>> variables;
};

uint64_t PhysicalMemoryBytes() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
}

class StoreSink final : public DataSink {
 public:
  explicit StoreSink(PageStore& store) : store_(store) {}
  absl::Status Put(uint64_t offset, std::string_view bytes) override {
    return store_.Write(offset, bytes);
  }

 private:
  PageStore& store_;
};

absl::StatusOr<ImagePtr> Resize(const ImagePtr& image, uint64_t size) {
  if (image->size() >= size) return SliceImage(image, 0, size);
  ImageBuilder builder;
  BLK_RETURN_IF_ERROR(builder.Write(0, image));
  builder.Extend(size);
  return builder.Build();
}

void LogTree(const DataProgram& program) {
  LogDebug("BEGIN AST (-D data.AST=1)");
  for (const std::string& line : DescribeData(program)) LogDebug(line);
  LogDebug("END AST");
}

class DataLayer final : public Layer {
 public:
  // The content is the program, or else the bytes.
  DataLayer(Config config, std::optional<DataProgram> program, std::string bytes)
      : config_(std::move(config)), program_(std::move(program)), bytes_(std::move(bytes)) {}

  // Reads the files, runs the scripts and fills the store.
  absl::Status Ready() override {
    BLK_ASSIGN_OR_RETURN(ImagePtr image, MakeImage());
    program_.reset();
    const uint64_t size = config_.size ? config_.size->bytes : image->size();
    BLK_ASSIGN_OR_RETURN(image, Resize(image, size));
    BLK_ASSIGN_OR_RETURN(auto store, PageStore::Create(config_.allocator, size));
    StoreSink sink(*store);
    // Compressed or shared pages may stand for more than there is memory; plain ones do not.
    const bool plain = config_.allocator.starts_with("sparse");
    const uint64_t stored_bytes_max =
        plain ? PhysicalMemoryBytes() / 8 * 7 : std::numeric_limits<uint64_t>::max();
    BLK_RETURN_IF_ERROR(Annotate(RenderImage(*image, stored_bytes_max, sink), "data"));
    device_ = std::make_shared<StoreDevice>(std::move(store), size);
    return absl::OkStatus();
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs) override {
    return absl::StatusOr<DevicePtr>(device_);
  }

 private:
  absl::StatusOr<ImagePtr> MakeImage() {
    if (!program_) return BytesImage(std::move(bytes_));
    if (DebugFlag("data.AST")) LogTree(*program_);
    DataOptions options;
    options.open_file = OpenDataFile;
    options.open_script = OpenDataScript;
    options.held_bytes_max = PhysicalMemoryBytes() / 2;
    if (config_.size) options.need = config_.size->bytes;
    return EvaluateData(*program_, options);
  }

  const Config config_;
  std::optional<DataProgram> program_;
  std::string bytes_;
  DevicePtr device_;
};

// A key that nothing asks for and that looks like one of ours is a slip, not a variable.
absl::Status CheckUnused(std::string_view key) {
  constexpr std::string_view kOurs[] = {"data", "raw", "base64", "size", "allocator"};
  const std::string hint = DidYouMean(key, kOurs);
  if (hint.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("data: ", key, ": unknown parameter, and the expression has no $", key, hint));
}

absl::StatusOr<DataProgram> Parse(const Config& config) {
  std::vector<bool> used(config.variables.size());
  auto variables = [&](std::string_view name) -> std::optional<std::string> {
    for (size_t i = config.variables.size(); i-- > 0;) {  // The last one counts.
      if (config.variables[i].first != name) continue;
      used[i] = true;
      return config.variables[i].second;
    }
    const char* value = std::getenv(std::string(name).c_str());
    return value ? std::optional<std::string>(value) : std::nullopt;
  };
  BLK_ASSIGN_OR_RETURN(DataProgram program, ParseData(*config.data, variables));
  for (size_t i = 0; i < used.size(); ++i) {
    if (!used[i]) BLK_RETURN_IF_ERROR(CheckUnused(config.variables[i].first));
  }
  return program;
}

absl::StatusOr<LayerPtr> MakeLayer(Config config) {
  const int given = config.data.has_value() + config.raw.has_value() + config.base64.has_value();
  if (given == 0) {
    return absl::InvalidArgumentError(
        "raw|base64|data parameter was not specified: give the content of the disk, such as "
        "'0x55*512'");
  }
  if (given > 1) {
    return absl::InvalidArgumentError(
        "raw|base64|data parameter must be specified exactly once: leave the others out");
  }
  if (!config.data && !config.variables.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "extra parameters passed and not using data='...': ", config.variables[0].first,
        "= means nothing with raw= or base64="));
  }
  std::optional<DataProgram> program;
  std::string bytes;
  if (config.data) {
    BLK_ASSIGN_OR_RETURN(program, Parse(config));
  } else if (config.raw) {
    bytes = *std::move(config.raw);
  } else if (!absl::Base64Unescape(*config.base64, &bytes)) {
    return absl::InvalidArgumentError(
        "base64: not base64: use A-Z, a-z, 0-9, +, / and = at the end");
  }
  return std::make_shared<DataLayer>(std::move(config), std::move(program), std::move(bytes));
}

}  // namespace

const Spec& DataSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("data", "a small disk written on the command line")
          .Description(
              "The expression is a list of what comes one after another on the disk:\n\n"
              "  0 255 0x55 0377      bytes, decimal, hexadecimal or octal\n"
              "  le16:0xaa55          a number of 16, 32 or 64 bits (le: low byte first, be: "
              "high)\n"
              "  \"text\\n\\x41\"         a string with the escapes of C\n"
              "  @512 @+8 @-2 @^4K    moves: to, forward, back, up to a multiple of a power of "
              "two\n"
              "  <FILE                the content of a file\n"
              "  <(SCRIPT)            the output of a shell script (bash, else sh)\n"
              "  ( ... )              a part with offsets of its own\n"
              "  EXPR*N               repeated N times\n"
              "  EXPR[N:M]            its bytes from N up to before M; either may be left out\n"
              "  EXPR -> \\NAME        gives it a name instead of writing it; \\NAME writes it\n"
              "  $VAR                 an expression from a parameter VAR=EXPR or the environment\n"
              "  # comment            up to the end of the line\n\n"
              "Counts and offsets take suffixes (1K, 2M, 3G ...). Files and scripts are read only "
              "as "
              "far as a slice, or size=, needs: <( yes )[:512] ends. Each is read once however "
              "often "
              "it is used. A script that fails is an error. Zeroes take no memory, and a repeat "
              "takes what is seen of it.\n\n"
              "The disk can be written to; what is written is lost at the end.")
          .Param("data", &Config::data,
                 {.help = "content as an expression", .magic = true, .word = "EXPR"})
          .Param("raw", &Config::raw, {.help = "content as it stands", .word = "BYTES"})
          .Param("base64", &Config::base64, {.help = "content in base64", .word = "BASE64"})
          .Param(
              "size", &Config::size,
              {.help = "size of the disk, if not that of the content: cut, or filled with zeroes"})
          .Param("allocator", &Config::allocator,
                 {.help = "how it is kept: sparse, malloc[,mlock=true], zstd[,level=N], dedup"})
          .AnyKey(&Config::variables, "expression for $VAR in the data")
          .Example("data:0x55*1K", "a kilobyte of one byte")
          .Example("data:(0x55 0xAA)*2048", "two bytes in turn")
          .Example("data:\"hello\" @^512 $tail(tail=1 2 3,size=1M)", "a variable, and a size")
          .Example("data(base64=aGVsbG8=)", "five bytes")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
