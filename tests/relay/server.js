// A server with answers of every kind: node server.js PORT IDS [graceful|late]. Each body of a POST to / is an id, which it writes
// to the file IDS before it answers with its generation, its pid and the id.
const http = require('http');
const fs = require('fs');

const [port, ids, mode] = process.argv.slice(2);
const own = `${process.env.SERVERSWAP_GENERATION} ${process.pid}`;

function answer(request, response, url, body) {
  const size = Number(url.searchParams.get('size') || 0);
  response.setHeader('X-Generation', process.env.SERVERSWAP_GENERATION);
  switch (url.pathname) {
    case '/length':
      response.setHeader('Content-Length', size);
      return response.end(Buffer.alloc(size, 'x'));
    case '/chunks':
      for (let left = size; left > 0; left -= 1000) response.write(Buffer.alloc(Math.min(left, 1000), 'x'));
      return response.end();
    case '/until-end':
      response.socket.write(`HTTP/1.1 200 OK\r\nX-Generation: ${process.env.SERVERSWAP_GENERATION}\r\nConnection: close\r\n\r\n`);
      return response.socket.end(Buffer.alloc(size, 'x'));
    case '/204':
    case '/304':
      response.statusCode = Number(url.pathname.slice(1));
      return response.end();
    case '/hints':
      return response.writeEarlyHints({ link: '</a>; rel=preload' }, () => response.end(own));
    case '/die':
      if (process.env.SERVERSWAP_GENERATION !== '1') process.kill(process.pid, 'SIGKILL');
      return response.end(own);
    case '/peer':
      return response.end(request.socket.remoteAddress);
    case '/stream': {
      let left = 10;
      const timer = setInterval(() => {
        response.write(`${left}\n`);
        if (--left === 0) { clearInterval(timer); response.end('end\n'); }
      }, 300);
      return response.write('begin\n');
    }
    default:
      if (request.method === 'POST') fs.appendFileSync(ids, `${body}\n`);
      return response.end(`${own} ${body}`);
  }
}

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://x');
  if (url.pathname === '/echo') {
    response.setHeader('X-Generation', process.env.SERVERSWAP_GENERATION);
    return request.pipe(response);
  }
  let body = '';
  request.on('data', (data) => { body += data; });
  request.on('end', () => answer(request, response, url, body));
});
server.keepAliveTimeout = 60000;
server.listen(Number(port), process.env.HOST || '127.0.0.1');
if (mode === 'late') process.on('SIGTERM', () => { fs.writeFileSync(`${ids}.told`, ''); setTimeout(process.exit, 300); });
if (mode === 'graceful') process.on('SIGTERM', () => server.close(() => process.exit(0)));
