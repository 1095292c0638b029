// make test-nginx: a server behind nginx, and behind HAProxy, which keep their connections, is swapped under load: one
// with the lines of the README, and one that knows nothing of serverswap. No request may fail, POST included; nothing is
// tried again by anybody. Then the time of a swap in which nothing runs. Arguments: how many rounds, then what is to be
// run only: `nginx` or `haproxy`, and how the server goes: `client` or `plain` (`close` shows what else happens). A word
// that begins with `-` goes to serverswap: `--no-relay` shows what a plain server loses.

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const [rounds = '3', ...only] = process.argv.slice(2);
const chosen = (names) => names.filter((name) => only.includes(name));
const or = (some, others) => (some.length > 0 ? some : others);
const PROXIES = or(chosen(['nginx', 'haproxy']), ['nginx', 'haproxy']);
const OPTIONS = only.filter((word) => word.startsWith('-'));
const WAYS = or(chosen(['client', 'plain', 'close']), ['client', 'plain']);

const SWAPS = 20;
const REQUESTS = 20_000;
const CLIENTS = 40;
const DEADLINE = 20_000;

const here = path.dirname(fileURLToPath(import.meta.url));
const serverswap = path.resolve(process.env.SERVERSWAP ?? path.join(here, '../../target/release/serverswap'));
const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'serverswap-nginx-'));
const env = { ...process.env, SERVERSWAP_RUN_DIR: path.join(dir, 'run'), PATH: `${process.env.PATH}:/usr/sbin` };
for (const name of ['FD', 'INODE', 'SOCKET', 'GENERATION']) delete env[`SERVERSWAP_${name}`];

const freePort = () => new Promise((resolve) => {
  const server = net.createServer().listen(0, '127.0.0.1', () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

async function until(what, condition) {
  const end = Date.now() + DEADLINE;
  while (!await condition()) {
    if (Date.now() > end) throw new Error(`not within the deadline: ${what}`);
    await delay(10);
  }
}

// The proxy and the server that are tried, at ports of their own.
let scene;
async function setUp(proxy, way) {
  const [upstream, port] = [await freePort(), await freePort()];
  const agent = new http.Agent({ keepAlive: true });
  scene = { way, upstream, port, agent, posted: path.join(dir, `posted.${proxy}.${way}`) };
}

// What all of them say goes to a file, which is shown if something fails.
const log = fs.openSync(path.join(dir, 'log'), 'a');
const start = (command, args) => spawn(command, args.map(String), { env, cwd: dir, stdio: ['ignore', log, log] });
const end = (child) => new Promise((resolve, reject) => child.on('error', reject).on('exit', resolve));

// A swap; the time that it took, in ms.
async function swap() {
  const began = performance.now();
  const server = [path.join(here, 'server.js'), scene.upstream, scene.posted, scene.way];
  const status = await end(start(serverswap, ['-d', ...OPTIONS, '--ready-timeout', 20, process.execPath, ...server]));
  if (status !== 0) throw new Error(`serverswap: status ${status}`);
  return performance.now() - began;
}

function startProxy(proxy) {
  const name = { nginx: 'nginx.conf', haproxy: 'haproxy.cfg' }[proxy];
  const config = fs.readFileSync(path.join(here, `${name}.in`), 'utf8');
  const file = path.join(dir, name);
  fs.writeFileSync(file, config.replace('@SERVER@', scene.upstream).replace('@PORT@', scene.port));
  const words = { nginx: ['-p', dir, '-c', file, '-e', 'stderr'], haproxy: ['-db', '-f', file] };
  return start(proxy, words[proxy]);
}

// A request: the generation that answered.
const ask = (method, number, wait) => new Promise((resolve, reject) => {
  const { agent, port } = scene;
  const request = http.request({ agent, host: '127.0.0.1', port, method, path: `/?wait=${wait}` }, async (response) => {
    try {
      const body = (await response.setEncoding('utf8').toArray()).join('');
      const [generation, echo] = body.split(' ');
      if (response.statusCode !== 200) throw new Error(`status ${response.statusCode}`);
      if (echo !== (method === 'POST' ? number : '')) throw new Error('another answer');
      resolve(Number(generation));
    } catch (err) {
      reject(err);
    }
  });
  request.on('error', reject);
  request.setTimeout(DEADLINE, () => request.destroy(new Error('timed out')));
  request.end(method === 'POST' ? `${number} ${'x'.repeat(1000)}` : undefined);
});

// What the clients of a round saw.
class Crowd {
  requests = { GET: 0, POST: 0 };
  failures = new Map();
  posts = new Set();
  newest = 0;
  #stopped = false;
  #clients;

  constructor(round) {
    this.#clients = Array.from({ length: CLIENTS }, (_, client) => this.#run(`${round}.${client}`));
  }

  async #run(client) {
    for (let turn = 0; !this.#stopped; turn++) {
      const method = Math.random() < 0.5 ? 'GET' : 'POST';
      const number = `${client}.${turn}`;
      this.requests[method]++;
      try {
        const generation = await ask(method, number, Math.random() < 0.02 ? 300 : 0);
        this.newest = Math.max(this.newest, generation);
        if (method === 'POST') this.posts.add(number);
      } catch (err) {
        const kind = `${method}: ${err.code ?? err.message}`;
        this.failures.set(kind, (this.failures.get(kind) ?? 0) + 1);
      }
      // Of all lengths, so that the connections of nginx rest for all lengths too.
      await delay(Math.random() < 0.05 ? 900 * Math.random() : 20 * Math.random());
    }
  }

  get sum() {
    return this.requests.GET + this.requests.POST;
  }

  stop() {
    this.#stopped = true;
    return Promise.all(this.#clients);
  }
}

async function round(number) {
  const crowd = new Crowd(number);
  const times = [];
  const first = number * SWAPS + 1;
  await until('an answer', () => crowd.newest >= first);
  for (let generation = first + 1; generation <= first + SWAPS; generation++) {
    times.push(await swap());
    await until(`an answer of generation ${generation}`, () => crowd.newest >= generation);
    const due = REQUESTS * (generation - first) / SWAPS;
    await until('the load', () => crowd.sum >= due);
  }
  await crowd.stop();
  const lines = fs.readFileSync(scene.posted, 'utf8').split('\n').filter((line) => line.startsWith(`${number}.`));
  const counts = new Map();
  for (const line of lines) counts.set(line, (counts.get(line) ?? 0) + 1);
  const twice = [...counts.values()].filter((count) => count > 1).length;
  const never = [...crowd.posts].filter((post) => !counts.has(post)).length;
  const failed = [...crowd.failures.values()].reduce((a, b) => a + b, 0);
  const mean = times.reduce((a, b) => a + b) / times.length;
  console.log(`${SWAPS} swaps (${mean.toFixed(0)} ms each, at most ${Math.max(...times).toFixed(0)}): ` +
              `${crowd.requests.GET} GET, ${crowd.requests.POST} POST, ${failed} failed, ` +
              `${twice} carried out twice, ${never} not at all` +
              [...crowd.failures].map(([kind, count]) => `; ${kind} ${count}`).join(''));
  return failed + twice + never === 0;
}

// The best of three: this machine may have other things to do.
async function quick(what, prepare) {
  const times = [];
  for (let i = 0; i < 3; i++) {
    await prepare();
    times.push(await swap());
  }
  console.log(`${what}: ${times.map((time) => time.toFixed(0)).join(', ')} ms`);
  return Math.min(...times) < 1000;
}

let proxy;
let green = true;
async function stopProxy() {
  if (proxy === undefined) return;
  proxy.kill('SIGTERM');
  await end(proxy);
  proxy = undefined;
}
async function takeDown() {
  await stopProxy();
  await end(start(serverswap, ['-q', '--takedown', `127.0.0.1:${scene.upstream}`]));
}
async function run(kind, way) {
  await setUp(kind, way);
  await swap();
  proxy = startProxy(kind);
  await until(kind, () => ask('GET', '', 0).catch(() => 0));
  for (let number = 0; number < Number(rounds); number++) green = await round(number) && green;
  // A server without the client has its connections rest for half of --drain.
  if (way === 'client') {
    const idle = () => Promise.all(Array.from({ length: CLIENTS }, (_, i) => ask('POST', `idle.${i}`, 50)));
    green = await quick('a swap with idle connections only', idle) && green;
    await stopProxy();
    green = await quick('a swap without a connection', () => {}) && green;
  }
  await takeDown();
}
async function main() {
  for (const kind of PROXIES) {
    for (const way of WAYS) {
      console.log(`${kind}, ${{ client: 'a server with the client', plain: 'a plain server', close: 'server.close()' }[way]}:`);
      await run(kind, way);
    }
  }
}
async function clean() {
  if (scene) await takeDown();
  fs.rmSync(dir, { recursive: true });
}
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => clean().then(() => process.exit(1)));
try {
  await main();
} catch (err) {
  green = false;
  console.log(err);
}
if (!green) console.log(fs.readFileSync(path.join(dir, 'log'), 'utf8').slice(-5000));
await clean();
console.log(green ? 'ok' : 'NOT ok');
// The clients may still be at work.
process.exit(green ? 0 : 1);
