#pragma once
// Backends that run a script of nbdkit's in its own interpreter: a Spec for a language, whose
// bridge speaks docs/exec-protocol.md. Threads: as conversation.h.
#include <string>
#include <string_view>
#include <vector>

#include "src/backends/script/conversation.h"
#include "src/core/spec.h"

namespace blk::script {

struct Language {
  std::string_view name;  // of the backend
  std::string_view summary;
  std::string_view description;  // what of the language's plugin manual page there is to know
  std::string_view example;      // an in-line spec, printed
  // The interpreter: the first of these files that there is, else the last, looked for on the PATH.
  std::vector<std::string> interpreters;
  // What the interpreter gets before the script: how it reads the bridge at descriptor 4.
  std::vector<std::string> arguments;
  std::string_view bridge;
  ConversationOptions::Channel channel = ConversationOptions::Channel::kDescriptor3;
};

// `language` lives for ever.
Spec MakeHostSpec(const Language& language);

}  // namespace blk::script

// A file beside a source as a string literal would be, at compile time.
#define BLK_EMBEDDED_BEGIN \
  _Pragma("clang diagnostic push") _Pragma("clang diagnostic ignored \"-Wc23-extensions\"")
#define BLK_EMBEDDED_END _Pragma("clang diagnostic pop")
