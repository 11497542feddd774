#!/bin/bash
# A Python plugin over boto3 that serves one object of an S3 store, many requests at a time: the script of a blog's reader,
# which says no API_VERSION, and a store that is as small as one can be.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdcopy nbdinfo
skip_unless_python_has boto3 python3-boto3

cat >store.py <<'EOS'
import http.server, sys, re
data = open(sys.argv[1], "rb").read()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *words): pass
    def do_GET(self):
        if self.path.split("?")[0] != "/disks/object.img":
            self.send_error(404)
            return
        if "Credential=ACCESS/" not in self.headers.get("Authorization", ""):
            self.send_error(403)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = data[int(wanted[1]):int(wanted[2]) + 1] if wanted else data
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
EOS
cat >object.py <<'EOS'
#!/usr/sbin/nbdkit python
import nbdkit
import boto3
from contextlib import closing

settings = {}

def thread_model():
    return nbdkit.THREAD_MODEL_PARALLEL

def config(key, value):
    key = key.replace("-", "_")
    if key not in ("access_key", "secret_key", "endpoint_url", "bucket", "key"):
        raise Exception("unknown parameter %s" % key)
    settings[key] = value

def open(readonly):
    return boto3.client("s3", aws_access_key_id=settings["access_key"], aws_secret_access_key=settings["secret_key"],
                        endpoint_url=settings["endpoint_url"])

def get_size(s3):
    answer = s3.get_object(Bucket=settings["bucket"], Key=settings["key"])
    return int(answer["ResponseMetadata"]["HTTPHeaders"]["content-length"])

def pread(s3, buf, offset, flags):
    wanted = "bytes=%d-%d" % (offset, offset + len(buf) - 1)
    answer = s3.get_object(Bucket=settings["bucket"], Key=settings["key"], Range=wanted)
    with closing(answer["Body"]) as body:
        buf[:] = body.read(len(buf))
EOS
head -c 3000003 /dev/urandom >object.img
background store /usr/bin/python3 store.py object.img
wait_until 10 test -s store.log
words=(endpoint-url="http://127.0.0.1:$(cat store.log)" access-key=ACCESS secret_key=SECRET bucket=disks)
export AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
blk serve -U - python object.py "${words[@]}" key=object.img --run 'nbdcopy --requests=16 "$uri" copy.img && nbdinfo --size "$uri"' >size.txt
expect_same object.img copy.img 'the object'
expect_equal "$(cat size.txt)" 3000003
expect_status 1 blk serve -U - python object.py "${words[@]}" key=other --run 'nbdinfo "$uri"' 2>error.txt
expect_match "$(cat error.txt)" 'get_size: .*404'
expect_status 1 blk serve -U - python object.py "${words[@]}" colour=red --run true 2>error.txt
expect_match "$(cat error.txt)" 'config: Exception: unknown parameter colour \(object.py:'
