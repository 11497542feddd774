#pragma once
// World: a disk behind a server, clients that ask it for this and that, and the model that judges
// the answers. What stands between the clients and the disk is the scenario's. One loop.
#include <memory>
#include <string>

#include "test/sim/model.h"
#include "test/sim/sim_device.h"
#include "test/sim/sim_server.h"

namespace blk::sim {

inline constexpr int64_t kHourNs = 3'600'000'000'000;

struct World {
  SimLoop loop;
  uint64_t sectors;
  std::unique_ptr<SimDevice> disk;
  std::unique_ptr<SimServer> server;
  Device* device = nullptr;  // what the clients see
  Model model;
  std::string wrong;            // the first thing that was
  uint64_t failed = 0;          // requests that ended with an error
  uint64_t failed_flushes = 0;  // of them
  bool faulty_wire = false;
  bool impatient = false;   // some requests have a deadline, or are stopped
  bool trims = true;        // what is trimmed reads as zeroes; else nothing is trimmed
  std::string after_crash;  // what the disk held then, if it crashed
  // What was asked for after the power failed cannot have been done.
  uint64_t ok_after_crash = 0;

  World(uint64_t seed, DeviceFaults faults)
      : loop(seed), sectors(8 + loop.Below(56)), model(sectors, kSectorBytes) {
    Facts facts;
    facts.size = sectors * kSectorBytes;
    facts.block.minimum = loop.OneIn(3) ? 512 : 1;
    facts.trim = facts.zero = facts.fast_zero = facts.extents = true;
    facts.fua = loop.OneIn(3) ? Support::kEmulate : Support::kNative;
    facts.multi_conn = loop.OneIn(2);
    disk = std::make_unique<SimDevice>(&loop, facts, faults);
    server = std::make_unique<SimServer>(&loop, disk.get());
    impatient = loop.OneIn(3);
  }
  void Wrong(std::string what) {
    if (wrong.empty()) wrong = std::move(what);
  }
};

// Half of the disks have none.
DeviceFaults RandomDeviceFaults(uint64_t seed);
// Half of the wires have none.
StreamFaults RandomStreamFaults(World* world);
// How clients reach the server: any style of replies, and more patience than a wire stalls.
NbdConnectOptions RandomConnectOptions(World* world);

// Asks world->device for random things and tells the model.
Task<void> Client(World* world, uint64_t requests);
// Some clients at once, to the end of all; in half of the runs the power fails meanwhile.
Task<void> Clients(World* world, uint64_t clients_max, uint64_t requests_max);

}  // namespace blk::sim
