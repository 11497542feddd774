#include "src/backends/script/host.h"

#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/backends/script/program_layer.h"

namespace blk::script {
namespace {

struct Config {
  std::string script;
  std::vector<std::pair<std::string, std::string>> config;
  std::optional<Nanoseconds> timeout;
  std::string interpreter;
};

std::string FindInterpreter(const Language& language) {
  for (const std::string& path : language.interpreters) {
    if (path.starts_with('/') && access(path.c_str(), X_OK) == 0) return path;
  }
  return language.interpreters.back();
}

// The server may go to the background, where paths begin at the root. One that is not there is left
// to the interpreter, which says so.
std::string AbsolutePath(const std::string& path) {
  char* absolute = realpath(path.c_str(), nullptr);
  if (absolute == nullptr) return path;
  std::string result = absolute;
  std::free(absolute);
  return result;
}

absl::StatusOr<LayerPtr> MakeLayer(const Language& language, Config config) {
  Command command;
  command.argv = {config.interpreter.empty() ? FindInterpreter(language) : config.interpreter};
  command.argv.insert(command.argv.end(), language.arguments.begin(), language.arguments.end());
  command.argv.push_back(AbsolutePath(config.script));
  ConversationOptions options{.name = std::move(config.script),
                              .command = std::move(command),
                              .channel = language.channel,
                              .bridge = language.bridge};
  if (config.timeout) options.timeout_ns = config.timeout->count();
  return MakeProgramLayer(std::make_unique<Conversation>(std::move(options)),
                          {.config = std::move(config.config)});
}

}  // namespace

Spec MakeHostSpec(const Language& language) {
  return BackendSpec<Config>(language.name, language.summary)
      .Description(absl::StrCat(
          language.description,
          "\n\nThe script runs in the language's own interpreter, a process of its own that lives "
          "as long as the server. If it ends, the requests under way fail, and it is started again "
          "for the next client. If it hangs, it is ended some seconds after its client has left, "
          "or after blk-timeout."))
      .Param("script", &Config::script,
             {.help = "the script",
              .required = true,
              .magic = true,
              .word = "PATH",
              .path = PathUse::kRead})
      .Param("blk-timeout", &Config::timeout, {.help = "longest time that a method may take"})
      .Param("blk-interpreter", &Config::interpreter,
             {.help = absl::StrCat("the interpreter, if not ", language.interpreters.back()),
              .word = "PROGRAM"})
      .AnyKey(&Config::config, "given to the script's config function", /*takes_words=*/true)
      .PrintedExample(language.example)
      .Needs(Need::Kind::kProgram, language.interpreters.back())
      .Make([&language](Config config) { return MakeLayer(language, std::move(config)); });
}

}  // namespace blk::script
