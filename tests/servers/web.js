// Servers of Node that speak something else than HTTP/1, and know nothing of serverswap. Arguments: an address, then
// `https` or `http2`. /slow answers after 2.5 s. KEY and CERT are PEM files.

const fs = require('fs');

const [address, kind] = process.argv.slice(2);
const answer = (request, response) => {
  const say = () => response.end(`${process.env.SERVERSWAP_GENERATION} ${process.pid}\n`);
  setTimeout(say, request.url === '/slow' ? 2500 : 0);
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
