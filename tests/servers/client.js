// The classic server, with the client library. Arguments: addresses; then `takedown`, `second=FIFO`: the second
// address is not ready until somebody has opened the fifo and closed it again, and `ids=FILE`: what is posted, an id, is
// appended there. The answer repeats it. That to /ill has status 500.

const fs = require('fs');
const http = require('http');
const serverswap = require('../../src/client/node');

const words = process.argv.slice(2);
const addresses = words.filter((word) => word.includes(':'));
const second = words.find((word) => word.startsWith('second='));
const file = words.find((word) => word.startsWith('ids='));
const ids = file && fs.openSync(file.slice('ids='.length), 'a');
let left = addresses.length;

function start(address) {
  const server = http.createServer((request, response) => {
    let id = '';
    request.setEncoding('utf8').on('data', (data) => { id += data; }).on('end', () => {
      if (request.url === '/ill') response.statusCode = 500;
      if (ids && id) fs.writeSync(ids, `${id}\n`);
      response.end(`${process.env.SERVERSWAP_GENERATION} ${process.pid} ${id}\n`);
    });
  });
  const port = Number(address.split(':').pop());
  serverswap.readyFor(address, () => server.listen(port));
  if (words.includes('takedown')) {
    serverswap.onTakedown(address, server, () => {
      left -= 1;
      if (left === 0) process.exit();
    });
  }
}

start(addresses[0]);
for (const address of addresses.slice(1)) {
  if (second === undefined) {
    start(address);
  } else {
    fs.readFile(second.slice('second='.length), () => start(address));
  }
}
