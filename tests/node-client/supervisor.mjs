// A supervisor for the tests: it starts a server with the environment of
// serverswap(7) and notes what it hears.

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

export const client = fileURLToPath(new URL('../../src/client/node', import.meta.url));

const DEADLINE = 60_000;

export async function until(what, condition) {
  const end = Date.now() + DEADLINE;
  for (;;) {
    const result = await condition();
    if (result) return result;
    if (Date.now() > end) throw new Error(`not within the deadline: ${what()}`);
    await delay(5);
  }
}

export const freePort = () => new Promise((resolve) => {
  const server = net.createServer().listen(0, () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

// Fails while somebody listens there.
export function bind(t, port) {
  const server = net.createServer();
  t.after(() => server.close());
  return new Promise((resolve, reject) => server.on('error', reject).listen(port, resolve));
}

export const get = (port) => new Promise((resolve, reject) => {
  http.get({ port, host: '127.0.0.1', agent: false }, async (response) => {
    resolve((await response.setEncoding('utf8').toArray()).join(''));
  }).on('error', reject);
});

class Channel {
  lines = [];
  ended = false;
  #stream;

  constructor(stream) {
    this.#stream = stream;
    let rest = '';
    stream.setEncoding('utf8');
    stream.on('data', (text) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop();
      this.lines.push(...lines);
    });
    stream.on('error', () => {});
    stream.on('close', () => { this.ended = true; });
  }

  say(...lines) {
    for (const line of lines) this.write(`${line}\n`);
  }

  write(bytes) {
    this.#stream.write(bytes);
  }

  // Resolves when the bytes are in the kernel.
  flush(bytes) {
    return new Promise((resolve) => this.#stream.write(bytes, resolve));
  }

  pause() { this.#stream.pause(); }
  resume() { this.#stream.resume(); }
  die() { this.#stream.destroy(); }

  hears(line, times = 1) {
    return until(() => `${line} (heard: ${this.lines.join(', ')})`,
                 () => this.lines.filter((l) => l === line).length >= times);
  }
}

class Server {
  stdout = '';
  stderr = '';

  constructor(child) {
    this.pid = child.pid;
    child.stdout.setEncoding('utf8').on('data', (text) => { this.stdout += text; });
    child.stderr.setEncoding('utf8').on('data', (text) => { this.stderr += text; });
    // 'close' comes when nobody has the other end of a pipe any more: all are gone.
    this.closed = new Promise((resolve) => {
      child.on('close', (code, signal) => { this.status = signal ?? code; resolve(); });
    });
    this.control = child.stdio[3] ? new Channel(child.stdio[3]) : null;
  }

  // Reports and messages come on stderr, one stream: their order is the order
  // in which they happened.
  get reports() {
    return this.stderr.split('\n').slice(0, -1);
  }

  reported(line) {
    return until(() => `report ${line} (reports: ${this.stderr})`, () => this.reports.includes(line));
  }

  async exit() {
    await until(() => `exit (reports: ${this.stderr})`, () => this.status !== undefined);
    return this.status;
  }
}

export class Supervisor {
  connections = [];
  #servers = [];

  static async start(t) {
    const supervisor = new Supervisor();
    supervisor.dir = fs.mkdtempSync(path.join(os.tmpdir(), 'serverswap-node-'));
    supervisor.socket = path.join(supervisor.dir, 'control.sock');
    supervisor.listener = net.createServer((stream) => {
      supervisor.connections.push(new Channel(stream));
    });
    await new Promise((resolve) => supervisor.listener.listen(supervisor.socket, resolve));
    fs.mkdirSync(path.join(supervisor.dir, 'node_modules'));
    fs.symlinkSync(client, path.join(supervisor.dir, 'node_modules', 'serverswap'));
    t.after(() => supervisor.stop());
    return supervisor;
  }

  file(name, text) {
    const file = path.join(this.dir, name);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, text);
    return file;
  }

  // Only a shell that has the descriptor can tell its inode.
  run(command, { fd = 'pipe', socket = this.socket, inode, env = {} } = {}) {
    const launch = 'export SERVERSWAP_INODE=${INODE-$(stat -Lc %i /proc/self/fd/3)}; exec "$@"';
    const surroundings = { ...process.env };
    for (const name of Object.keys(surroundings)) {
      if (/^(SERVERSWAP|NODE|npm)_/.test(name)) delete surroundings[name];
    }
    const args = fd === null ? command : ['sh', '-c', launch, 'sh', ...command];
    const child = spawn(args[0], args.slice(1), {
      cwd: this.dir,
      detached: true,   // a process group, so that all of it can be ended
      stdio: ['ignore', 'pipe', 'pipe', ...(fd === null ? [] : [fd])],
      env: {
        ...surroundings,
        ...(fd !== null && { SERVERSWAP_FD: '3' }),
        ...(inode !== undefined && { INODE: inode }),
        ...(socket && { SERVERSWAP_SOCKET: socket }),
        ...env,
      },
    });
    const server = new Server(child);
    this.#servers.push(server);
    return server;
  }

  node(script, options) {
    const prelude = "'use strict'; const serverswap = require('serverswap'); const report = console.error;\n";
    this.file('server.js', prelude + script);
    return this.run([process.execPath, 'server.js'], options);
  }

  connection(n = 0) {
    return until(() => `connection ${n}`, () => this.connections[n]);
  }

  die() {
    this.listener.close();
    for (const channel of this.connections) channel.die();
  }

  async stop() {
    for (const server of this.#servers) {
      try {
        process.kill(-server.pid, 'SIGKILL');
      } catch (err) {
        if (err.code !== 'ESRCH') throw err;
      }
      server.control?.die();
    }
    await until(() => 'the end of all servers',
                () => this.#servers.every((server) => server.status !== undefined));
    this.die();
    fs.rmSync(this.dir, { recursive: true });
  }
}
