"""A server that knows nothing of serverswap and listens on two ports, one after the other. Arguments: the ports, then
perhaps `between=FIFO`: after the first it waits until somebody has opened the fifo and closed it again. It accepts only
when it listens on both."""

import os
import socket
import sys
import threading


def serve(listener):
    while True:
        connection, _ = listener.accept()
        try:
            connection.recv(4096)
            body = f"{os.environ['SERVERSWAP_GENERATION']} {os.getpid()}\n"
            head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + body).encode())
        except OSError:
            pass
        connection.close()


listeners = []
for port in sys.argv[1:3]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(port)))
    listener.listen(128)
    listeners.append(listener)
    for gate in sys.argv[3:]:
        if port == sys.argv[1]:
            with open(gate.removeprefix("between="), "rb") as fifo:
                fifo.read()
for listener in listeners:
    threading.Thread(target=serve, args=(listener,)).start()
