"""A server for units: answers with $V and its pid; `crash` and `hang` in $V are what it does. With LISTEN_FDS it has the
socket of a socket unit and says READY=1, unless $V is `mute`; otherwise it binds the port of its argument."""

import os
import socket
import sys
import time

V = os.environ.get("V", "-")
if V == "crash":
    sys.exit("crashed: no database")
if V == "hang":
    time.sleep(1000)
if "LISTEN_FDS" in os.environ:
    assert os.environ["LISTEN_PID"] == str(os.getpid()), "LISTEN_PID names another process"
    listener = socket.socket(fileno=3)
    if V != "mute":
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
else:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, _ = listener.accept()
    if client.recv(1000):
        client.sendall(f"HTTP/1.0 200 OK\r\n\r\n{V} {os.getpid()}".encode())
    client.close()
