#pragma once
// What a tool's command line names as a disk: a path, a block device, an NBD URI, an in-line spec,
// `null:`, `-` (standard input or output), or `[ COMMAND ARGUMENTS… ]`, a captive server.
// `[ blk serve … ]` and `[ serve … ]` are opened in this process, with no socket.
//
// Parsing happens before loops run (a password may be asked for); opening happens on a loop.
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/backends/stack.h"
#include "src/core/arena.h"
#include "src/core/layer.h"

namespace blk {

class CaptiveServer;
struct NbdConnectOptions;

class Endpoint {
 public:
  enum class Kind { kStack, kCaptive, kNull, kStream };

  // `words`: one word, or a command between `[` and `]`.
  static absl::StatusOr<Endpoint> Parse(std::span<const std::string> words);
  // What the names of other programs take, where a word has one meaning only.
  static absl::StatusOr<Endpoint> Uri(std::string uri);  // of NBD
  static absl::StatusOr<Endpoint> Path(std::string path);
  static Endpoint Captive(std::vector<std::string> command);  // it has our standard input
  static Endpoint Null();
  // `fd`: to read from or to write to, the caller's.
  static Endpoint Stream(std::string text, int fd);
  Endpoint(Endpoint&&);
  Endpoint& operator=(Endpoint&&);
  ~Endpoint();

  Kind kind() const { return kind_; }
  const std::string& text() const { return text_; }  // as it was given, for messages
  // A file that a target may create; empty for all else.
  const std::string& path() const { return plan_.path; }
  // kStream: standard input or output unless another was given.
  int stream_fd(bool writing) const { return fd_ >= 0 ? fd_ : writing ? 1 : 0; }
  // The file whose content this is, also under filters; empty for all else.
  const std::string& file() const { return file_; }

  struct Wish {
    bool read_only = true;
    // Targets: the size that a path is given, and that `null:` has.
    std::optional<uint64_t> create_bytes = std::nullopt;
    bool writes_behind = false;              // the target's flush will come soon
    int connections = 4;                     // of NBD, at most
    std::shared_ptr<Arena> arena = nullptr;  // that the tool's buffers come from
    bool shm = true;                         // offer shared memory to NBD servers
    std::vector<std::string> contexts = {};  // further metadata contexts to ask servers for
  };
  // The NBD server that this is about, if it is one with no filter over it; a captive one is
  // started.
  Task<absl::StatusOr<std::optional<NbdConnectOptions>>> NbdServer();
  // What to say of a failure of the server that NbdServer() told of: more, if it was a captive one
  // that has ended.
  Task<absl::Status> Explain(absl::Status failure);
  // Opens it; not for kStream. Call Close() afterwards, also after a failure.
  Task<absl::StatusOr<DevicePtr>> Open(Wish wish);
  // After Open() with create_bytes: everything in the target is known to read as zeroes.
  bool reads_as_zeroes() const { return reads_as_zeroes_; }
  // Closes the device and stops what was started for it.
  Task<absl::Status> Close();

 private:
  Endpoint();
  Task<absl::Status> StartCaptive();
  Task<absl::StatusOr<LayerPtr>> MakeLayer(const Wish& wish);

  Kind kind_ = Kind::kStack;
  std::string text_;
  std::string export_name_;
  bool read_only_ = false;
  StackPlan plan_;
  std::string file_;
  std::vector<std::string> command_;
  bool captive_input_ = false;  // the captive server has our standard input
  int fd_ = -1;
  std::unique_ptr<CaptiveServer> captive_;
  LayerPtr layer_;
  DevicePtr device_;
  bool reads_as_zeroes_ = false;
};

// Splits a tool's words into its disks: each a word, or the words between `[` and `]`, brackets
// included. Wrong brackets are an error.
absl::StatusOr<std::vector<std::vector<std::string>>> SplitEndpoints(
    std::span<const std::string> words);

}  // namespace blk
