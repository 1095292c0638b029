"""Applications that know nothing of serverswap: `wsgi` for gunicorn, `asgi` for uvicorn."""

import os


def body():
    return f"{os.environ['SERVERSWAP_GENERATION']} {os.getpid()}\n".encode()


def wsgi(environ, start_response):
    answer = body()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    answer = body()
    length = (b"content-length", str(len(answer)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": answer})
