// Raw lines on the control fd, without the client library. Arguments: an address, then `takedown`.

const http = require('http');
const net = require('net');

const [address, takedown] = process.argv.slice(2);
const control = new net.Socket({ fd: Number(process.env.SERVERSWAP_FD), readable: true, writable: true });
const server = http.createServer((request, response) => {
  response.setHeader('Connection', 'close');
  response.end(`${process.env.SERVERSWAP_GENERATION} ${process.pid}\n`);
});

let rest = '';
control.setEncoding('utf8');
control.on('data', (text) => {
  const lines = (rest + text).split('\n');
  rest = lines.pop();
  for (const line of lines) {
    if (line === `GO ${address}`) server.listen(Number(address.slice(1)));
    if (line === `TAKEDOWN ${address}`) {
      server.close(() => process.exit());
      control.write(`RELEASED ${address}\n`);
    }
  }
});
control.write(`READY ${address}\n`);
if (takedown) control.write(`TAKEDOWN ${address}\n`);
