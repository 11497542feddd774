// tls-fallback: clients without TLS get a small disk with a message instead of the real one.
//
// Parallel-safe: the message never changes.
#include <cstring>

#include "src/core/spec.h"

namespace blk {
namespace {

constexpr uint64_t kMessageBytes = 512;

struct Config {
  std::string message =
      "This NBD server requires TLS authentication before it will serve useful data.\n";
};

class MessageDevice final : public Device {
 public:
  explicit MessageDevice(std::string message) : Device(MakeFacts()), bytes_(std::move(message)) {
    bytes_.resize(kMessageBytes, '\0');
  }

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t offset, std::span<char> into) override {
    std::memcpy(into.data(), bytes_.data() + offset, into.size());
    return absl::OkStatus();
  }

 private:
  static Facts MakeFacts() {
    Facts facts;
    facts.size = kMessageBytes;
    facts.read_only = true;
    facts.flush = facts.offer_zero = false;
    facts.fua = Support::kNone;
    return facts;
  }
  std::string bytes_;
};

class TlsFallbackLayer final : public FilterLayer {
 public:
  TlsFallbackLayer(LayerPtr below, Config config)
      : FilterLayer(std::move(below)),
        message_(std::make_shared<MessageDevice>(std::move(config.message))) {}

  absl::Status Ready() override {
    // Else a client without TLS could keep all others out.
    if (below().thread_model() == ThreadModel::kSerializeConnections)
      return absl::InvalidArgumentError(
          "the layers below serve one connection at a time: tls-fallback needs them to serve many");
    return absl::OkStatus();
  }
  // Names are the secret of those with TLS, too.
  Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs& args) override {
    if (args.tls) return below().ListExports(args);
    return absl::StatusOr<ExportList>(ExportList{{{"", ""}}, ""});
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    if (args.tls) return below().Open(std::move(args));
    return absl::StatusOr<DevicePtr>(message_);
  }

 private:
  const DevicePtr message_;
};

}  // namespace

const Spec& TlsFallbackSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("tls-fallback", "clients without TLS get a message instead of the disk")
          .Param("tlsreadme", &Config::message,
                 {.help = "what they find in a disk of 512 bytes", .word = "MESSAGE"})
          .Description(
              "For servers where TLS is offered and not required. It belongs before the other "
              "filters, so that clients without TLS reach none of them.")
          .Example("tls-fallback+memory:64K")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<TlsFallbackLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

}  // namespace blk
