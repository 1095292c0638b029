"""Raw lines on the control fd. Arguments: a port, then any of `takedown`, and `daemon`: once it is bound,
the process that was started ends, and its grandchild in a session of its own goes on."""

import http.server
import os
import socket
import sys
import threading

port, flags = int(sys.argv[1]), sys.argv[2:]
control = socket.socket(fileno=int(os.environ["SERVERSWAP_FD"]))
lines = control.makefile("r", newline="\n")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{os.environ['SERVERSWAP_GENERATION']} {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


control.sendall(f"READY :{port}\n".encode())
assert lines.readline() == f"GO :{port}\n"
server = http.server.ThreadingHTTPServer(("", port), Handler)
if "daemon" in flags:
    for _ in range(2):
        if os.fork():
            os._exit(0)
        os.setsid()


def take_down():
    for line in lines:
        if line == f"TAKEDOWN :{port}\n":
            server.shutdown()


if "takedown" in flags:
    control.sendall(f"TAKEDOWN :{port}\n".encode())
    threading.Thread(target=take_down, daemon=True).start()
server.serve_forever()
server.socket.close()
control.sendall(f"RELEASED :{port}\n".encode())
server.server_close()
