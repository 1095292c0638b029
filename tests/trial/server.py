"""A server that keeps its connections: python3 server.py DIR ADDRESS... [listeners=N]. N sockets of SO_REUSEPORT listen at
each address. The answer is its generation, its pid, the number of the socket, and what was posted, which it has appended to
DIR/ids before. It writes each signal that gets to it to DIR/signals (only SIGUSR1 does not end it), and a time to DIR/ticks.PID now and then.
DIR/health.GENERATION says how it answers GET /health: 200, 500, never ("hangs"), or 500 each second time ("flaps"); "500 everywhere"
is for every path."""

import os
import select
import signal
import socket
import sys
import time

where, *words = sys.argv[1:]
values = dict(word.split("=", 1) for word in words if "=" in word)
generation = os.environ.get("SERVERSWAP_GENERATION", "0")
asked = 0


def append(name, text):
    with open(os.path.join(where, name), "a") as file:
        file.write(text + "\n")


def health():
    global asked
    try:
        with open(os.path.join(where, f"health.{generation}")) as file:
            mode = file.read().strip()
    except FileNotFoundError:
        return "200"
    if mode == "flaps":
        asked += 1
        return "500" if asked % 2 else "200"
    return mode


def answer(request, body, listener):
    """The bytes of an answer; None where there is none."""
    method, path = request.split(b" ", 2)[:2]
    status = "200"
    if path == b"/health":
        status = health()
        if status == "hangs":
            return None
    elif is_sick():
        status = "500"
    status = status[:3]
    posted = ""
    if method == b"POST":
        posted = " " + body.decode()
        append("ids", body.decode())
    text = f"{generation} {os.getpid()} {listener}{posted}" if status == "200" else "sick"
    closes = b"connection: close" in request.lower()
    head = f"HTTP/1.1 {status} x\r\nX-Generation: {generation}\r\nContent-Length: {len(text)}\r\n"
    return (head + ("Connection: close\r\n" if closes else "") + "\r\n" + text).encode()


def is_sick():
    return "sick" in words and generation != "1"


def ends(number, _):
    append("signals", f"{generation} {signal.Signals(number).name}")
    if number != signal.SIGUSR1:
        os._exit(0)


for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, ends)
poll, listeners, connections = select.epoll(), {}, {}
for address in (word for word in words if ":" in word):
    host, port = address.rsplit(":", 1)
    family = socket.AF_INET6 if "[" in host else socket.AF_INET
    for nth in range(int(values.get("listeners", "1"))):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if "listeners" in values:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(1024)
        listener.setblocking(False)
        listeners[listener.fileno()] = (listener, len(listeners))
        poll.register(listener, select.EPOLLIN)


def close(fd):
    connections.pop(fd)[0].close()


def serve(fd):
    stream, listener, read = connections[fd]
    try:
        part = stream.recv(65536)
        if not part:
            return close(fd)
        read += part
        while b"\r\n\r\n" in read:
            head, rest = bytes(read).split(b"\r\n\r\n", 1)
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if len(rest) < length:
                return
            del read[: len(head) + 4 + length]
            reply = answer(head, rest[:length], listener)
            if reply is None:
                return
            stream.sendall(reply)
            if b"connection: close" in head.lower():
                return close(fd)
    except OSError:
        close(fd)


ticked = 0
while True:
    ready = poll.poll(0.02)
    if time.monotonic() - ticked > 0.02:
        ticked = time.monotonic()
        append(f"ticks.{os.getpid()}", str(ticked))
    for fd, _ in ready:
        if fd in connections:
            serve(fd)
            continue
        try:
            stream, _ = listeners[fd][0].accept()
        except OSError:
            continue
        connections[stream.fileno()] = (stream, listeners[fd][1], bytearray())
        poll.register(stream, select.EPOLLIN)
