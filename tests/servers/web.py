"""Applications that know nothing of serverswap: `wsgi` for gunicorn, `asgi` for uvicorn. What is posted, an id, is
repeated, and appended to the file that IDS names. The answer to /ill has status 500. A file may tell the generation: GENERATION_FILE."""

import os

ids = os.open(os.environ["IDS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if "IDS" in os.environ else None
if "GENERATION_FILE" in os.environ:
    with open(os.environ["GENERATION_FILE"]) as file:
        generation = file.read()
else:
    generation = os.environ["SERVERSWAP_GENERATION"]


def body(posted):
    if posted and ids is not None:
        os.write(ids, posted + b"\n")
    return f"{generation} {os.getpid()} ".encode() + posted + b"\n"


def wsgi(environ, start_response):
    answer = body(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    status = "500 Ill" if environ["PATH_INFO"] == "/ill" else "200 OK"
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    posted, more = b"", True
    while more:
        part = await receive()
        posted, more = posted + part.get("body", b""), part.get("more_body", False)
    answer = body(posted)
    length = (b"content-length", str(len(answer)).encode())
    status = 500 if scope["path"] == "/ill" else 200
    await send({"type": "http.response.start", "status": status, "headers": [length]})
    await send({"type": "http.response.body", "body": answer})
