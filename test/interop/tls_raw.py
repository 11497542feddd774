"""A client of NBD over TLS in raw bytes, for test/interop/tls.sh: what a server must forget, refuse and not say.

Usage: tls_raw.py SOCKET CERTIFICATES CASE...; each case is one function below.
"""
import socket, ssl, struct, sys

OPTION_MAGIC, REPLY_MAGIC = b"IHAVEOPT", 0x3e889045565a9
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
ACK, ERR_TLS_REQD = 1, 0x80000005
path, certificates, cases = sys.argv[1], sys.argv[2], sys.argv[3:]


def option(number, data=b""):
    return OPTION_MAGIC + struct.pack(">II", number, len(data)) + data


def go(name=b""):
    return option(GO, struct.pack(">I", len(name)) + name + b"\0\0")


def meta(number):
    return option(number, struct.pack(">II", 0, 1) + struct.pack(">I", 15) + b"base:allocation")


def exactly(s, size):
    data = b""
    while len(data) < size:
        piece = s.recv(size - len(data))
        if not piece:
            raise EOFError(f"the server hung up after {len(data)} of {size} bytes")
        data += piece
    return data


def reply(s):
    magic, number, kind, size = struct.unpack(">QIII", exactly(s, 20))
    assert magic == REPLY_MAGIC, hex(magic)
    return number, kind, exactly(s, size)


def final(s, number):
    """The type of the last reply to an option, and the data of all."""
    everything = []
    while True:
        got, kind, data = reply(s)
        assert got == number, (got, number)
        everything.append(data)
        if kind == ACK or kind & 0x80000000:
            return kind, everything


def plain():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect(path)
    assert exactly(s, 18) == b"NBDMAGICIHAVEOPT\0\3"
    s.sendall(struct.pack(">I", 3))
    return s


def context(maximum=None):
    c = ssl.create_default_context(cafile=certificates + "/ca-cert.pem")
    if maximum:
        c.maximum_version = maximum
    return c


def secure(s, maximum=None):
    s.sendall(option(STARTTLS))
    assert final(s, STARTTLS)[0] == ACK
    return context(maximum).wrap_socket(s, server_hostname="localhost")


def gone(s):
    """Nothing more comes, whether politely or not."""
    try:
        data = s.recv(4096)
    except (ConnectionError, ssl.SSLError):
        return
    assert data == b"", data


def version(maximum, name):
    s = secure(plain(), maximum)
    assert s.version() == name, s.version()
    s.sendall(go())
    assert final(s, GO)[0] == ACK
    s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
    assert s.recv(1) == b""  # its goodbye, not a reset


def tls12():
    version(ssl.TLSVersion.TLSv1_2, "TLSv1.2")


def tls13():
    version(None, "TLSv1.3")


def tls11():
    c = context()
    c.minimum_version = c.maximum_version = ssl.TLSVersion.TLSv1_1
    c.set_ciphers("ALL:@SECLEVEL=0")
    s = plain()
    s.sendall(option(STARTTLS))
    assert final(s, STARTTLS)[0] == ACK
    try:
        c.wrap_socket(s, server_hostname="localhost")
    except (ssl.SSLError, ConnectionError):
        return
    raise AssertionError("TLS 1.1 was taken")


def refused_in_clear():
    """Before TLS every option but STARTTLS and ABORT gets TLS_REQD, with a text that tells of no export."""
    s = plain()
    for number in [LIST, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED, 4, 12, 4711, 0x53484d31]:
        for data in [b"", b"x" * 100]:
            s.sendall(option(number, data))
            kind, texts = final(s, number)
            assert kind == ERR_TLS_REQD, (number, hex(kind))
            assert b"disk" not in texts[-1] and b"1048576" not in texts[-1], texts
    s.sendall(option(ABORT))
    assert final(s, ABORT)[0] == ACK
    gone(s)


def export_name_in_clear():
    s = plain()
    s.sendall(option(EXPORT_NAME, b"disk"))
    gone(s)


def forgotten():
    """What was negotiated in clear counts for nothing: the reply is a simple one, the context not selected."""
    s = plain()
    for request, number in [(option(STRUCTURED), STRUCTURED), (meta(SET_META), SET_META)]:
        s.sendall(request)
        assert final(s, number)[0] == ACK
    s = secure(s)
    s.sendall(go())
    assert final(s, GO)[0] == ACK
    s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, 512))
    magic, error, cookie = struct.unpack(">IIQ", exactly(s, 16))
    assert (magic, error, cookie) == (0x67446698, 0, 7), hex(magic)
    exactly(s, 512)
    s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 7, 8, 0, 512))  # block status
    magic, error, cookie = struct.unpack(">IIQ", exactly(s, 16))
    assert (magic, error, cookie) == (0x67446698, 22, 8), error


def injected():
    """Clear text right behind STARTTLS, as somebody on the wire would put it there, ends the session unanswered."""
    for behind in [option(LIST), option(STRUCTURED), b"\x16\x03\x01", b"I"]:
        s = plain()
        s.sendall(option(STARTTLS) + behind)
        gone(s)


def clear_text_for_tls():
    """After the answer to STARTTLS only TLS is understood."""
    s = plain()
    s.sendall(option(STARTTLS))
    assert final(s, STARTTLS)[0] == ACK
    s.sendall(option(LIST))
    data = b""
    try:
        while piece := s.recv(4096):
            data += piece
    except ConnectionError:
        pass
    assert b"disk" not in data and struct.pack(">Q", REPLY_MAGIC) not in data, data


def twice():
    s = secure(plain())
    s.sendall(option(STARTTLS))
    kind, _ = final(s, STARTTLS)
    assert kind & 0x80000000, hex(kind)
    s.sendall(option(ABORT))
    assert final(s, ABORT)[0] == ACK


def stalled():
    """A handshake that stops in the middle ends with the time for handshakes, which the script made short."""
    for beginning in [b"", b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\x00\x01\x01" * 100]:
        s = plain()
        s.sendall(option(STARTTLS))
        assert final(s, STARTTLS)[0] == ACK
        s.sendall(beginning)
        try:
            while s.recv(4096):  # alerts
                pass
        except ConnectionError:
            pass


def small_records():
    """An option in records of one byte each."""
    s = secure(plain())
    for byte in go():
        s.sendall(bytes([byte]))
    assert final(s, GO)[0] == ACK


def truncated():
    """The end of the stream without TLS's goodbye is just that: the end."""
    s = secure(plain())
    s.sendall(go())
    assert final(s, GO)[0] == ACK
    raw = socket.socket(fileno=s.detach())
    raw.settimeout(10)
    raw.shutdown(socket.SHUT_WR)
    while raw.recv(4096):
        pass


for case in cases:
    globals()[case]()
