// A server behind nginx. It answers with its generation and what was posted, which it appends to a file, so that
// a request that is carried out twice is seen. Arguments: the port, the file, and how it goes: `client` (the lines
// that the README recommends), `close` (server.close() and a timer) or `plain` (knows nothing of serverswap).

const fs = require('fs');
const http = require('http');
const serverswap = require('../../src/client/node');

const [port, file, way] = process.argv.slice(2);
const log = fs.openSync(file, 'a');

const server = http.createServer(async (request, response) => {
  const body = (await request.setEncoding('utf8').toArray()).join('');
  const number = body.split(' ')[0];
  if (request.method === 'POST') fs.writeSync(log, `${number}\n`);
  const wait = Number(new URL(request.url, 'http://x').searchParams.get('wait'));
  setTimeout(() => response.end(`${process.env.SERVERSWAP_GENERATION} ${number}`), wait);
});
// It is not the time between swaps that is tested: nginx closes idle connections after a minute, and before that the
// server does not.
server.keepAliveTimeout = 75_000;

const address = `127.0.0.1:${port}`;
if (way === 'plain') {
  server.listen(port, '127.0.0.1');
} else {
  serverswap.readyFor(address, () => server.listen(port, '127.0.0.1'));
}
if (way === 'client') serverswap.onTakedown(address, server, () => process.exit());
if (way === 'close') serverswap.onTakedown(address, () => { server.close(); setTimeout(process.exit, 5000); });
