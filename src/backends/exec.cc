// exec: a disk that a program of any language is, started once: docs/exec-protocol.md.
// The program gets requests as they come and answers in its own order, so no thread model but
// serialize_connections is enforced here.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/backends/script/conversation.h"
#include "src/backends/script/program_layer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  std::string command;
  std::vector<std::pair<std::string, std::string>> config;
  std::optional<Nanoseconds> timeout;
};

absl::StatusOr<LayerPtr> MakeLayer(Config config) {
  script::ConversationOptions options{.name = absl::StrCat("exec: ", config.command),
                                      .command = ShellCommand("exec " + config.command)};
  if (config.timeout) options.timeout_ns = config.timeout->count();
  return script::MakeProgramLayer(std::make_unique<script::Conversation>(std::move(options)),
                                  {.config = std::move(config.config)});
}

}  // namespace

const Spec& ExecSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("exec", "a program of yours, started once, in any language")
          .Description(
              "The program reads requests from its standard input and writes answers to its "
              "standard output: a line, `7 pread 0 handle 4096 512`, and `7 ok 4096` with so many "
              "bytes after it. Methods, arguments and answers are those of the `sh` backend; "
              "docs/exec-protocol.md has the few rules beyond. Many requests may be sent before "
              "the first is answered, and answers come in any order, so that a program may work "
              "on them one by one or in parallel.\n\n"
              "A program that ends, or that sends what is no answer, fails the requests under "
              "way; it is started again for the next client. One that hangs is ended some seconds "
              "after its client has left, or after blk-timeout.")
          .Param("command", &Config::command,
                 {.help = "the program and its arguments, as for a shell",
                  .required = true,
                  .magic = true,
                  .word = "COMMAND"})
          .Param("blk-timeout", &Config::timeout, {.help = "longest time that a method may take"})
          .AnyKey(&Config::config, "given to the program's config method", /*takes_words=*/true)
          .PrintedExample("exec:./disk", "a program as a disk")
          .PrintedExample("exec(command=python3 disk.py,file=/tmp/disk.img)",
                          "one with arguments, that takes a parameter")
          .Needs(Need::Kind::kProgram)
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
