"""A server that knows nothing of serverswap and changes its user. Arguments: a port, the uid, and when: `before` it
binds, `between` bind and listen, `after` it listens, or when it has `answered` a request."""

import os
import socket
import sys

port, uid, when = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def change():
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if when == "before":
    listener.close()
    change()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", port))
if when == "between":
    change()
listener.listen(128)
if when == "after":
    change()
while True:
    connection, _ = listener.accept()
    asked = connection.recv(4096)
    body = f"{os.environ['SERVERSWAP_GENERATION']} {os.getpid()}\n"
    head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())
    connection.close()
    if asked and when == "answered":
        change()
        when = "done"
