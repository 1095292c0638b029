// The sample server of "make demo": answers with its generation and pid, at
// once or, for /slow, after a second.  It knows nothing of serverswap, and
// nothing of signals.
'use strict';

const http = require('node:http');

const server = http.createServer((request, response) => {
  const answer = () => {
    response.setHeader('Connection', 'close');
    response.end(`${process.env.SERVERSWAP_GENERATION || 0} ${process.pid}\n`);
  };
  setTimeout(answer, request.url === '/slow' ? 1000 : 0);
});

server.listen(process.argv[2] || 8080);
