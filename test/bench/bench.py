#!/usr/bin/env python3
"""Benchmarks of blk beside the real peers: `./dev bench [NAME...]`.

Each case runs both sides in turn, A B A B, and prints medians of the ratios blk / peer, pair by pair, with
minimum and maximum. Lower is better, except for IOPS and throughput. Whatever is printed was measured in this
run; a JSON line a case goes to test/bench/results.jsonl. Wall and CPU time include client and server. Sizes are
those of the issue's table unless --quick is given.
"""
import argparse, json, os, re, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

HZ = os.sysconf("SC_CLK_TCK")
RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results.jsonl")


def cpu_of(pid):
    """CPU seconds of a process and of the children it has waited for."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return sum(int(fields[i]) for i in (11, 12, 13, 14)) / HZ


def rss_of(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def run(command, check=True):
    """Runs a shell command to its end: wall and CPU seconds, peak KiB of its largest process, output."""
    with tempfile.TemporaryFile() as out:
        start = time.monotonic()
        child = subprocess.Popen(["sh", "-c", command], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode(errors="replace")
    if check and child.returncode:
        sys.exit(f"bench: exit {child.returncode} of: {command}\n{text}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "rss": usage.ru_maxrss, "text": text}


class Server:
    """A server in the foreground on a Unix socket of its own (or a port), ended by its pid."""

    def __init__(self, command, folder, port=None):
        self.socket = os.path.join(tempfile.mkdtemp(dir=folder), "s")
        where = f"-p {port}" if port else f"-U {self.socket}"
        pidfile = self.socket + ".pid"
        self.uri = f"nbd://localhost:{port}" if port else f"nbd+unix:///?socket={self.socket}"
        self.process = subprocess.Popen(["sh", "-c", "exec " + command.format(where=f"{where} -f -P {pidfile}", socket=self.socket)],
                                        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for _ in range(500):
            if os.path.exists(pidfile) or (not port and "-P" not in command and os.path.exists(self.socket)):
                break
            time.sleep(0.01)
        self.pid = self.process.pid

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


def whole(command):
    """A side that is one command; client and server inside it."""
    return lambda env: {k: v for k, v in run(command).items() if k != "text"}


def load(server, client, fill=None, port=None):
    """A side with a server that is filled first and then loaded; server CPU for each request."""

    def side(env):
        s = Server(server, env.folder, port)
        try:
            if fill:
                run(fill.format(uri=s.uri))
            before = cpu_of(s.pid)
            result = run(client.format(uri=s.uri, socket=s.socket))
            server_cpu = cpu_of(s.pid) - before
            report = parse_report(result["text"])
            row = {"wall": result["wall"], "client_cpu": result["cpu"], "server_rss": rss_of(s.pid)}
            if report:
                row.update(iops=report["iops"], server_us=server_cpu * 1e6 / max(1, report["requests"]))
            else:
                row.update(server_cpu=server_cpu, cpu=server_cpu + result["cpu"])
            return row
        finally:
            s.stop()

    return side


def idle(server):
    """A side that only waits: resident KiB of a server nobody has talked to."""

    def side(env):
        s = Server(server, env.folder)
        try:
            time.sleep(0.2)
            return {"idle_kib": rss_of(s.pid)}
        finally:
            s.stop()

    return side


def bare_send(block, megabytes, seconds):
    """What no server of memory can beat: a process that only sends pieces of a large buffer over a Unix socket."""

    def side(env):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 512 << 10)
            data = memoryview(bytearray(os.urandom(1 << 20)) * megabytes)
            blocks, at = len(data) // block, 0
            try:
                while True:
                    at = (at * 1103515245 + 12345) % blocks
                    theirs.sendall(data[at * block:(at + 1) * block])
            except OSError:
                os._exit(0)
        theirs.close()
        into, count = memoryview(bytearray(block)), 0

        def receive():
            left = block
            while left:
                left -= ours.recv_into(into[block - left:])

        receive()  # the buffer is filled by now
        before, start = cpu_of(pid), time.monotonic()
        while time.monotonic() < start + seconds:
            receive()
            count += 1
        wall, used = time.monotonic() - start, cpu_of(pid) - before
        ours.close()
        os.waitpid(pid, 0)
        return {"server_us": used * 1e6 / count, "iops": count / wall}

    return side


def parse_report(text):
    """IOPS and requests from the JSON of fio or of blk bench."""
    if "{" not in text:
        return None
    report = json.loads(text[text.index("{"):text.rindex("}") + 1])
    if "jobs" in report:
        jobs = [j[d] for j in report["jobs"] for d in ("read", "write")]
        return {"iops": sum(j["iops"] for j in jobs), "requests": sum(j["total_ios"] for j in jobs)}
    parts = [report[k] for k in ("read", "write") if k in report]
    return {"iops": sum(p["iops"] for p in parts), "requests": sum(p["requests"] for p in parts)} if parts else None


def fio(rw, bs, depth, jobs, seconds, size):
    return (f"fio --name=b --ioengine=nbd --uri='{{uri}}' --rw={rw} --bs={bs} --iodepth={depth} --numjobs={jobs} --size={size} "
            f"--time_based --runtime={seconds} --group_reporting --randrepeat=0 --norandommap --output-format=json")


def fill(size, compress=0):
    extra = f"--buffer_compress_percentage={compress} --buffer_compress_chunk=4k" if compress else ""
    return (f"fio --name=f --ioengine=nbd --uri='{{uri}}' --rw=write --bs=1M --iodepth=8 --size={size} --refill_buffers {extra} "
            "--output-format=json")


def cases(a):
    disk, ram, secs = ("10G", "256M", 2) if a.quick else ("100G", "1G", 5)
    nbdkit_copy = f"nbdkit -U - sparse-random {disk} --run 'nbdcopy \"$uri\" \"$uri\"'"
    blk_copy = f"blk serve -U - sparse-random {disk} --run 'blk copy %s \"$uri\" \"$uri\"'"
    memory = f"blk serve {{where}} memory {ram}", f"nbdkit {{where}} memory {ram}"
    zstd = f"blk serve {{where}} memory {ram} allocator=zstd", f"nbdkit {{where}} memory {ram} allocator=zstd"
    file = a.folder + "/disk.img"
    cached = f"blk serve {{where}} {file}", f"nbdkit {{where}} file {file}"
    qemu_nbd = f"qemu-nbd -f raw -t -e 16 --cache=writeback -k {{socket}} {file}"
    # A file that the server itself fills: what lies in the page cache of an old one is shaped by who wrote that.
    new = "sh -c 'rm -f {0}; truncate -s {1} {0}; exec %s {0}'".format(a.folder + "/new.img", ram)
    new_cached = new % "blk serve {where}", new % "nbdkit {where} file"
    new_qemu_nbd = new % "qemu-nbd -f raw -t -e 16 --cache=writeback -k {socket}"
    full, squeezed = fill(ram), fill(ram, 70)
    keys = a.folder + "/keys.psk"
    tls = f"blk serve {{where}} --tls-psk={keys} memory {ram}", f"nbdkit {{where}} --tls-psk={keys} memory {ram}"
    secure_uri = f"nbds+unix://bench@/?socket={{socket}}&tls-psk-file={keys}"
    # A disk of zeroes in each of the ways to write one.
    evaluated = "get_size='echo 1M' pread='head -c $3 /dev/zero' thread_model='echo serialize_requests'"
    script, program = f"{a.folder}/zeroes.sh", f"exec '/usr/bin/python3 {a.folder}/zeroes_exec.py'"
    calls = fio("randread", "4k", 1, 1, secs, "1M")

    many = f"blk bench --json --no-shm -C %d -d 32 -w 50 -s {secs} '{{uri}}'"
    start = "for i in 1 2 3 4 5 6 7 8 9 10; do %s -U - null 1M --run true; done"
    half, out = a.folder + "/half.img", a.folder + "/out"

    def convert(command):
        """A copy to a new file, durable at its end. Memory that nobody has used for seconds may have to come from
        the hypervisor first, so each side finds some that was just in use."""

        def side(env):
            run(f"cp --sparse=auto --reflink=never {half} {out}.warm; rm -f {out}.warm {out}")
            return whole(f"{command} && sync {out}")(env)

        return side

    def both(pair, client, filled=None):
        return load(pair[0], client, filled), load(pair[1], client, filled)

    def filtered(program, filters, words):
        return f"{program} {{where}} {' '.join('--filter=' + f for f in filters.split())} {words}"

    def ten(program):
        return filtered(program, "nofilter " * 10, f"memory {ram}")

    def ahead(filters, client):
        words = f"pattern {'32M' if a.quick else '128M'} rdelay=5ms"
        return tuple(load(filtered(program, filters + " cache delay", words), client) for program in ("blk serve", "nbdkit"))

    store = tuple(filtered(p, "{}", f"memory {ram}") for p in ("blk serve", "nbdkit"))
    cow, cache = (tuple(c.replace("--filter={}", f"--filter={f}") for c in store) for f in ("cow", "cache"))
    to_file, to_null = f"rm -f {out}; qemu-img convert -f raw -O raw '{{uri}}' {out}", "blk copy '{uri}' null:"

    return {
        "sparse-copy": ("sparse-random 100G onto itself over NBD", "nbdkit + nbdcopy", whole(blk_copy % ""), whole(nbdkit_copy), "wall<=0.25 cpu<=0.25"),
        "sparse-copy-no-shm": ("the same with `--no-shm`", "nbdkit + nbdcopy", whole(blk_copy % "--no-shm"), whole(nbdkit_copy), "wall<=0.9 cpu<=0.9"),
        "sparse-copy-tcp": ("the same over TCP loopback", "the same over TCP",
                            load(f"blk serve {{where}} sparse-random {disk}", "blk copy '{uri}' '{uri}'", port=10871),
                            load(f"nbdkit {{where}} sparse-random {disk}", "nbdcopy '{uri}' '{uri}'", port=10872), "wall<=0.9 cpu<=0.9"),
        "sparse-copy-qemu": ("the same", "nbdkit + qemu-img -W -m 16", whole(blk_copy % ""),
                             whole(f"nbdkit -U - sparse-random {disk} --run 'qemu-img convert -n -W -m 16 -f raw -O raw \"$uri\" \"$uri\"'"),
                             "wall<=0.09 cpu<=0.09"),
        "client": ("`blk copy` from nbdkit to `null:`", "nbdcopy", load(f"nbdkit {{where}} sparse-random {disk}", "blk copy '{uri}' null:"),
                   load(f"nbdkit {{where}} sparse-random {disk}", "nbdcopy '{uri}' null:"), "wall<=0.95 client_cpu<=0.85"),
        "server": ("`blk serve` under nbdcopy to `null:`", "nbdkit", load(f"blk serve {{where}} sparse-random {disk}", "nbdcopy '{uri}' null:"),
                   load(f"nbdkit {{where}} sparse-random {disk}", "nbdcopy '{uri}' null:"), "wall<=0.95 server_cpu<=0.85"),
        "in-process-null": ("100G to `null:` in one process", "nbdkit + nbdcopy null:", whole(f"blk copy sparse-random:{disk} null:"),
                            whole(f"nbdkit -U - sparse-random {disk} --run 'nbdcopy \"$uri\" null:'"), "wall<=0.15 cpu<=0.15"),
        "in-process": ("100G onto itself in one process", "nbdkit + nbdcopy", whole(f"blk copy sparse-random:{disk} sparse-random:{disk}"), whole(nbdkit_copy),
                       "wall<=0.15 cpu<=0.15"),
        "memory-4k-1": ("memory, 4k mixed, depth 32, 1 job (fio)", "nbdkit memory", *both(memory, fio("randrw", "4k", 32, 1, secs, ram), full), "server_us<=0.5 iops>=1.4"),
        "memory-4k-4": ("the same, 4 jobs", "nbdkit memory", *both(memory, fio("randrw", "4k", 32, 4, secs, ram), full), "server_us<=0.38 iops>=1.7"),
        "memory-4k-4-bench": ("the same by `blk bench`", "nbdkit memory, both by blk bench", *both(memory, f"blk bench --json --no-shm -C 4 -w 50 -s {secs} '{{uri}}'", full),
                              "server_us<=0.38 iops>=2"),
        "memory-4k-depth1": ("memory, 4k reads, depth 1 (fio)", "nbdkit memory", *both(memory, fio("randread", "4k", 1, 1, secs, ram), full), "server_us<=1.2 iops>=1.5"),
        "memory-256k": ("memory, 256k reads, depth 16 (fio)", "nbdkit memory", *both(memory, fio("randread", "256k", 16, 1, secs, ram), full), "server_us<=1 iops"),
        "memory-256k-shm": ("the same by `blk bench` in shared memory", "fio on nbdkit", load(memory[0], f"blk bench --json -b 256K -d 16 -s {secs} '{{uri}}'", full),
                            load(memory[1], fio("randread", "256k", 16, 1, secs, ram), full), "iops>=3"),
        "memory-256k-shm-2": ("the same, on two connections with eight in flight each", "fio on nbdkit",
                              load(memory[0], f"blk bench --json -b 256K -C 2 -d 8 -s {secs} '{{uri}}'", full),
                              load(memory[1], fio("randread", "256k", 16, 1, secs, ram), full), "iops>=3"),
        "memory-256k-send": ("memory, 256k reads, depth 16 (fio)", "bare send()", load(memory[0], fio("randread", "256k", 16, 1, secs, ram), full),
                             bare_send(256 << 10, 256 if a.quick else 1024, secs), "server_us<=1.1"),
        "memory-holes-4k": ("holes of memory, 4k reads, 4 jobs (fio)", "nbdkit memory", *both(memory, fio("randread", "4k", 32, 4, secs, ram)), "server_us iops"),
        "memory-connections-4": ("memory with 4 connections, 4k mixed (`blk bench`)", "blk with 1 connection", load(memory[0], many % 4, full), load(memory[0], many % 1, full), "iops>=1"),
        "memory-connections-16": ("memory with 16 connections", "blk with 1 connection", load(memory[0], many % 16, full), load(memory[0], many % 1, full), "iops>=1"),
        "zstd-4k-4": ("memory allocator=zstd, 4k mixed, 4 jobs (fio)", "nbdkit zstd", *both(zstd, fio("randrw", "4k", 32, 4, secs, ram), squeezed), "server_us<=0.35 iops>=3 server_rss<=1"),
        "file-4k-4": ("file, cached, 4k mixed, 4 jobs (fio)", "nbdkit file", *both(cached, fio("randrw", "4k", 32, 4, secs, ram)), "server_us<=0.4 iops"),
        "file-4k-4-qemu": ("the same", "qemu-nbd", load(cached[0], fio("randrw", "4k", 32, 4, secs, ram)),
                           load(qemu_nbd, fio("randrw", "4k", 32, 4, secs, ram)), "server_us<=0.2 iops"),
        "file-4k-4-new": ("the same, on a new file that was written in full through the server", "nbdkit file",
                          *both(new_cached, fio("randrw", "4k", 32, 4, secs, ram), full), "server_us<=0.4 iops"),
        "file-4k-4-new-qemu": ("the same", "qemu-nbd", load(new_cached[0], fio("randrw", "4k", 32, 4, secs, ram), full),
                               load(new_qemu_nbd, fio("randrw", "4k", 32, 4, secs, ram), full), "server_us<=0.2 iops"),
        "file-256k": ("file, cached, 256k reads, depth 16 (fio)", "nbdkit file", *both(cached, fio("randread", "256k", 16, 1, secs, ram)), "server_us<=0.7 iops"),
        "file-256k-qemu": ("the same", "qemu-nbd", load(cached[0], fio("randread", "256k", 16, 1, secs, ram)),
                           load(qemu_nbd, fio("randread", "256k", 16, 1, secs, ram)), "server_us<=0.2 iops"),
        "tls-server": ("memory over TLS, read by nbdcopy", "nbdkit, both under nbdcopy", *both(tls, f"nbdcopy '{secure_uri}' null:", full), "wall<=1 server_cpu"),
        "tls-client": ("nbdkit over TLS, read by `blk copy`", "nbdcopy, both on nbdkit", load(tls[1], f"blk copy '{secure_uri}' null:", full),
                       load(tls[1], f"nbdcopy '{secure_uri}' null:", full), "wall<=1 client_cpu"),
        "tls-write": ("memory over TLS, written by nbdcopy", "nbdkit, both under nbdcopy", *both(tls, f"nbdcopy {a.folder}/disk.img '{secure_uri}'"), "wall<=1 server_cpu"),
        "raw-to-raw": ("4 GiB raw file to raw file, half holes", "qemu-img convert", convert(f"blk copy {half} {out}"),
                       convert(f"qemu-img convert -t writeback -W -m 16 -f raw -O raw {half} {out}"), "wall<=0.9 cpu"),
        "raw-to-raw-nbdcopy": ("the same", "nbdcopy --flush", convert(f"blk copy {half} {out}"),
                               convert(f"truncate -s $(stat -c %s {half}) {out} && nbdcopy --flush --destination-is-zero {half} {out}"), "wall<=0.9 cpu"),
        "raw-to-raw-cp": ("the same", "cp --sparse=auto", convert(f"blk copy {half} {out}"),
                          convert(f"cp --sparse=auto --reflink=never {half} {out}"), "wall<=0.9 cpu"),
        "qcow2-to-raw": ("qcow2 through `[ qemu-nbd ]` to raw", "qemu-img convert", convert(f"blk copy -- [ qemu-nbd -r -f qcow2 {half}.qcow2 ] {out}"),
                         convert(f"qemu-img convert -t writeback -W -m 16 -f qcow2 -O raw {half}.qcow2 {out}"), "wall<=0.9 cpu"),
        "qcow2-to-raw-nbdcopy": ("the same", "nbdcopy --flush", convert(f"blk copy -- [ qemu-nbd -r -f qcow2 {half}.qcow2 ] {out}"),
                                 convert(f"nbdcopy --flush -- [ qemu-nbd -r -f qcow2 {half}.qcow2 ] {out}"), "wall<=0.9 cpu"),
        "ten-filters-4k": ("memory under ten filters that pass through, 4k mixed", "blk without filters", *both((ten("blk serve"), memory[0]), fio("randrw", "4k", 32, 1, secs, ram), full),
                           "server_us<=1.1 iops>=0.9"),
        "ten-filters-4k-nbdkit": ("what ten filters cost nbdkit itself", "(nbdkit with / without)", *both((ten("nbdkit"), memory[1]), fio("randrw", "4k", 32, 1, secs, ram), full),
                                  "server_us iops"),
        "cow-hits-4k": ("cow over memory, 4k mixed, 4 connections", "nbdkit cow, both by blk bench", *both(cow, many % 4, full), "server_us iops>=2"),
        "cache-hits-4k": ("cache over memory, 4k mixed, 4 connections", "nbdkit cache, both by blk bench", *both(cache, many % 4, full), "server_us iops>=2"),
        "readahead-qemu-img": ("readahead over a disk with 5 ms of delay, qemu-img", "nbdkit readahead", *ahead("readahead", to_file), "wall<=1"),
        "readahead-blk-copy": ("the same, `blk copy`", "nbdkit readahead", *ahead("readahead", to_null), "wall<=1"),
        "scan-qemu-img": ("scan over a disk with 5 ms of delay, qemu-img", "nbdkit scan", *ahead("scan", to_file), "wall<=1"),
        "scan-blk-copy": ("the same, `blk copy`", "nbdkit scan", *ahead("scan", to_null), "wall<=1"),
        "python-4k-16": ("a Python script, 4k reads, depth 16 (fio)", "nbdkit python", *both((f"blk serve {{where}} python {a.folder}/zeroes.py", f"nbdkit {{where}} python {a.folder}/zeroes.py"),
                                                fio("randread", "4k", 16, 1, secs, "16M")), "iops>=1"),
        "python-4k-1": ("the same, depth 1", "nbdkit python", *both((f"blk serve {{where}} python {a.folder}/zeroes.py", f"nbdkit {{where}} python {a.folder}/zeroes.py"),
                                               fio("randread", "4k", 1, 1, secs, "16M")), "iops"),
        "sh-call": ("a shell script, 4k reads", "nbdkit sh", *both((f"blk serve {{where}} sh {script}", f"nbdkit {{where}} sh {script}"), calls), "iops>=0.91"),
        "eval-call": ("the same in eval", "nbdkit eval", *both((f"blk serve {{where}} eval {evaluated}", f"nbdkit {{where}} eval {evaluated}"), calls), "iops>=0.91"),
        "exec-call": ("the same as a program under exec", "blk sh", *both((f"blk serve {{where}} {program}", f"blk serve {{where}} sh {script}"), calls), "iops>=10"),
        "start": ("start to end, ten times", "nbdkit", whole(start % "blk serve"), whole(start % "nbdkit"), "wall<=0.7 cpu<=0.7"),
        "idle": ("resident memory of an idle server", "nbdkit", idle("blk serve {where} null 1M"), idle("nbdkit {where} null 1M"), "idle_kib<=1"),
    }


SCRIPTS = {
    "zeroes.py": """API_VERSION = 2
disk = bytearray(16 << 20)
def open(readonly): return 1
def get_size(h): return len(disk)
def pread(h, buf, offset, flags): buf[:] = disk[offset:offset + len(buf)]
""",
    "zeroes.sh": """#!/bin/sh
case "$1" in get_size) echo 1M ;; pread) head -c $3 /dev/zero ;; *) exit 2 ;; esac
""",
    "zeroes_exec.py": r"""import sys
for line in sys.stdin.buffer:
    ident, method, length, *words = line.split()
    output = b"get_size pread" if method == b"load" else b"1M" if method == b"get_size" else bytes(int(words[1]))
    sys.stdout.buffer.write(b"%s ok %d\n" % (ident, len(output)) + output)
    sys.stdout.buffer.flush()
""",
}


def prepare(a, names):
    for name, text in SCRIPTS.items():
        with open(os.path.join(a.folder, name), "w") as f:
            f.write(text)
        os.chmod(f.name, 0o755)
    if any(n.startswith("file") or n == "tls-write" for n in names):
        size = (256 if a.quick else 1024) << 20
        run(f"dd if=/dev/urandom of={a.folder}/disk.img bs=1M count={size >> 20} 2>/dev/null")
    if any(n.startswith("tls") for n in names):
        run(f"umask 077; echo bench:$(head -c 32 /dev/urandom | xxd -p -c 64) >{a.folder}/keys.psk")
    if any(n.startswith(("raw", "qcow2")) for n in names):
        path, gib = f"{a.folder}/half.img", 1 if a.quick else 4
        run(f"truncate -s {gib}G {path}; for i in $(seq 0 2 {gib * 32 - 1}); do dd if=/dev/urandom of={path} bs=1M seek=$((i * 32)) "
            "count=32 conv=notrunc 2>/dev/null; done")
    if any(n.startswith("qcow2") for n in names):
        run(f"test -e {a.folder}/half.img.qcow2 || qemu-img convert -O qcow2 {a.folder}/half.img {a.folder}/half.img.qcow2")


FIGURES = {"wall": "wall", "cpu": "CPU", "client_cpu": "client CPU", "server_cpu": "server CPU", "iops": "IOPS",
           "server_us": "server CPU a request", "server_rss": "server memory", "idle_kib": "memory"}


def goals_of(figures):
    """What is looked at, with its goal or None: "wall<=0.9 cpu"."""
    for word in figures.split():
        name, sign, bound = re.fullmatch(r"(\w+?)(?:([<>]=)([\d.]+))?", word).groups()
        yield name, sign and (sign, float(bound))


def missed(goal, ratio):
    return bool(goal) and (ratio > goal[1] if goal[0] == "<=" else ratio < goal[1])


def measure(case, a):
    """Runs a case, prints its figures, and returns its record."""
    what, peer, ours, theirs, figures = case
    pairs = [(ours(a), theirs(a)) for _ in range(a.pairs)]
    record = {"peer": peer, "pairs": a.pairs, "quick": a.quick}
    for figure, goal in goals_of(figures):
        x, y = [p[0][figure] for p in pairs], [p[1][figure] for p in pairs]
        ratios = sorted(i / j for i, j in zip(x, y) if j)
        if not ratios:
            continue
        middle = statistics.median(ratios)
        record[figure] = {"blk": statistics.median(x), "peer": statistics.median(y), "ratio": middle,
                          "min": ratios[0], "max": ratios[-1]}
        verdict = "" if not goal else "goal {} {:g}{}".format(*goal, ", MISSED" if missed(goal, middle) else "")
        print(f"  {FIGURES[figure]:21} {statistics.median(x):11.3f} {statistics.median(y):11.3f}   {middle:6.2f} "
              f"({ratios[0]:.2f}-{ratios[-1]:.2f})  {verdict}", flush=True)
    return record


def readme_table(a):
    """The last full-size record of each case as a table."""
    last = {}
    with open(RESULTS) as f:
        for line in f:
            record = json.loads(line)
            if not record["quick"]:
                last[record["case"]] = record
    lines = ["| case | what | peer | ratio: median (min-max) | goal |", "|---|---|---|---|---|"]
    for name, (what, peer, _, _, figures) in cases(a).items():
        seen, wanted, record = [], [], last.get(name, {})
        for figure, goal in goals_of(figures):
            if goal:
                wanted.append(f"{FIGURES[figure]} {goal[0]} {goal[1]:g}")
            if figure in record:
                r = record[figure]
                late = " **missed**" if missed(goal, r["ratio"]) else ""
                seen.append(f"{FIGURES[figure]} {r['ratio']:.2f} ({r['min']:.2f}-{r['max']:.2f}){late}")
        lines.append(f"| `{name}` | {what} | {peer} | {', '.join(seen) or 'not run yet'} | {', '.join(wanted)} |")
    return "\n".join(lines)


def write_readme(a, path):
    """Puts the table between its marks."""
    begin, end = "<!-- bench: written by ./dev docs -->\n", "\n<!-- bench end -->"
    with open(path) as f:
        text = f.read()
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    with open(path, "w") as f:
        f.write(before + begin + readme_table(a) + end + after)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small disks and short runs, to try the benchmark itself")
    parser.add_argument("--readme", metavar="FILE", help="run nothing; write the table of the last results into FILE")
    a = parser.parse_args()
    a.folder = tempfile.mkdtemp(prefix="blk-bench-", dir=os.environ.get("BLK_BENCH_DIR", "/var/tmp"))
    try:
        if a.readme:
            return write_readme(a, a.readme)
        table = cases(a)
        names = a.names or list(table)
        if unknown := [n for n in names if n not in table]:
            sys.exit(f"bench: no case {' '.join(unknown)}; there are {' '.join(table)}")
        prepare(a, names)
        commit = run("git rev-parse --short HEAD", check=False)["text"].strip()
        print(f"  {'figure':21} {'blk':>11} {'peer':>11}   {'ratio':>6} (min-max)", flush=True)
        for name in names:
            print(f"{name}: {table[name][0]}; beside {table[name][1]}", flush=True)
            record = {"commit": commit, "case": name, **measure(table[name], a)}
            with open(RESULTS, "a") as f:
                f.write(json.dumps(record) + "\n")
    finally:
        shutil.rmtree(a.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
