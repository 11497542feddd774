// Filters about clients: ip, limit, multi-conn, noparallel.
#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <sys/socket.h>

#include <cstring>

#include "test/support/array_device.h"
#include "test/support/layers.h"

namespace blk {

const Spec& IpSpec();
const Spec& LimitSpec();
const Spec& MultiConnSpec();
const Spec& NoParallelSpec();

namespace {

using test::ArrayDevice;
using test::MakeFilter;
using test::OnLoop;
using test::OpenNow;

std::shared_ptr<ArrayDevice> Array() { return std::make_shared<ArrayDevice>(1000); }

Peer IpPeer(const std::string& address) {
  Peer peer;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&peer.address);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&peer.address);
  peer.address_bytes = sizeof peer.address;
  if (inet_pton(AF_INET, address.c_str(), &v4->sin_addr) == 1) {
    peer.address.ss_family = AF_INET;
  } else {
    REQUIRE(inet_pton(AF_INET6, address.c_str(), &v6->sin6_addr) == 1);
    peer.address.ss_family = AF_INET6;
  }
  peer.text = address;
  return peer;
}
Peer UnixPeer(int64_t pid, int64_t uid, int64_t gid) {
  Peer peer{.pid = pid, .uid = uid, .gid = gid, .text = "unix"};
  peer.address.ss_family = AF_UNIX;
  peer.address_bytes = sizeof(sa_family_t);
  return peer;
}

Task<absl::Status> Knock(Layer* layer, const Peer* peer) {
  co_return co_await layer->Preconnect(*peer);
}
bool LetIn(const test::Words& words, const Peer& peer) {
  auto layer = MakeFilter(IpSpec(), words, Array());
  REQUIRE_MESSAGE(layer.ok(), layer.status().message());
  return OnLoop(Knock, layer->get(), &peer).ok();
}

TEST_CASE("ip: the allow list goes first, then the deny list") {
  Peer home = IpPeer("127.0.0.1"), far = IpPeer("8.1.2.3"), six = IpPeer("2001:db8::1");
  Peer local = UnixPeer(42, 1000, 100);
  for (const Peer& peer : {home, far, six, local}) {
    CHECK(LetIn({}, peer));
    CHECK(LetIn({{"allow", "all"}, {"deny", "any"}}, peer));
    CHECK_FALSE(LetIn({{"deny", "all"}}, peer));
  }
  CHECK(LetIn({{"allow", "127.0.0.1,::1"}, {"deny", "all"}}, home));
  CHECK_FALSE(LetIn({{"allow", "127.0.0.1,::1"}, {"deny", "all"}}, far));
  CHECK_FALSE(LetIn({{"deny", "8.0.0.0/8"}}, far));
  CHECK(LetIn({{"deny", "9.0.0.0/8"}}, far));
  CHECK(LetIn({{"deny", "8.1.2.0/31"}}, far));
  CHECK_FALSE(LetIn({{"deny", "8.1.2.2/31"}}, far));
  CHECK_FALSE(LetIn({{"deny", "0.0.0.0/0"}}, far));
  CHECK(LetIn({{"deny", "0.0.0.0/0"}}, six));
  CHECK_FALSE(LetIn({{"deny", "2001:db8::/33"}}, six));
  CHECK(LetIn({{"deny", "2001:db8:8000::/33"}}, six));
  CHECK_FALSE(LetIn({{"deny", "anyipv6"}}, six));
  CHECK(LetIn({{"deny", "anyipv6"}}, far));
  CHECK_FALSE(LetIn({{"deny", "allipv4"}}, IpPeer("::ffff:8.1.2.3")));
  CHECK(LetIn({{"allow", "uid:1000"}, {"deny", "all"}}, local));
  CHECK_FALSE(LetIn({{"allow", "uid:1001"}, {"deny", "all"}}, local));
  CHECK_FALSE(LetIn({{"deny", "gid:100"}}, local));
  CHECK_FALSE(LetIn({{"deny", "pid:42"}}, local));
  CHECK_FALSE(LetIn({{"deny", "anyunix"}}, local));
  CHECK(LetIn({{"deny", "anyvsock"}}, local));
  for (std::string bad : {"1.2.3", "1.2.3.4/33", "::1/129", "uid:x", "nobody", ""})
    CHECK_FALSE(MakeFilter(IpSpec(), {{"deny", bad}}, Array()).ok());
}

Task<absl::Status> CloseOne(Device* device) { co_return co_await device->Close(); }

TEST_CASE("limit: as many as said, again when one has left") {
  auto layer = MakeFilter(LimitSpec(), {{"limit", "2"}}, Array());
  Peer peer = UnixPeer(1, 1, 1);
  auto first = OpenNow(*layer), second = OpenNow(*layer);
  REQUIRE(first.ok());
  REQUIRE(second.ok());
  CHECK_FALSE(OnLoop(Knock, layer->get(), &peer).ok());
  CHECK_FALSE(OpenNow(*layer).ok());
  CHECK(OnLoop(CloseOne, first->get()).ok());
  CHECK(OnLoop(Knock, layer->get(), &peer).ok());
  CHECK(OpenNow(*layer).ok());
  auto any = MakeFilter(LimitSpec(), {{"limit", "0"}}, Array());
  for (int i = 0; i < 10; ++i) CHECK(OpenNow(*any).ok());
  // One that cannot be opened is none.
  auto below = std::make_shared<test::DeviceLayer>(
      [](const OpenArgs&) -> absl::StatusOr<DevicePtr> { return ErrnoErrorAsIs(EIO, "no"); });
  auto failing = MakeFilter(LimitSpec(), {}, below);
  for (int i = 0; i < 3; ++i) CHECK(ErrnoOf(OpenNow(*failing).status()) == EIO);
}

// Three devices over arrays of their own; the first two write, the last flushes. How often each
// array was flushed.
Task<absl::Status> WriteByte(Device* device, uint32_t flags) {
  co_return co_await device->Write(Call().With(flags), 0, std::string_view("x"));
}
Task<absl::Status> FlushOne(Device* device) { co_return co_await device->Flush(Call()); }

std::vector<int> Flushes(const test::Words& words, bool native, int flushes = 1) {
  std::vector<std::shared_ptr<ArrayDevice>> arrays;
  auto below = std::make_shared<test::DeviceLayer>([&](const OpenArgs&) {
    Facts facts = test::ArrayFacts(1000);
    facts.multi_conn = native;
    arrays.push_back(std::make_shared<ArrayDevice>(facts));
    return arrays.back();
  });
  auto layer = MakeFilter(MultiConnSpec(), words, below);
  REQUIRE(layer.ok());
  std::vector<DevicePtr> devices;
  for (const char* name : {"a", "b", "a"}) {
    OpenArgs args;
    args.export_name = name;
    devices.push_back(*OpenNow(*layer, args));
  }
  for (int i : {0, 1}) REQUIRE(OnLoop(WriteByte, devices[i].get(), 0u).ok());
  for (int i = 0; i < flushes; ++i) REQUIRE(OnLoop(FlushOne, devices[2].get()).ok());
  std::vector<int> counts;
  for (const auto& array : arrays) counts.push_back(array->flushes);
  for (const auto& device : devices) REQUIRE(OnLoop(CloseOne, device.get()).ok());
  return counts;
}

TEST_CASE("multi-conn: a flush reaches all who have written") {
  using Counts = std::vector<int>;
  CHECK(Flushes({}, false) == Counts{1, 1, 0});
  CHECK(Flushes({}, false, 2) == Counts{1, 1, 0});
  // One flush is enough for a disk that says so; who says nothing is asked as long as it may need
  // it.
  CHECK(Flushes({}, true) == Counts{0, 0, 1});
  CHECK(Flushes({}, true, 2) == Counts{0, 0, 1});
  CHECK(Flushes({{"multi-conn-mode", "disable"}}, false, 2) == Counts{0, 0, 2});
  CHECK(Flushes({{"multi-conn-track-dirty", "off"}}, false, 2) == Counts{2, 2, 2});
  CHECK(Flushes({{"multi-conn-track-dirty", "fast"}}, false, 2) == Counts{1, 1, 1});
  CHECK(Flushes({{"multi-conn-mode", "plugin"}, {"multi-conn-track-dirty", "off"}}, false) ==
        Counts{0, 0, 1});
  CHECK(Flushes({{"multi-conn-exportname", "true"}}, false) == Counts{1, 0, 0});
  auto facts = [](const test::Words& words, bool native) {
    Facts below = test::ArrayFacts(1000);
    below.multi_conn = native;
    auto layer = MakeFilter(MultiConnSpec(), words, std::make_shared<ArrayDevice>(below));
    return (*OpenNow(*layer))->facts().multi_conn;
  };
  CHECK(facts({}, false));
  CHECK_FALSE(facts({{"multi-conn-mode", "disable"}}, true));
  CHECK_FALSE(facts({{"multi-conn-mode", "plugin"}}, false));
  CHECK(facts({{"multi-conn-mode", "unsafe"}}, false));
}

TEST_CASE("noparallel lowers the thread model") {
  auto model = [](const std::string& how) {
    return (*MakeFilter(NoParallelSpec(), {{"serialize", how}}, Array()))->thread_model();
  };
  CHECK(model("requests") == ThreadModel::kSerializeRequests);
  CHECK(model("all-requests") == ThreadModel::kSerializeAllRequests);
  CHECK(model("connections") == ThreadModel::kSerializeConnections);
  // Of one connection at a time, no stack tells clients to use several.
  auto offered = [](const std::string& how) {
    auto layer = MakeFilter(NoParallelSpec(), {{"serialize", how}}, Array());
    return (*OpenNow(EnforceThreadModel(*layer)))->facts().multi_conn;
  };
  CHECK_FALSE(offered("connections"));
  CHECK(offered("all-requests"));
}

}  // namespace
}  // namespace blk
