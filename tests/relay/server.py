"""A server of the standard library that keeps its connections: python3 server.py PORT IDS."""

import http.server
import os
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with open(sys.argv[2], "a") as ids:
            ids.write(body + "\n")
        answer = f"{os.environ['SERVERSWAP_GENERATION']} {os.getpid()} {body}".encode()
        self.send_response(200)
        self.send_header("X-Generation", os.environ["SERVERSWAP_GENERATION"])
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
