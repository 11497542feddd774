#!/usr/bin/env python3
"""What was tried for the path of a byte and left out, or taken: the figures of ARCHITECTURE.md, measured anew.

`PATH=bazel-bin:$PATH python3 test/bench/tried.py` prints medians of seven runs of each side, in turn.
"""
import json, os, resource, socket, statistics, subprocess, tempfile

BLOCK, COUNT, RUNS = 256 << 10, 4000, 7


def tcp_pair():
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    return ours, listener.accept()[0]


def sender_us(pair, send):
    """CPU microseconds of a process that sends COUNT blocks to one that throws them away."""
    ours, theirs = pair()
    reader = os.fork()
    if reader == 0:
        ours.close()
        into = bytearray(BLOCK)
        while theirs.recv_into(into):
            pass
        os._exit(0)
    theirs.close()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 512 << 10)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for i in range(COUNT):
        send(ours, i * 7919 % (COUNT // 4) * BLOCK)
    after = resource.getrusage(resource.RUSAGE_SELF)
    ours.close()
    os.waitpid(reader, 0)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e6 / COUNT


def splice():
    """A file in the page cache to a socket: sendfile() against pread() and send()."""
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        for _ in range(COUNT // 4):
            file.write(os.urandom(1 << 16) * (BLOCK >> 16))
        file.flush()
        buffer = memoryview(bytearray(BLOCK))

        def copy(to, offset):
            os.preadv(file.fileno(), [buffer], offset)
            to.sendall(buffer)

        def sendfile(to, offset):
            end = offset + BLOCK
            while offset < end:
                offset += os.sendfile(to.fileno(), file.fileno(), offset, end - offset)

        for name, pair in ("Unix", socket.socketpair), ("TCP", tcp_pair):
            sides = [(sender_us(pair, copy), sender_us(pair, sendfile)) for _ in range(RUNS)]
            ours, theirs = (statistics.median(x) for x in zip(*sides))
            print(f"{name}: pread and send {ours:.1f} us of CPU for 256k, sendfile {theirs:.1f}")


def folios():
    """What 4k writes cost into the page cache of a file that was written in pieces of some size."""
    data, mib = memoryview(os.urandom(1 << 20)), 512

    def cpu_us(step, times):
        before = resource.getrusage(resource.RUSAGE_SELF)
        for i in range(times):
            step(i)
        after = resource.getrusage(resource.RUSAGE_SELF)
        return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e6 / times

    def side(piece):
        with tempfile.TemporaryFile(dir="/var/tmp") as file:
            pieces = mib * (1 << 20) // piece
            fill = cpu_us(lambda i: os.pwrite(file.fileno(), data[:piece], i * piece), pieces) * (1 << 20) / piece
            return fill, cpu_us(lambda i: os.pwrite(file.fileno(), data[:4096], i * 7919 % (mib * 256) * 4096), 50000)

    for piece in 1 << 20, 256 << 10, 64 << 10, 16 << 10:
        fill, small = (statistics.median(x) for x in zip(*(side(piece) for _ in range(RUNS))))
        print(f"a file written in pieces of {piece >> 10}k: {fill:.0f} us of CPU for each MiB, then {small:.1f} for a 4k write")


def huge_pages():
    """allocator=malloc lies in huge pages, allocator=sparse in small ones."""

    def bench(allocator, *options):
        line = f'blk copy random:1G "$uri" && blk bench --json {" ".join(options)} "$uri"'
        output = subprocess.run(["blk", "serve", "memory", "1G", f"allocator={allocator}", "--run", line], capture_output=True,
                                text=True, check=True).stdout
        return json.loads(output)["read"]["iops"]

    def filled(allocator):
        options = ["-w", "100", "-b", "1M", "--pattern=sequential", "-n", "1024", f"memory:1G(allocator={allocator})"]
        output = subprocess.run(["blk", "bench", "--json", *options], capture_output=True, text=True, check=True).stdout
        return json.loads(output)["write"]["iops"]

    for name, side in (("first writes of 1M", filled), ("4k reads", lambda a: bench(a, "-n", "400000")),
                       ("256k reads", lambda a: bench(a, "-b", "256K", "-n", "40000"))):
        sides = [(side("sparse"), side("malloc")) for _ in range(RUNS)]
        small, huge = (statistics.median(x) for x in zip(*sides))
        print(f"{name}: {small:.0f} a second in small pages, {huge:.0f} in huge ones")


if __name__ == "__main__":
    splice()
    folios()
    huge_pages()
