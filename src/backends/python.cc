// python: an nbdkit plugin written in Python. See script/host.h and script/bridges/python.py.
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "src/backends/script/host.h"

namespace blk {
namespace {

BLK_EMBEDDED_BEGIN
constexpr char kBridge[] = {
#embed "src/backends/script/bridges/python.py"
};
BLK_EMBEDDED_END

// A virtual environment that is active, the system's Python with the system's modules, any.
std::vector<std::string> Interpreters() {
  std::vector<std::string> paths;
  const char* environment = std::getenv("VIRTUAL_ENV");
  if (environment != nullptr) paths.push_back(absl::StrCat(environment, "/bin/python3"));
  paths.push_back("/usr/bin/python3");
  paths.push_back("python3");
  return paths;
}

}  // namespace

const Spec& PythonSpec() {
  static const auto& language = *new script::Language{
      .name = "python",
      .summary = "a plugin written in Python",
      .description =
          "A script as nbdkit-python-plugin(3) has them, API_VERSION 1 and 2, with `import nbdkit` "
          "for what the server offers. open, get_size and pread are needed. In a script whose "
          "thread_model is parallel (or serialize_requests), up to 16 calls run at a time.",
      .example = "python:./disk.py",
      .interpreters = Interpreters(),
      .arguments = {"-c", "exec(compile(open(4).read(),'blk-bridge','exec'))"},
      .bridge = {kBridge, sizeof kBridge}};
  static const Spec& spec = *new Spec(script::MakeHostSpec(language));
  return spec;
}

}  // namespace blk
