// `blk hash`: one digest of a disk's content, whatever its format or allocation. XXH3-128 of a list
// of blocks: each block that is not all zero gives its offset, its length and its own XXH3-128; the
// size comes last. So holes cost nothing, and a hole and written zeroes are the same.
#define XXH_STATIC_LINKING_ONLY
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "src/core/buffer.h"
#include "src/core/zeroes.h"
#include "src/tools/inspect.h"
#include "src/tools/walk.h"

namespace blk {
namespace {

// Part of the digest's definition: never change it.
constexpr uint64_t kBlockBytes = 64 << 10;

struct HashConfig : CommonOptions {
  bool json = false;
};

const ParamTable<HashConfig>& HashRows() {
  static const auto& table = *[] {
    auto* rows = new ParamTable<HashConfig>;
    rows->Param("json", &HashConfig::json, {.help = "print JSON"});
    return &AddCommonOptions(*rows);
  }();
  return table;
}

void StoreLittleEndian(unsigned char* out, uint64_t value) {
  for (int i = 0; i < 8; ++i) out[i] = static_cast<unsigned char>(value >> (8 * i));
}

class ContentHash {
 public:
  ContentHash() : block_(kBlockBytes) { XXH3_128bits_reset(&state_); }

  absl::Status Data(uint64_t offset, std::span<const char> bytes) {
    while (!bytes.empty()) {
      uint64_t at = offset % kBlockBytes;
      size_t step = std::min<uint64_t>(kBlockBytes - at, bytes.size());
      if (at == 0 && step == kBlockBytes) {
        Block(offset, bytes.first(step));  // without a copy
      } else {
        if (!pending_) {
          std::memset(block_.data(), 0, kBlockBytes);
          pending_ = true;
          pending_offset_ = offset - at;
        }
        std::memcpy(block_.data() + at, bytes.data(), step);
        if (at + step == kBlockBytes) FinishPending();
      }
      offset += step;
      bytes = bytes.subspan(step);
    }
    return absl::OkStatus();
  }

  absl::Status Zero(uint64_t offset, uint64_t length) {
    if (pending_ && offset + length >= pending_offset_ + kBlockBytes) FinishPending();
    return absl::OkStatus();
  }

  std::string Finish(uint64_t size) {
    FinishPending();
    unsigned char bytes[8];
    StoreLittleEndian(bytes, size);
    XXH3_128bits_update(&state_, bytes, sizeof bytes);
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state_));
    std::string text;
    for (unsigned char c : canonical.digest) {
      char hex[3];
      std::snprintf(hex, sizeof hex, "%02x", c);
      text += hex;
    }
    return text;
  }

 private:
  // The last block of the disk is filled up with zeroes: the size tells it apart.
  void FinishPending() {
    if (!std::exchange(pending_, false)) return;
    Block(pending_offset_, block_.span());
  }
  void Block(uint64_t offset, std::span<const char> bytes) {
    if (IsZero(bytes.data(), bytes.size())) return;
    XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
    unsigned char record[24];
    StoreLittleEndian(record, offset);
    StoreLittleEndian(record + 8, hash.low64);
    StoreLittleEndian(record + 16, hash.high64);
    XXH3_128bits_update(&state_, record, sizeof record);
  }

  XXH3_state_t state_;
  Buffer block_;
  bool pending_ = false;
  uint64_t pending_offset_ = 0;
};

void PrintDigest(ContentHash* hash, uint64_t size, const HashConfig& config) {
  std::string digest = hash->Finish(size);
  if (config.json) {
    std::printf("{\"algorithm\": \"blk-xxh3-128\", \"digest\": \"%s\", \"size\": %ju}\n",
                digest.c_str(), uintmax_t{size});
  } else {
    std::printf("%s\n", digest.c_str());
  }
}

Task<absl::Status> Hash(Device* device, const HashConfig* config) {
  ContentHash hash;
  WalkData take;
  take.take_data = [&hash](uint64_t offset, std::span<const char> bytes) {
    return hash.Data(offset, bytes);
  };
  take.take_zero = [&hash](uint64_t offset, uint64_t length) { return hash.Zero(offset, length); };
  BLK_CO_RETURN_IF_ERROR(co_await WalkContent(device, 0, device->size(), std::move(take)));
  PrintDigest(&hash, device->size(), *config);
  co_return absl::OkStatus();
}

// Standard input, to its end: the same digest as that of a disk with these bytes.
absl::Status HashInput(const HashConfig& config) {
  ContentHash hash;
  Buffer buffer(kBlockBytes);
  uint64_t offset = 0;
  for (;;) {
    ssize_t got = read(STDIN_FILENO, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, "cannot read from standard input");
    if (got == 0) break;
    BLK_RETURN_IF_ERROR(hash.Data(offset, {buffer.data(), static_cast<size_t>(got)}));
    offset += got;
  }
  PrintDigest(&hash, offset, config);
  return absl::OkStatus();
}

int HashMain(std::span<const std::string> arguments) {
  HashConfig config;
  int exit_status = 0;
  auto words = ParseTool("hash", HashRows(), &config, arguments, &exit_status, {.brackets = true});
  if (!words) return exit_status;
  if (words->size() == 1 && words->front() == "-") return ExitStatusOf("hash", HashInput(config));
  return InspectDisk("hash", *words, {},
                     [&config](Device* device) { return Hash(device, &config); });
}

}  // namespace

Tool HashTool() {
  return {.name = "hash",
          .summary = "one digest of a disk's content, whatever its format or allocation",
          .synopsis = "[OPTIONS] DISK",
          .examples = {{"blk hash disk.img", "holes cost nothing"},
                       {"zstdcat disk.zst | blk hash -", "of standard input"},
                       {"blk hash -- [ qemu-nbd -r -f qcow2 disk.qcow2 ]",
                        "the same digest as that of the raw disk"}},
          .rows = []() -> const ParamRows& { return HashRows(); },
          .run = HashMain};
}

}  // namespace blk
