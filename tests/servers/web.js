// Servers of Node that speak something else than HTTP/1, and know nothing of serverswap. Arguments: an address, then
// `https`, `http2` or `websocket`; then perhaps `hold=FIFO`: /hold is answered when the fifo was opened and closed;
// `graceful`: the handler for SIGTERM that servers have, which finishes what is running. /slow is answered after 2.5 s.
// What is posted is repeated, and so is the short text of a WebSocket frame. KEY and CERT are PEM files.

const crypto = require('crypto');
const fs = require('fs');

const [address, kind, ...words] = process.argv.slice(2);
const hold = words.find((word) => word.startsWith('hold='));
const who = `${process.env.SERVERSWAP_GENERATION} ${process.pid}`;
let gate;
const answer = async (request, response) => {
  if (request.url === '/slow') await new Promise((resolve) => { setTimeout(resolve, 2500); });
  if (request.url === '/hold') await (gate ??= fs.promises.readFile(hold.slice('hold='.length)));
  let posted = '';
  if (request.method === 'POST') for await (const part of request) posted += part;
  response.end(`${who} ${posted}\n`);
};
// RFC 6455, as much as an echo needs: each frame is a masked text of less than 126 bytes, whole in what arrives or not.
const echo = (request, socket) => {
  const key = `${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`;
  const accept = crypto.createHash('sha1').update(key).digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
               `Sec-WebSocket-Accept: ${accept}\r\n\r\n`);
  let rest = Buffer.alloc(0);
  socket.on('error', () => {}).on('data', (data) => {
    rest = Buffer.concat([rest, data]);
    while (rest.length >= 6 && rest.length >= 6 + (rest[1] & 127)) {
      const [mask, text] = [rest.subarray(2, 6), rest.subarray(6, 6 + (rest[1] & 127))];
      rest = rest.subarray(6 + text.length);
      const answer = Buffer.from(`${who} ${text.map((byte, i) => byte ^ mask[i % 4]).toString()}\n`);
      socket.write(Buffer.concat([Buffer.from([0x81, answer.length]), answer]));
    }
  });
};
const start = {
  https: () => require('https').createServer({
    key: fs.readFileSync(process.env.KEY),
    cert: fs.readFileSync(process.env.CERT),
  }, answer),
  http2: () => require('http2').createServer(answer),
  websocket: () => require('http').createServer(answer).on('upgrade', echo),
};
const [host, port] = address.split(':');
const server = start[kind]().listen({ host, port: Number(port) });
if (words.includes('graceful')) {
  const sessions = new Set();
  server.on('session', (session) => sessions.add(session.once('close', () => sessions.delete(session))));
  process.on('SIGTERM', () => {
    server.close();
    sessions.forEach((session) => session.close());
  });
}
