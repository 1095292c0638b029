// Clients of an HTTP/2 server, as ask.py has them for other protocols. Each request has a connection of its own. While
// it waits, the connection says more: a PING and a window, and a second stream is answered. Arguments: what is asked
// for, a port, how many clients, how many requests each (0: until the end of standard input).

const http2 = require('http2');

const path = process.argv[2];
const [port, clients, times] = process.argv.slice(3).map(Number);
let stopped = false;
if (times === 0) process.stdin.on('end', () => { stopped = true; }).resume();

const stream = (session, path) => new Promise((resolve, reject) => {
  const request = session.request({ ':path': path });
  let text = '';
  request.setEncoding('utf8').on('data', (data) => { text += data; }).on('error', reject);
  request.on('close', () => (text.endsWith('\n') ? resolve(text) : reject(new Error('cut'))));
});

async function ask(client) {
  const began = Date.now();
  const session = http2.connect(`http://127.0.0.1:${port}`);
  const lost = new Promise((_, reject) => session.on('error', reject));
  let said;
  try {
    const slow = stream(session, path);
    slow.catch(() => {});
    await Promise.race([stream(session, '/'), lost]);
    session.setLocalWindowSize(1 << 20);
    session.ping(() => {});
    [said] = (await Promise.race([slow, lost])).split(' ');
  } catch (e) {
    const kinds = { ECONNREFUSED: 'refused', ECONNRESET: 'reset', EPIPE: 'reset' };
    said = kinds[e.code] ?? `other ${e.message}`;
  }
  session.destroy();
  const [word, ...rest] = said.split(' ');
  console.log([word, client, Date.now() - began, ...rest].join(' '));
}

for (let client = 0; client < clients; client += 1) {
  (async () => {
    for (let turn = 0; times === 0 ? !stopped : turn < times; turn += 1) await ask(client);
  })();
}
