// A server as many are: at SIGTERM or SIGINT it listens no more, finishes what it has, and ends after 5 s at the latest.
// It repeats what is posted. Argument: an address. It takes its socket from Server::Starter if that started it. Its
// generation is in the file GENERATION_FILE, or in a variable.

const fs = require('fs');
const http = require('http');

const { env } = process;
const generation = env.GENERATION_FILE
  ? fs.readFileSync(env.GENERATION_FILE, 'utf8')
  : env.SERVERSWAP_GENERATION ?? env.SERVER_STARTER_GENERATION;
const server = http.createServer((request, response) => {
  let posted = '';
  request.setEncoding('utf8').on('data', (data) => { posted += data; }).on('end', () => {
    response.end(`${generation} ${process.pid} ${posted}\n`);
  });
});
const [host, port] = (env.ADDRESS ?? process.argv[2]).split(':');
if (env.SERVER_STARTER_PORT) server.listen({ fd: Number(env.SERVER_STARTER_PORT.split('=').pop()) });
else server.listen(Number(port), host);
for (const signal of ['SIGTERM', 'SIGINT']) {
  process.once(signal, () => {
    server.close(() => process.exit());
    setTimeout(() => process.exit(), 5000);
  });
}
