#pragma once
// Model: what a disk may hold, told by what was asked of it and what was answered. The judge of the
// simulation; it knows nothing of how anything works.
//
// Time is a count of events. A change of a sector is one of
//   - answered OK: it took place between its beginning and its end;
//   - answered with an error: it took place then or never, sector by sector;
//   - not answered, because the connection was lost: it may take place at any time from its
//     beginning on.
// A sector holds the value of a change unless a change that began after that one had ended took its
// place. After a crash the same holds, but only changes that are stable take places: acknowledged
// with FUA, or before a flush began that was acknowledged.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace blk::sim {

enum class Answer { kOk, kFailed, kNone };

class Model {
 public:
  // Every change writes whole sectors, of which each is told from all others, or zeroes.
  Model(uint64_t sectors, uint64_t sector_bytes);

  // A change is about to be asked for. The number is for End() and Bytes().
  size_t Begin(uint64_t first_sector, uint64_t sectors, bool zero, bool fua);
  void End(size_t change, Answer answer);
  // What the change writes.
  std::string Bytes(size_t change) const;

  size_t BeginFlush();
  void EndFlush(size_t flush, Answer answer);

  uint64_t Now() { return ++now_; }
  // What a read that began at `began` and ends now has given; "" if it may be so.
  std::string JudgeRead(uint64_t began, uint64_t first_sector, std::string_view bytes);
  // What is on the disk after a crash, once all answers are in.
  std::string JudgeCrash(std::string_view disk);

 private:
  static constexpr uint64_t kNever = UINT64_MAX;
  struct Change {
    uint64_t first_sector, sectors;
    bool zero, fua;
    uint64_t began, ended = kNever;
    bool ok = false;
    bool stable = false;
  };
  struct Flush {
    uint64_t began;
    bool ok = false;
  };

  void Put(char* out, size_t change, uint64_t sector) const;
  // Whether `sector` may hold `bytes` for somebody who looked from `began` to `ended`.
  bool MayHold(uint64_t sector, std::string_view bytes, uint64_t began, uint64_t ended,
               bool only_stable) const;
  std::string Describe(uint64_t sector, std::string_view bytes) const;

  const uint64_t sectors_, sector_bytes_;
  uint64_t now_ = 0;
  std::vector<Change> changes_;             // the first is how the disk began: all zeroes
  std::vector<std::vector<size_t>> touch_;  // of each sector, the changes
  std::vector<Flush> flushes_;
};

}  // namespace blk::sim
