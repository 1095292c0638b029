// The Node client of serverswap: a server says when it is ready to bind an
// address, and is told when to let go of it. The lines that go over the channel
// are described in serverswap(7). This file needs nothing beside it.
//
// Copyright (c) 2026 the serverswap authors
// SPDX-License-Identifier: MIT

'use strict';

const fs = require('node:fs');
const net = require('node:net');
const { inspect } = require('node:util');
const { isMainThread } = require('node:worker_threads');

const MAX_LINE_BYTES = 1024;
const MAX_ADDRESS_BYTES = 900;
const MAX_REASON_BYTES = 1000;

// How long no request has come before idle connections are closed. A client may be
// sending one at that moment: the longer the rest, the smaller the risk. It is
// greatest while requests still come after the takedown. No round numbers, because
// many clients ask every second.
const REST_MS = 600;
const BUSY_REST_MS = 1700;
const LOOK_MS = 50;
const LATE_MS = 5;

const waiting = new Map();   // address -> [{ go, refuse }], READY is said
const takedowns = new Map(); // address -> [callback], TAKEDOWN is said
let channel;                 // undefined: not opened yet; null: no supervisor
let serving = false;         // GO was heard

function readyFor(address, callback) {
  address = check(address);
  if (callback === undefined) {
    return new Promise((go, refuse) => wait(address, { go, refuse }));
  }
  checkCallback(callback);
  wait(address, { go: callback });
}

function wait(address, waiter) {
  open();
  // The same way as after GO, so that a server meets one order of events
  // everywhere: after the code that runs now, before any I/O.
  if (channel === null) {
    process.nextTick(waiter.go);
    return;
  }
  if (append(waiting, address, waiter)) say('READY', address);
  channel.ref();
}

function onTakedown(address, taker, drained) {
  address = check(address);
  const isServer = typeof taker?.close === 'function' && typeof taker.on === 'function';
  if (!isServer || drained !== undefined) checkCallback(isServer ? drained : taker);
  open();
  if (channel === null) return;
  if (append(takedowns, address, isServer ? closer(taker, drained) : taker)) {
    say('TAKEDOWN', address);
  }
}

// Returns what takes an HTTP server down without losing a request. A client that
// keeps a connection, a proxy for instance, may send a request at the moment in
// which the server closes it, and then cannot know whether it was carried out. So
// a connection ends with an answer that says `Connection: close`. Connections that
// get no more requests are closed when all of them have rested.
function closer(server, drained) {
  const connections = new Map(); // socket -> { answers, bytes }
  const sessions = new Set();    // HTTP/2
  let draining = false;
  let last = 0;                  // when a connection or a request came
  let rest = REST_MS;

  const connectionOf = (socket) => {
    let connection = connections.get(socket);
    if (!connection) {
      connection = { answers: new Set(), bytes: 0 };
      connections.set(socket, connection);
      last = performance.now();
      socket.once('close', () => connections.delete(socket));
    }
    return connection;
  };
  // TLS has two sockets for a connection. The lower one has received bytes and has
  // no answers, so it never counts as rested.
  server.on('connection', connectionOf);
  server.on('secureConnection', connectionOf);

  // Runs before the listener that answers.
  server.prependListener('request', (request, response) => {
    const { httpVersionMajor, socket } = request;
    if (httpVersionMajor > 1) return;
    const connection = connectionOf(socket);
    connection.answers.add(response);
    response.once('close', () => {
      connection.answers.delete(response);
      connection.bytes = socket.bytesRead;
    });
    last = performance.now();
    if (!draining) return;
    makeLast(response);
    rest = BUSY_REST_MS;
  });

  // The client stops asking when it reads GOAWAY. Requests sent before are answered.
  const leave = (session) => {
    session.goaway(0, 2 ** 31 - 1);
    setTimeout(() => session.close(), REST_MS).unref();
  };
  server.on('session', (session) => {
    sessions.add(session);
    session.once('close', () => sessions.delete(session));
    if (draining) leave(session);
  });

  // Closes one at a time, each right after everything that arrived was read, and
  // only while timers fire on time: when this process is late, the client may be too.
  let due = 0;
  const closeRested = () => {
    if (performance.now() - last < rest) return;
    for (const [socket, { answers, bytes }] of connections) {
      if (answers.size === 0 && socket.bytesRead === bytes) {
        socket.destroy();
        setImmediate(closeRested);
        return;
      }
    }
  };
  const look = () => {
    const late = performance.now() - due > LATE_MS;
    due = performance.now() + LOOK_MS;
    if (!late) setImmediate(closeRested);
  };

  return () => {
    draining = true;
    for (const { answers } of connections.values()) answers.forEach(makeLast);
    sessions.forEach(leave);
    const looks = setInterval(look, LOOK_MS);
    due = performance.now();
    look();
    // Node's close() would close idle connections at once.
    server.closeIdleConnections = () => {};
    server.close(() => {
      clearInterval(looks);
      // After RELEASED, since it may end the process.
      if (drained) setImmediate(drained);
    });
    delete server.closeIdleConnections;
  };
}

function makeLast(response) {
  if (!response.headersSent) response.setHeader('Connection', 'close');
}

function serverUp() {
  say('UP');
}

function fail(reason = '') {
  const bytes = Buffer.from(oneLine(reason)).subarray(0, MAX_REASON_BYTES);
  // A streaming decoder leaves out a character that the limit has cut.
  say('FAIL', new TextDecoder().decode(bytes, { stream: true }));
}

function open() {
  if (channel !== undefined) return;

  const path = process.env.SERVERSWAP_SOCKET;
  const fd = controlFd();
  let connected = false;
  let error;

  if (fd !== undefined) {
    channel = new net.Socket({ fd, readable: true, writable: true });
    connected = true;
  } else if (path) {
    // The supervisor drops a connection whose first line is late, and no line
    // goes out while the script that called us still runs. So it runs first.
    channel = new net.Socket();
    channel.cork();
    process.nextTick(() => {
      channel.connect(path);
      channel.uncork();
    });
  } else {
    channel = null;
    return;
  }

  // A byte is a character in latin1: the limit counts bytes, and a chunk may
  // end within a character.
  channel.setEncoding('latin1');
  let rest = '';
  channel.on('data', (chunk) => {
    const lines = (rest + chunk).split('\n');
    // One more than the limit is enough to know the line as too long.
    rest = lines.pop().slice(0, MAX_LINE_BYTES + 1);
    for (const line of lines) {
      if (line.length <= MAX_LINE_BYTES) {
        hear(Buffer.from(line, 'latin1').toString().replace(/\r$/, ''));
      }
    }
  });
  channel.on('connect', () => { connected = true; });
  channel.on('error', (err) => { error = err; });
  channel.on('close', () => {
    if (connected) {
      supervisorDied();
    } else {
      supervisorNotThere(path, error);
    }
  });
  channel.unref();
}

// The inherited descriptor, if it is still the one that the supervisor meant. A
// wrapper may have closed it, and any other file may be at its number now. Only
// one thread may own it.
function controlFd() {
  if (!isMainThread) return;
  try {
    const fd = Number(process.env.SERVERSWAP_FD);
    const stats = fs.fstatSync(fd, { bigint: true });
    const { SERVERSWAP_INODE } = process.env;
    if (stats.isSocket() && String(stats.ino) === SERVERSWAP_INODE) return fd;
  } catch {
    // Not a number, or not open.
  }
}

function say(word, rest) {
  open();
  if (channel?.writable) channel.write(rest ? `${word} ${rest}\n` : `${word}\n`);
}

function hear(line) {
  const [word, ...words] = line.split(' ');
  const rest = words.join(' ');
  switch (word) {
    case 'GO':
      go(canonical(rest));
      break;
    case 'TAKEDOWN':
      takeDown(canonical(rest));
      break;
    case 'ERROR':
      log(rest);
      break;
    default:
      // A supervisor that talks and does not listen must not fill our memory.
      if (!channel.writableNeedDrain) say('ERROR', 'unknown word');
  }
}

function go(address) {
  serving = true;
  // A callback that throws must not keep the others from their turn.
  for (const waiter of take(waiting, address)) process.nextTick(waiter.go);
  if (waiting.size === 0) channel.unref();
}

function takeDown(address) {
  const callbacks = take(takedowns, address);
  let left = callbacks.length;
  for (const callback of callbacks) {
    let released = false;
    const done = () => {
      if (released) return;
      released = true;
      if (--left === 0) say('RELEASED', address);
    };
    // RELEASED would be a guess after a failure. The supervisor sees by itself
    // whether the port is free, and is not told so while it is not.
    release(callback, done).catch((err) => {
      log(`${address}: takedown callback failed: ${err}` +
          (released ? '' : ' (not released)'));
    });
  }
}

async function release(callback, done) {
  if (callback.length > 0) return callback(done);
  await callback();
  done();
}

// A socket that nobody listens on: the supervisor of this server died long ago,
// or the environment is that of another server. The kernel still refuses a port
// that is taken.
function supervisorNotThere(path, error) {
  log(`cannot connect to ${path}: ${error.code} (going on without it)`);
  for (const waiter of forget()) process.nextTick(waiter.go);
}

// A server that serves has to outlive its supervisor. One that waits must not
// bind what the old server may still have, and would wait for ever.
function supervisorDied() {
  const unbound = [...waiting.keys()].join(', ');
  const refused = forget();
  const exits = !serving && refused.some((waiter) => !waiter.refuse);
  if (refused.length === 0) {
    log('the supervisor has died (the server goes on without it)');
  } else {
    log(`the supervisor has died before it said GO for ${unbound} ` +
        `(${exits ? 'exiting' : 'not to be bound'})`);
  }
  if (exits) process.exit(1);
  for (const waiter of refused) {
    const error = new Error('the serverswap supervisor has died');
    error.code = 'ERR_SERVERSWAP_DIED';
    waiter.refuse?.(error);
  }
}

function forget() {
  const waiters = [...waiting.values()].flat();
  waiting.clear();
  takedowns.clear();
  channel = null;
  return waiters;
}

function check(address) {
  const text = typeof address === 'number' ? `:${address}` : address;
  const valid = typeof text === 'string' && text !== '' &&
    // Cs: half a surrogate pair has no UTF-8.
    !/[\s\p{Cc}\p{Cs}]/u.test(text) &&
    Buffer.byteLength(text) <= MAX_ADDRESS_BYTES;
  const tcp = valid ? split(text) : undefined;
  if (!valid || (tcp ? !validPort(tcp.port) : typeof address === 'number')) {
    throw new TypeError(`bad address: ${inspect(address)}`);
  }
  return canonical(text);
}

function checkCallback(callback) {
  if (typeof callback !== 'function') {
    throw new TypeError('the callback is not a function');
  }
}

// The supervisor answers with its own spelling of an address: GO :8080 after
// READY 0.0.0.0:8080. So both are compared in one spelling, here: the port
// without leading zeros, IPv6 as a URL writes it, all interfaces as nothing. What
// is no IP address and port is a name, and a name is only itself.
function canonical(text) {
  const tcp = split(text);
  if (!tcp) return text;
  const any = ['*', '0.0.0.0', '[::]'].includes(tcp.host);
  return `${any ? '' : tcp.host}:${Number(tcp.port)}`;
}

function split(text) {
  const [, host = '', port] = /^(?:(.*):)?([+-]?\d+)$/.exec(text) ?? [];
  if (port === undefined) return;
  // Without the zone that isIPv6 allows and a URL does not.
  if (/^\[[\da-f:.]+\]$/i.test(host) && net.isIPv6(host.slice(1, -1))) {
    return { host: new URL(`http://${host}`).hostname, port };
  }
  if (host === '' || host === '*' || net.isIPv4(host)) return { host, port };
}

function validPort(text) {
  return /^\d+$/.test(text) && Number(text) >= 1 && Number(text) <= 65535;
}

function append(map, key, value) {
  const values = map.get(key);
  if (values) {
    values.push(value);
  } else {
    map.set(key, [value]);
  }
  return !values;
}

function take(map, key) {
  const values = map.get(key) ?? [];
  map.delete(key);
  return values;
}

function oneLine(text) {
  return String(text).replace(/\p{Cc}+/gu, ' ');
}

// By console.error, which survives a closed stderr.
function log(text) {
  console.error(`serverswap: ${oneLine(text)}`);
}

module.exports = { readyFor, onTakedown, serverUp, fail };

// Several copies of this file may be in one process, and there is one channel:
// the first copy speaks for all. The number rises when the functions change, not
// with the version.
const COPY = Symbol.for('serverswap.client.2');
module.exports = globalThis[COPY] ??= module.exports;
