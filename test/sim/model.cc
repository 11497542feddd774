#include "test/sim/model.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace blk::sim {

Model::Model(uint64_t sectors, uint64_t sector_bytes)
    : sectors_(sectors), sector_bytes_(sector_bytes), touch_(sectors) {
  End(Begin(0, sectors, true, true), Answer::kOk);
}

size_t Model::Begin(uint64_t first_sector, uint64_t sectors, bool zero, bool fua) {
  changes_.push_back({first_sector, sectors, zero, fua, Now()});
  for (uint64_t i = 0; i < sectors; ++i) touch_[first_sector + i].push_back(changes_.size() - 1);
  return changes_.size() - 1;
}

void Model::End(size_t change, Answer answer) {
  if (answer == Answer::kNone) return;
  changes_[change].ended = Now();
  changes_[change].ok = answer == Answer::kOk;
}

size_t Model::BeginFlush() {
  flushes_.push_back({Now()});
  return flushes_.size() - 1;
}
void Model::EndFlush(size_t flush, Answer answer) { flushes_[flush].ok = answer == Answer::kOk; }

// Words that name the change and the sector.
void Model::Put(char* out, size_t change, uint64_t sector) const {
  if (changes_[change].zero) {
    std::memset(out, 0, sector_bytes_);
    return;
  }
  for (uint64_t at = 0; at < sector_bytes_; at += 8) {
    uint64_t word = uint64_t{change} << 32 | sector << 16 | (at / 8 + 1);
    std::memcpy(out + at, &word, 8);
  }
}

std::string Model::Bytes(size_t change) const {
  std::string bytes(changes_[change].sectors * sector_bytes_, '\0');
  for (uint64_t i = 0; i < changes_[change].sectors; ++i)
    Put(bytes.data() + i * sector_bytes_, change, changes_[change].first_sector + i);
  return bytes;
}

bool Model::MayHold(uint64_t sector, std::string_view bytes, uint64_t began, uint64_t ended,
                    bool only_stable) const {
  std::string want(sector_bytes_, '\0');
  for (size_t candidate : touch_[sector]) {
    const Change& change = changes_[candidate];
    if (change.began > ended) continue;
    Put(want.data(), candidate, sector);
    if (want != bytes) continue;
    bool replaced = std::any_of(touch_[sector].begin(), touch_[sector].end(), [&](size_t other) {
      const Change& later = changes_[other];
      return later.ok && later.began > change.ended && later.ended < began &&
             (later.stable || !only_stable);
    });
    if (!replaced) return true;
  }
  return false;
}

std::string Model::Describe(uint64_t sector, std::string_view bytes) const {
  uint64_t word = 0;
  std::memcpy(&word, bytes.data(), 8);
  std::string text = absl::StrCat("sector ", sector, " holds change ", word >> 32, " of sector ",
                                  word >> 16 & 0xffff, "; of it the model knows:");
  for (size_t i : touch_[sector])
    absl::StrAppend(&text, " ", i, changes_[i].zero ? "(zero)" : "", changes_[i].ok ? "ok" : "",
                    changes_[i].stable ? "!" : "", "[", changes_[i].began, ",",
                    changes_[i].ended == kNever ? 0 : changes_[i].ended, "]");
  return text;
}

std::string Model::JudgeRead(uint64_t began, uint64_t first_sector, std::string_view bytes) {
  const uint64_t ended = Now();
  for (uint64_t i = 0; i * sector_bytes_ < bytes.size(); ++i) {
    std::string_view sector = bytes.substr(i * sector_bytes_, sector_bytes_);
    if (!MayHold(first_sector + i, sector, began, ended, false))
      return absl::StrCat("a read gave what cannot be there: ", Describe(first_sector + i, sector));
  }
  return "";
}

std::string Model::JudgeCrash(std::string_view disk) {
  for (Change& change : changes_) {
    change.stable = change.ok && change.fua;
    for (const Flush& flush : flushes_)
      change.stable |= change.ok && flush.ok && flush.began > change.ended;
  }
  for (uint64_t sector = 0; sector < sectors_; ++sector) {
    std::string_view bytes = disk.substr(sector * sector_bytes_, sector_bytes_);
    if (!MayHold(sector, bytes, kNever, kNever, true))
      return absl::StrCat("a crash lost what was acknowledged: ", Describe(sector, bytes));
  }
  return "";
}

}  // namespace blk::sim
