// A server that knows nothing of serverswap: no control channel and no handler for signals. Arguments: addresses;
// then any of `slow=MS`: every answer takes that long; `workers=N`: a cluster; `broken=N`: one whose workers
// exit as soon as they listen; `graceful`: the handler for SIGTERM that servers have, which finishes what is running;
// `keep`: idle connections stay open; `exclusive`: each worker of a cluster listens itself, so that only the first can;
// `ids=FILE`: what is posted, an id, is appended there. The answer repeats it. That to /ill has status 500.

const cluster = require('cluster');
const fs = require('fs');
const http = require('http');

const words = process.argv.slice(2);
const text = (key) => (words.find((word) => word.startsWith(`${key}=`)) || '').slice(key.length + 1);
const value = (key) => Number(text(key));

const workers = value('workers') + value('broken');

if (workers > 0 && cluster.isPrimary) {
  for (let i = 0; i < workers; i += 1) cluster.fork();
  // A worker that is disconnected closes its servers and ends when it has answered.
  if (words.includes('graceful')) process.on('SIGTERM', () => cluster.disconnect());
} else {
  const addresses = words.filter((word) => word.includes(':'));
  const ids = text('ids') && fs.openSync(text('ids'), 'a');
  for (const address of addresses) {
    const server = http.createServer((request, response) => {
      let id = '';
      const answer = () => {
        if (request.url === '/ill') response.statusCode = 500;
        if (ids && id) fs.writeSync(ids, `${id}\n`);
        response.end(`${process.env.SERVERSWAP_GENERATION} ${process.pid} ${id}\n`);
      };
      if (value('slow') > 0) setTimeout(answer, value('slow'));
      else if (request.method === 'POST') request.setEncoding('utf8').on('data', (data) => { id += data; }).on('end', answer);
      else answer();
    });
    if (words.includes('keep')) server.keepAliveTimeout = 0;
    const host = address.slice(0, address.lastIndexOf(':')).replace(/[[\]]/g, '') || '0.0.0.0';
    if (words.includes('graceful') && cluster.isPrimary) process.on('SIGTERM', () => server.close());
    server.listen({
      host,
      port: Number(address.split(':').pop()),
      ipv6Only: host.includes(':'),
      exclusive: words.includes('exclusive'),
    });
    if (value('broken') > 0) server.on('listening', () => process.exit(1));
  }
}
