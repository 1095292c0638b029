// The sample server of "make demo": answers with its generation and pid, at
// once or, for /slow, after a second.
'use strict';

const http = require('node:http');
const { readyFor, onTakedown } = require('../../src/client/node');

const port = process.argv[2] || '8080';
const address = `:${port}`;

const server = http.createServer((request, response) => {
  const answer = () => {
    response.setHeader('Connection', 'close');
    response.end(`${process.env.SERVERSWAP_GENERATION || 0} ${process.pid}\n`);
  };
  setTimeout(answer, request.url === '/slow' ? 1000 : 0);
});

readyFor(address, () => server.listen(port));
onTakedown(address, () => {
  // The port is free when this returns; the process ends with its last answer.
  server.close(() => process.exit());
});
