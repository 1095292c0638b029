// onTakedown with a server: no request is lost, and nothing is waited for in vain.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import http2 from 'node:http2';
import net from 'node:net';
import { test } from 'node:test';
import tls from 'node:tls';
import { Supervisor, bind, freePort, until } from './supervisor.mjs';

const GET = 'GET / HTTP/1.1\r\nHost: x\r\n\r\n';

const HTTP = `
  const server = require('http').createServer((request, response) => {
    report('request ' + request.url);
    if (request.url === '/') return response.end('hello');
    if (request.url === '/begun') response.write('begun');
    process.once('SIGUSR2', () => response.end('late'));
  });
`;
const LISTEN = `
  process.on('exit', () => report('exit'));
  serverswap.onTakedown(port, server, () => report('drained'));
  server.listen(port, '127.0.0.1', () => report('listening'));
`;

class Client {
  text = '';
  ended = false;

  constructor(t, socket) {
    this.socket = socket;
    socket.setEncoding('latin1').on('data', (text) => { this.text += text; });
    socket.on('error', () => {}).on('close', () => { this.ended = true; });
    t.after(() => socket.destroy());
  }

  say(text) { this.socket.write(text); }
  hears(text) { return until(() => `${text} (heard: ${this.text})`, () => this.text.includes(text)); }
  end() { return until(() => `the end (heard: ${this.text})`, () => this.ended); }
}

async function start(t, script) {
  const supervisor = await Supervisor.start(t);
  const port = await freePort();
  const server = supervisor.node(`const port = ${port};\n${script}`);
  await server.reported('listening');
  return {
    server,
    port,
    connect: (options) => new Client(t, options ? tls.connect({ host: '127.0.0.1', port, ...options }) : net.connect(port, '127.0.0.1')),
    async takeDown() {
      server.control.say(`TAKEDOWN :${port}`);
      await server.control.hears(`RELEASED :${port}`);
      await bind(t, port);
    },
  };
}

test('without a connection the process ends at once, and by itself', async (t) => {
  const { server, takeDown } = await start(t, HTTP + LISTEN);
  await takeDown();
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['listening', 'drained', 'exit']);
});

test('the callback may be left out', async (t) => {
  const { server, takeDown } = await start(t, HTTP + LISTEN.replace(", () => report('drained')", ''));
  await takeDown();
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['listening', 'exit']);
});

test('a request over a kept connection is answered after the takedown, and is its last', async (t) => {
  const { server, connect, takeDown } = await start(t, HTTP + LISTEN);
  const client = connect();
  client.say(GET);
  await client.hears('hello');
  assert.match(client.text, /Connection: keep-alive/);
  await takeDown();
  assert.equal(client.ended, false);
  client.text = '';
  client.say(GET);
  await client.hears('hello');
  assert.match(client.text, /Connection: close/);
  await client.end();
  assert.equal(await server.exit(), 0);
});

test('kept connections are closed when they have rested, also one without a request', async (t) => {
  const { server, connect, takeDown } = await start(t, HTTP + LISTEN);
  const [used, silent] = [connect(), connect()];
  used.say(GET);
  await used.hears('hello');
  const asked = performance.now();
  await takeDown();
  await Promise.all([used.end(), silent.end()]);
  const rested = performance.now() - asked;
  assert.ok(rested > 500, `closed after ${rested} ms`);
  assert.equal(await server.exit(), 0);
});

test('a request that came in part is no rest', async (t) => {
  const { server, connect, takeDown } = await start(t, HTTP + LISTEN);
  const [half, whole] = [connect(), connect()];
  half.say(GET);
  await half.hears('hello');
  half.text = '';
  half.say(GET.slice(0, 10));
  whole.say(GET);
  await whole.hears('hello');
  await takeDown();
  await whole.end();
  half.say(GET.slice(10));
  await half.hears('hello');
  await half.end();
  assert.equal(await server.exit(), 0);
});

test('answers that run are finished, and are the last of their connections', async (t) => {
  const { server, connect, takeDown } = await start(t, HTTP + LISTEN);
  const [waits, begun, kept] = [connect(), connect(), connect()];
  waits.say(GET.replace('/', '/waits'));
  begun.say(GET.replace('/', '/begun'));
  await server.reported('request /waits');
  await begun.hears('begun');
  kept.say(GET);
  await kept.hears('hello');
  await takeDown();
  await kept.end();
  assert.equal(waits.ended || begun.ended, false);
  process.kill(server.pid, 'SIGUSR2');
  await waits.hears('late');
  assert.match(waits.text, /Connection: close/);
  await begun.hears('late');
  await Promise.all([waits.end(), begun.end()]);
  assert.equal(await server.exit(), 0);
});

const secure = (t, create) => {
  const pem = ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=localhost', '-keyout', '-', '-out', '-'];
  const cert = execFileSync('openssl', pem, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  return start(t, `const pem = ${JSON.stringify(cert)};\n` +
    HTTP.replace("require('http').createServer(", `${create.replace('{', '{ key: pem, cert: pem,')}, `) + LISTEN);
};

test('https', async (t) => {
  const { server, connect, takeDown } = await secure(t, "require('https').createServer({}");
  const [asks, rests, silent] = [
    connect({ rejectUnauthorized: false }), connect({ rejectUnauthorized: false }), connect(),
  ];
  for (const client of [asks, rests]) {
    client.say(GET);
    await client.hears('hello');
  }
  await takeDown();
  asks.text = '';
  asks.say(GET);
  await asks.hears('hello');
  assert.match(asks.text, /Connection: close/);
  await Promise.all([asks.end(), rests.end(), silent.end()]);
  assert.equal(await server.exit(), 0);
});

test('http2: requests finish, and the client is told to go', async (t) => {
  const { server, port, takeDown } = await secure(t, "require('http2').createSecureServer({ allowHTTP1: true }");
  const session = http2.connect(`https://127.0.0.1:${port}`, { rejectUnauthorized: false });
  t.after(() => session.destroy());
  session.on('error', () => {});
  const ask = (url) => {
    const stream = session.request({ ':path': url });
    let text = '';
    stream.setEncoding('utf8').on('data', (part) => { text += part; });
    return new Promise((resolve, reject) => stream.on('end', () => resolve(text)).on('error', reject));
  };
  assert.equal(await ask('/'), 'hello');
  const late = ask('/waits');
  await server.reported('request /waits');
  let away = false;
  session.on('goaway', () => { away = true; });
  await takeDown();
  await until(() => 'GOAWAY', () => away);
  process.kill(server.pid, 'SIGUSR2');
  assert.equal(await late, 'late');
  assert.equal(await server.exit(), 0);
});

test('in a cluster each worker takes its own server down', async (t) => {
  const supervisor = await Supervisor.start(t);
  const port = await freePort();
  const server = supervisor.node(`
    const cluster = require('cluster');
    if (cluster.isPrimary) {
      cluster.fork();
      cluster.fork();
    } else {
      const server = require('http').createServer((request, response) => response.end('hello'));
      serverswap.onTakedown(':${port}', server, () => process.exit());
      server.listen(${port}, '127.0.0.1', () => serverswap.serverUp());
    }
  `, { fd: null });
  const channels = [await supervisor.connection(0), await supervisor.connection(1)];
  for (const channel of channels) await channel.hears('UP');
  const client = new Client(t, net.connect(port, '127.0.0.1'));
  client.say(GET);
  await client.hears('hello');
  for (const channel of channels) {
    channel.say(`TAKEDOWN :${port}`);
    await channel.hears(`RELEASED :${port}`);
  }
  client.text = '';
  client.say(GET);
  await client.hears('hello');
  assert.match(client.text, /Connection: close/);
  await client.end();
  assert.equal(await server.exit(), 0);
  await bind(t, port);
});

test('a server that does not listen yet is drained', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(`
    const server = require('http').createServer();
    serverswap.onTakedown(':8080', server, () => report('drained'));
    const stay = setInterval(() => {}, 1e9);
    process.on('SIGUSR2', () => clearInterval(stay));
  `);
  await server.control.hears('TAKEDOWN :8080');
  server.control.say('TAKEDOWN :8080');
  await server.reported('drained');
  process.kill(server.pid, 'SIGUSR2');
  assert.equal(await server.exit(), 0);
});

test('what is no server or callback is a TypeError', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(`
    const server = require('http').createServer();
    const calls = [[':1', {}], [':1', server, null], [':1', server, 5], [':1', { close() {} }]];
    for (const call of calls) {
      try {
        serverswap.onTakedown(...call);
        report('accepted');
      } catch (err) {
        if (!(err instanceof TypeError)) report(err);
      }
    }
  `);
  assert.equal(await server.exit(), 0);
  assert.equal(server.stderr, '');
});
