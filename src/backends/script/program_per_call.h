#pragma once
// A program that is run once for each method: `PROGRAM METHOD ARGUMENT...`, as nbdkit-sh-plugin(3)
// has it. Its input is what is to be written, its output the answer, its exit status says the rest,
// and $tmpdir is a folder for all that it wants to remember.
//
// Threads: any loop, several calls at a time. The folder goes with this object.
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "src/backends/script/method.h"
#include "src/backends/temporary_folder.h"
#include "src/core/process.h"

namespace blk::script {

class ProgramPerCall : public MethodCaller {
 public:
  ProgramPerCall(std::string name, int64_t timeout_ns)
      : name_(std::move(name)), timeout_ns_(timeout_ns) {}

  const std::string& name() const override { return name_; }
  Task<absl::Status> Start() override;
  bool wants_start() override { return folder_.path().empty(); }
  Task<Answer> Call(MethodCall call) override;

 protected:
  // The command that runs `method`, to which its name and arguments are added. Only asked about
  // methods that Has() does not deny.
  virtual std::vector<std::string> CommandFor(std::string_view method) = 0;
  // The folder is there, and nothing was called yet.
  virtual absl::Status Prepare() { return absl::OkStatus(); }
  const std::string& folder() const { return folder_.path(); }

 private:
  Answer Judge(const MethodCall& call, CommandOutput output) const;
  absl::Status Take(const MethodCall& call, Answer* answer) const;

  const std::string name_;
  const int64_t timeout_ns_;
  TemporaryFolder folder_;
};

}  // namespace blk::script
