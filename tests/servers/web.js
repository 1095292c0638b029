// Servers of Node that speak something else than HTTP/1, and know nothing of serverswap. Arguments: an address, then
// `https` or `http2`; then perhaps `hold=FIFO`: /hold is answered when the fifo was opened and closed. /slow is answered
// after 2.5 s. KEY and CERT are PEM files.

const fs = require('fs');

const [address, kind, hold] = process.argv.slice(2);
let gate;
const answer = async (request, response) => {
  if (request.url === '/slow') await new Promise((resolve) => { setTimeout(resolve, 2500); });
  if (request.url === '/hold') await (gate ??= fs.promises.readFile(hold.slice('hold='.length)));
  response.end(`${process.env.SERVERSWAP_GENERATION} ${process.pid}\n`);
};
const start = {
  https: () => require('https').createServer({
    key: fs.readFileSync(process.env.KEY),
    cert: fs.readFileSync(process.env.CERT),
  }, answer),
  http2: () => require('http2').createServer(answer),
};
const [host, port] = address.split(':');
start[kind]().listen({ host, port: Number(port) });
