"""Clients of servers that do not speak HTTP/1. Each request has a connection of its own and is one line on standard
output: the generation that answered, or `refused`, `reset`, `empty`, `timed-out` or `other`; the number of the client;
the milliseconds that it took; then what there is to say. Arguments: a protocol, and perhaps what is asked for, as in
`https:/slow`; a port; how many clients; how many requests each (0: until the end of standard input)."""

import os
import socket
import ssl
import struct
import sys
import threading
import time

PATIENCE = 30
what, port, clients, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
stopped = threading.Event()


class Empty(Exception):
    """The connection ended before the first byte of an answer."""


def connect():
    stream = socket.create_connection(("127.0.0.1", port), PATIENCE)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def receive(stream, length, first=False):
    data = b""
    while len(data) < length:
        part = stream.recv(length - len(data))
        if not part:
            raise Empty() if first and not data else ValueError(f"cut after {data!r}")
        data += part
    return data


def redis(path):
    """The generation is in an option of the server that takes any text."""
    with connect() as stream:
        stream.sendall(b"PING\r\nCONFIG GET syslog-ident\r\nQUIT\r\n")
        lines = stream.makefile("rb").read().split(b"\r\n")
        if lines == [b""]:
            raise Empty()
        if lines[0] != b"+PONG" or lines[-2] != b"+OK":
            raise ValueError(f"{lines}")
        return int(lines[5])


def mqtt(path):
    """CONNECT of version 5; the largest packet that CONNACK allows is 1000 more than the generation."""
    with connect() as stream:
        body = b"\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00"
        stream.sendall(bytes([0x10, len(body)]) + body)
        kind, length = receive(stream, 2, first=True)
        answer = receive(stream, length)
        properties = answer[3:]
        if kind != 0x20 or answer[1] != 0:
            raise ValueError(f"{kind} {answer!r}")
        lengths = {0x11: 4, 0x13: 2, 0x21: 2, 0x22: 2, 0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1}
        while properties:
            name, value = properties[0], properties[1:]
            if name == 0x27:
                return struct.unpack(">I", value[:4])[0] - 1000
            size = lengths.get(name) or 2 + struct.unpack(">H", value[:2])[0]
            properties = value[size:]
        raise ValueError(f"{answer!r} tells no generation")


def fastcgi(path):
    def record(kind, content):
        return struct.pack(">BBHHBx", 1, kind, 1, len(content), 0) + content

    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "web.php")
    parameters = {"SCRIPT_FILENAME": script, "REQUEST_METHOD": "GET", "QUERY_STRING": ""}
    pairs = b"".join(bytes([len(k), len(v)]) + (k + v).encode() for k, v in parameters.items())
    with connect() as stream:
        stream.sendall(record(1, struct.pack(">HB5x", 1, 0)) + record(4, pairs) + record(4, b"") + record(5, b""))
        output, first = b"", True
        while True:
            _, kind, _, length, padding = struct.unpack(">BBHHBx", receive(stream, 8, first))
            content, first = receive(stream, length), False
            receive(stream, padding)
            if kind == 6:
                output += content
            if kind == 3:
                return int(output.split(b"\r\n\r\n")[1].split()[0])


def question():
    """The text of `generation.test`."""
    name = b"\x0ageneration\x04test\x00"
    return struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + name + struct.pack(">HH", 16, 1)


def text_of(answer):
    if struct.unpack(">H", answer[6:8])[0] != 1:
        raise ValueError(f"{answer!r}")
    # The text is the last thing in the answer: its length, then itself.
    return int(answer[len(question()) + 13 :])


def dns(path):
    with connect() as stream:
        stream.sendall(struct.pack(">H", len(question())) + question())
        length = struct.unpack(">H", receive(stream, 2, first=True))[0]
        return text_of(receive(stream, length))


def dns_udp(path):
    """A resolver asks again when it has had no answer for a second."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
        stream.connect(("127.0.0.1", port))
        stream.settimeout(1)
        for attempt in range(PATIENCE):
            try:
                stream.send(question())
                return text_of(stream.recv(512))
            except (TimeoutError, ConnectionRefusedError) as e:
                failure = e
                time.sleep(0.1)
        raise failure


def https(path):
    """The request leaves in one segment with the end of the handshake."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with connect() as stream:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing)
        answer, asked = b"", False
        while True:
            try:
                if not asked:
                    tls.do_handshake()
                    tls.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                    asked = True
                while part := tls.read(4096):
                    answer += part
                break
            except ssl.SSLWantReadError:
                if outgoing.pending:
                    stream.sendall(outgoing.read())
                if answer.endswith(b"\n") and b"\r\n\r\n" in answer:
                    break
                data = stream.recv(65536)
                if not data:
                    raise Empty() if not answer else ValueError(f"cut after {answer!r}")
                incoming.write(data)
        return int(answer.split(b"\r\n\r\n")[1].split()[0])


def grpc(path):
    import grpc as library

    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    with library.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        try:
            return int(channel.unary_unary("/web.Web/Generation")(path.encode(), timeout=PATIENCE))
        except library.RpcError as e:
            said = e.details() or ""
            if "refused" in said:
                raise ConnectionRefusedError(said) from e
            if "reset" in said or "closed" in said.lower():
                raise ConnectionResetError(said) from e
            if e.code() == library.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError(said) from e
            raise ValueError(f"{e.code()} {said}") from e


PROTOCOLS = {
    "redis": redis,
    "mqtt": mqtt,
    "fastcgi": fastcgi,
    "dns": dns,
    "dns-udp": dns_udp,
    "https": https,
    "grpc": grpc,
}
protocol, _, path = what.partition(":")


def attempt():
    try:
        return str(PROTOCOLS[protocol](path)), None
    except ConnectionRefusedError as e:
        return "refused", e
    except (ConnectionResetError, BrokenPipeError) as e:
        return "reset", e
    except TimeoutError as e:
        return "timed-out", e
    except Empty as e:
        return "empty", e
    except (OSError, ValueError, IndexError, struct.error) as e:
        return "other", e


def client(number):
    turn = 0
    while turn < times or times == 0 and not stopped.is_set():
        turn += 1
        began = time.monotonic()
        said, why = attempt()
        took = int((time.monotonic() - began) * 1000)
        # In one piece: the others write too.
        sys.stdout.write(f"{said} {number} {took} {repr(why) if why else ''}".rstrip() + "\n")
        sys.stdout.flush()
        if times == 0:
            time.sleep(0.01)


threads = [threading.Thread(target=client, args=[number]) for number in range(clients)]
for thread in threads:
    thread.start()
if times == 0:
    sys.stdin.read()
    stopped.set()
for thread in threads:
    thread.join()
