"""A server that knows nothing of serverswap: no handler for signals, no control channel. Arguments: addresses;
then any of `slow=MS`: every answer takes that long; `listen=FIFO`: listens only when somebody has opened the fifo
and closed it again; `accept=FIFO`: listens, and accepts only then; `late=MS`: accepts so much later; `never`:
never accepts; `die`: exits with 7 right after listen; `ready`: says that it is, once it listens; `closes`: closes
what it has, and stays; `hold=FIFO`: answers a request for /hold only when the fifo was opened and closed;
`again=FIFO`: afterwards, each line of the fifo is a port to listen on too; `reuseport`: sets the option; `twice`:
listens, closes, and listens again; `steers`: puts a program of its own on the port; `forks=N`: so many processes
listen on one socket and accept; `database=PORT`: keeps a connection open to a server of its own; `ids=FILE`: what is posted, an id, is appended
there. The answer repeats it."""

import ctypes
import http.server
import os
import signal
import socket
import struct
import sys
import threading
import time

words = sys.argv[1:]
values = dict(word.split("=", 1) for word in words if "=" in word)

ids = os.open(values["ids"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if "ids" in values else None


def pass_gate(name):
    if name in values:
        with open(values[name], "rb") as fifo:
            fifo.read()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/hold":
            pass_gate("hold")
        time.sleep(int(values.get("slow", 0)) / 1000)
        self.answer("")

    def do_POST(self):
        posted = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if ids is not None:
            os.write(ids, f"{posted}\n".encode())
        self.answer(f" {posted}")

    def answer(self, posted):
        body = f"{os.environ['SERVERSWAP_GENERATION']} {os.getpid()}{posted}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def server_bind(self):
        if "reuseport" in words:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()


def serve(address):
    host, port = address.rsplit(":", 1)
    host = host.strip("[]") or "0.0.0.0"
    server = type("S", (Server,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
    return server((host, int(port)), Handler)


pass_gate("listen")
if "twice" in words:
    for word in words:
        if ":" in word:
            serve(word).server_close()
servers = [serve(word) for word in words if ":" in word]
if "steers" in words:
    # One instruction: the first socket of the group (linux/filter.h).
    program = struct.pack("HBBI", 0x06, 0, 0, 0)
    buffer = ctypes.create_string_buffer(program)
    for server in servers:
        option = struct.pack("HxxxxxxP", 1, ctypes.addressof(buffer))
        server.socket.setsockopt(socket.SOL_SOCKET, 51, option)
if "database" in values:
    database = socket.create_connection(("127.0.0.1", int(values["database"])))
    database.sendall(b"a question that nobody answers")
for _ in range(int(values.get("forks", 1)) - 1):
    if os.fork() == 0:
        for server in servers:
            server.server_activate()
        break
if "die" in words:
    os._exit(7)
if "ready" in words:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
if "closes" in words:
    for server in servers:
        server.server_close()
    signal.pause()
if "never" in words:
    signal.pause()
pass_gate("accept")
time.sleep(int(values.get("late", 0)) / 1000)
for server in servers:
    threading.Thread(target=server.serve_forever, daemon=True).start()
while "again" in values:
    with open(values["again"]) as fifo:
        for line in fifo:
            server = serve(f":{int(line)}")
            threading.Thread(target=server.serve_forever, daemon=True).start()
signal.pause()
