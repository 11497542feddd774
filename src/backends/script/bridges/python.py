# The bridge between blk and an nbdkit plugin written in Python: it speaks docs/exec-protocol.md on descriptor 3 and
# calls the functions of the script named by its first argument. Given to the interpreter by blk; nothing is installed.
import builtins
import errno
import inspect
import os
import queue
import socket
import sys
import threading
import traceback
import types

WORKERS = 16  # of scripts that may be called in parallel
BATCH_BYTES = 256 << 10  # replies that are sent together

FLAG_MAY_TRIM, FLAG_FUA, FLAG_REQ_ONE, FLAG_FAST_ZERO = 1, 2, 4, 8
FLAGS = {b"may_trim": FLAG_MAY_TRIM, b"fua": FLAG_FUA, b"req_one": FLAG_REQ_ONE, b"fast": FLAG_FAST_ZERO}
THREAD_MODELS = ("serialize_connections", "serialize_all_requests", "serialize_requests", "parallel")
SUPPORT = ("none", "emulate", "native")
REQUIRED = ("open", "get_size", "pread")
METHODS = REQUIRED + (
    "config", "config_complete", "thread_model", "get_ready", "after_fork", "list_exports", "default_export",
    "preconnect", "close", "export_description", "block_size", "is_rotational", "can_multi_conn", "can_write", "can_flush",
    "can_trim", "can_zero", "can_fast_zero", "can_fua", "can_cache", "can_extents", "pwrite", "flush", "trim", "zero",
    "cache", "extents")

channel = socket.socket(fileno=3)
sending = threading.Lock()
context = threading.local()  # of the request that a thread works on: export_name, is_tls, peer, error, demand
script = None  # the module
version = 1
handles = {}  # name: Handle
last_handle = 0


class Handle:
    __slots__ = ("value", "export_name", "is_tls", "peer")

    def __init__(self, value):
        self.value, self.export_name, self.is_tls = value, context.export_name, context.is_tls
        self.peer = context.peer


# ---- the module `nbdkit` of the script

def send(parts):
    parts = [memoryview(part) for part in parts if len(part)]
    with sending:
        while parts:
            sent = channel.sendmsg(parts[:512])
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]


def message(kind, text):
    data = text.encode("utf-8", "replace")
    send([b"- %s %d\n" % (kind, len(data)), data])


def parse_size(text):
    units = "bskmgtpe"
    if not isinstance(text, str):
        raise TypeError("parse_size: a string is needed")
    digits = text.strip()
    factor = 1
    if digits and digits[-1].lower() in units:
        unit = units.index(digits[-1].lower())
        factor = 512 if unit == 1 else 1 if unit == 0 else 1 << 10 * (unit - 1)
        digits = digits[:-1]
    if not (digits.isascii() and digits.isdigit()) or int(digits) * factor >= 1 << 63:
        raise ValueError("could not parse size string (%s)" % text)
    return int(digits) * factor


def number_in(what, text, digits):
    if not isinstance(text, str):
        raise TypeError("%s: a string is needed" % what)
    try:
        number = float(digits)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ValueError("%s: could not parse %r" % (what, text))
    return number


def parse_probability(what, text):
    """`0.1`, `10%`, `1:10` or `1/10`."""
    parts = str(text).replace("/", ":").split(":") if isinstance(text, str) else [""]
    if len(parts) == 2:
        all_cases = number_in(what, text, parts[1])
        if all_cases == 0:
            raise ValueError("%s: could not parse %r" % (what, text))
        return number_in(what, text, parts[0]) / all_cases
    if parts[0].endswith("%"):
        return number_in(what, text, parts[0][:-1]) / 100
    return number_in(what, text, text)


def parse_delay(what, text):
    """Seconds, or with ms, us or ns: (seconds, nanoseconds)."""
    digits, unit = text, 1000000000
    if isinstance(text, str):
        for suffix, nanoseconds in (("ms", 1000000), ("us", 1000), ("\u03bcs", 1000), ("ns", 1), ("s", 1000000000)):
            if text.endswith(suffix):
                digits, unit = text[:-len(suffix)], nanoseconds
                break
    return divmod(round(number_in(what, text, digits) * unit), 1000000000)


def read_password(value):
    """The value itself, or with `+FILE` the first line of a file."""
    if value.startswith("+"):
        with open(value[1:], encoding="utf-8") as file:
            return file.readline().rstrip("\n")
    if value.startswith("-"):
        raise ValueError("read_password: a script cannot ask the terminal or read a descriptor; use +FILE")
    return value


def peer_number(position, what):
    """`unix PID UID GID` is what a client of a Unix socket is; of others there are no such numbers."""
    words = context.peer.split()
    if words[:1] != ["unix"]:
        raise RuntimeError("peer_%s: the client is not connected to a Unix socket" % what)
    return int(words[position])


def set_error(error):
    context.error = int(error)


def demand(word):
    context.demand = word


def make_module():
    module = types.ModuleType("nbdkit", "What an nbdkit plugin in Python may use of its server.")
    module.debug = lambda text: message(b"debug", str(text))
    module.export_name = lambda: context.export_name
    module.is_tls = lambda: context.is_tls
    module.set_error = set_error
    module.parse_size = parse_size
    module.parse_probability = parse_probability
    module.parse_delay = parse_delay
    module.read_password = read_password
    module.peer_pid = lambda: peer_number(1, "pid")
    module.peer_uid = lambda: peer_number(2, "uid")
    module.peer_gid = lambda: peer_number(3, "gid")
    module.shutdown = lambda: demand(b"shutdown")
    module.disconnect = lambda force=False: demand(b"disconnect-now" if force else b"disconnect")
    module.stdio_safe = lambda: True
    for number, model in enumerate(THREAD_MODELS):
        setattr(module, "THREAD_MODEL_" + model.upper(), number)
    for number, word in enumerate(SUPPORT):
        setattr(module, "FUA_" + word.upper(), number)
        setattr(module, "CACHE_" + word.upper(), number)
    module.FLAG_MAY_TRIM, module.FLAG_FUA = FLAG_MAY_TRIM, FLAG_FUA
    module.FLAG_REQ_ONE, module.FLAG_FAST_ZERO = FLAG_REQ_ONE, FLAG_FAST_ZERO
    module.EXTENT_HOLE, module.EXTENT_ZERO = 1, 2
    return module


# ---- methods: the arguments of a request in, the output out

class Missing(Exception):
    pass


class No(Exception):
    pass


def load(_):
    """Runs the script as the main module, and says which methods it has."""
    global script, version
    path = sys.argv[1]
    if sys.path[:1] == [""]:
        sys.path.pop(0)
    sys.modules["nbdkit"] = make_module()
    module = types.ModuleType("__main__")
    module.__file__ = path
    module.__builtins__ = builtins
    sys.modules["__main__"] = module
    sys.argv = [path]
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    exec(code, module.__dict__)
    lacking = [name for name in REQUIRED if not callable(getattr(module, name, None))]
    if lacking:
        raise Exception("the script does not define %s; open, get_size and pread are needed" % ", ".join(lacking))
    script = module
    version = getattr(module, "API_VERSION", None)
    if version is None:
        version = 2 if takes_flags(module.pread) else 1
    if version not in (1, 2):
        raise Exception("API_VERSION is %r; 1 and 2 are understood" % (version,))
    names = [name for name in METHODS if callable(getattr(module, name, None))]
    return " ".join(names + ["magic_config_key", "dump_plugin", "unload"])


def takes_flags(function):
    """A pread of four arguments can only be one of API version 2, said or not."""
    try:
        signature = inspect.signature(function)
        signature.bind(None, None, None, None)
    except (TypeError, ValueError):
        return False
    try:
        signature.bind(None, None, None)
    except TypeError:
        return True
    return False


def text(word):
    """An argument as a string."""
    return plain(word).decode("utf-8", "surrogateescape")


def plain(word):
    if word == b"-":
        return b""
    if b"%" not in word:
        return word
    first, *rest = word.split(b"%")
    return first + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in rest)


def dump_plugin(_):
    print("python_version=%d.%d.%d" % sys.version_info[:3])
    print("nbdkit_python_maximum_api_version=2")
    print("nbdkit_python_api_version=%d" % version)
    if callable(getattr(script, "dump_plugin", None)):
        script.dump_plugin()


def unload(_):
    if callable(getattr(script, "cleanup", None)):
        script.cleanup()


def config(words):
    script.config(text(words[0]), text(words[1]))


def thread_model(_):
    global model
    model = THREAD_MODELS[script.thread_model()]
    return model


def list_exports(words):
    lines = ["INTERLEAVED"]
    for entry in script.list_exports(words[0] == b"true", words[1] == b"true"):
        name, description = (entry, "") if isinstance(entry, str) else entry
        lines += [name, description or ""]
    return "\n".join(lines) + "\n"


def default_export(words):
    name = script.default_export(words[0] == b"true", words[1] == b"true")
    return "NAMES\n" + name + "\n" if name else ""


def open_handle(words):
    global last_handle
    context.export_name, context.is_tls = text(words[1]), words[2] == b"true"
    context.peer = text(words[3]) if len(words) > 3 else ""
    value = script.open(words[0] == b"true")
    with sending:
        last_handle += 1
        name = b"%d" % last_handle
    handles[name] = Handle(value)
    return name


def close(words):
    handle = handles.pop(words[0])
    if hasattr(script, "close"):
        script.close(handle.value)


def of_handle(name):
    return lambda words: getattr(script, name)(handles[words[0]].value)


def question(name):
    ask = of_handle(name)

    def method(words):
        if not ask(words):
            raise No
    return method


def support(name):
    ask = of_handle(name)
    return lambda words: SUPPORT[ask(words)]


def get_size(words):
    return str(int(script.get_size(handles[words[0]].value)))


def block_size(words):
    return "%d %d %d" % tuple(script.block_size(handles[words[0]].value))


def flags_of(word):
    if word == b"-":
        return 0
    flags = 0
    for name in word.split(b","):
        flags |= FLAGS.get(name, 0)
    return flags


def pread(words):
    handle, count, offset = handles[words[0]].value, int(words[1]), int(words[2])
    if version == 2:
        buffer = bytearray(count)
        script.pread(handle, memoryview(buffer), offset, 0)
        return buffer
    data = script.pread(handle, count, offset)
    if isinstance(data, str):
        data = data.encode()
    data = memoryview(data).cast("B")
    if len(data) < count:
        raise Exception("pread returned %d bytes instead of %d" % (len(data), count))
    return data[:count]


def pwrite(words, data):
    handle, offset = handles[words[0]].value, int(words[2])
    if version == 2:
        script.pwrite(handle, memoryview(data), offset, flags_of(words[3]))
    else:
        script.pwrite(handle, data, offset)


def flush(words):
    handle = handles[words[0]].value
    script.flush(handle, 0) if version == 2 else script.flush(handle)


def ranged(name):
    def method(words):
        handle, count, offset = handles[words[0]].value, int(words[1]), int(words[2])
        flags = flags_of(words[3]) if len(words) > 3 else 0
        function = getattr(script, name)
        if version == 2:
            return function(handle, count, offset, flags)
        if name == "zero":
            return function(handle, count, offset, bool(flags & FLAG_MAY_TRIM))
        return function(handle, count, offset)
    return method


find_extents = ranged("extents")


def extents(words):
    return "".join("%d %d %d\n" % tuple(extent) for extent in find_extents(words))


def call(name):
    return lambda _: getattr(script, name)()


table = {
    b"load": load, b"dump_plugin": dump_plugin, b"unload": unload, b"config": config, b"thread_model": thread_model,
    b"config_complete": call("config_complete"), b"get_ready": call("get_ready"), b"after_fork": call("after_fork"),
    b"magic_config_key": lambda _: "script", b"list_exports": list_exports, b"default_export": default_export,
    b"preconnect": lambda words: script.preconnect(words[0] == b"true"), b"open": open_handle, b"close": close,
    b"export_description": of_handle("export_description"), b"get_size": get_size, b"block_size": block_size,
    b"can_fua": support("can_fua"), b"can_cache": support("can_cache"), b"pread": pread, b"flush": flush,
    b"trim": ranged("trim"), b"zero": ranged("zero"), b"cache": ranged("cache"), b"extents": extents,
}
for each in ("is_rotational", "can_multi_conn", "can_write", "can_flush", "can_trim", "can_zero", "can_fast_zero", "can_extents"):
    table[each.encode()] = question(each)
IO = frozenset((b"pread", b"pwrite", b"flush", b"trim", b"zero", b"cache", b"extents"))
QUIET = frozenset((b"trim", b"zero", b"cache"))  # whatever they return means nothing
model = "serialize_all_requests"


# ---- requests

def describe(failure):
    """One line for the client and the log; where in the script it happened goes along."""
    parts = traceback.extract_tb(failure.__traceback__)
    inside = [part for part in parts if part.filename == sys.argv[0]]
    where = " (%s:%d)" % (os.path.basename(inside[-1].filename), inside[-1].lineno) if inside else ""
    what = "".join(traceback.format_exception_only(type(failure), failure)).strip().replace("\n", "; ")
    return what + where


def run(request, words, data):
    """The reply to one request, as parts to be sent."""
    method = words[1]
    context.error, context.demand = 0, b""
    try:
        if method in IO:
            handle = handles[words[3]]
            context.export_name, context.is_tls, context.peer = handle.export_name, handle.is_tls, handle.peer
        if method == b"pwrite":
            output = pwrite(words[3:], data)
        else:
            known = table.get(method)
            if known is None:
                raise Missing
            output = known(words[3:])
        if output is None or method in QUIET:
            output = b""
        elif isinstance(output, str):
            output = output.encode("utf-8", "surrogateescape")
        kind = b"ok"
    except Missing:
        kind, output = b"missing", b""
    except No:
        kind, output = b"false", b""
    except BaseException as failure:
        name = errno.errorcode.get(context.error or errno.EIO, "EIO")
        kind, output = b"error", ("%s %s" % (name, describe(failure))).encode("utf-8", "replace")
        message(b"debug", traceback.format_exc())
    if method not in IO:
        sys.stdout.flush()
    return [b"%s %s %d %s\n" % (request, kind, len(output), context.demand), output]


class Reader:
    """Requests from the channel, as (id, words, data)."""

    def __init__(self):
        self.buffer = bytearray(BATCH_BYTES)
        self.begin = self.end = 0

    def fill(self, needed):
        if self.begin:
            self.buffer[:self.end - self.begin] = self.buffer[self.begin:self.end]
            self.end -= self.begin
            self.begin = 0
        if len(self.buffer) < needed:
            self.buffer.extend(bytes(needed - len(self.buffer)))
        if self.end == len(self.buffer):
            self.buffer.extend(bytes(len(self.buffer)))
        got = channel.recv_into(memoryview(self.buffer)[self.end:])
        if not got:
            os._exit(0) if threading.active_count() > 1 else sys.exit(0)
        self.end += got

    def has_more(self):
        return self.buffer.find(b"\n", self.begin, self.end) >= 0

    def next(self):
        while True:
            newline = self.buffer.find(b"\n", self.begin, self.end)
            if newline >= 0:
                break
            self.fill(0)
        words = bytes(self.buffer[self.begin:newline]).split(b" ")
        length = int(words[2])
        self.begin = newline + 1
        data = b""
        if length:
            while self.end - self.begin < length:
                self.fill(length)
            data = bytes(self.buffer[self.begin:self.begin + length])
            self.begin += length
        return words[0], words, data


def worker(jobs):
    context.export_name, context.is_tls, context.peer = "", False, ""
    while True:
        send(run(*jobs.get()))


def start_workers():
    """A queue for each worker where the requests of a handle must not overtake one another, else one for all."""
    one = queue.SimpleQueue()
    queues = [one if model == "parallel" else queue.SimpleQueue() for _ in range(WORKERS)]
    for each in queues:
        threading.Thread(target=worker, args=(each,), daemon=True).start()
    return queues


def main():
    context.export_name, context.is_tls, context.peer = "", False, ""
    reader = Reader()
    parts, size = [], 0
    queues = None
    while True:
        request, words, data = reader.next()
        if model in ("serialize_requests", "parallel") and words[1] in IO:
            queues = queues or start_workers()
            queues[int(words[3]) % WORKERS].put((request, words, data))
            continue
        parts += run(request, words, data)
        size += len(parts[-1])
        if size >= BATCH_BYTES or not reader.has_more():
            send(parts)
            parts, size = [], 0


main()
