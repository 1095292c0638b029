// Without serverswap around the server.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Supervisor } from './supervisor.mjs';

const ALONE = { fd: null, socket: null };

test('readyFor calls back at once, but never before it returns', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(`
    setImmediate(() => report('I/O'));
    serverswap.readyFor(':8080', (...args) => report('callback', args.length));
    serverswap.readyFor(':8080').then((value) => report('promise', value));
    report('returned');
  `, ALONE);
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['returned', 'callback 0', 'promise undefined', 'I/O']);
});

test('the other functions do nothing and keep no process alive', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(`
    serverswap.onTakedown(':8080', () => report('taken down'));
    serverswap.serverUp();
    serverswap.fail('no database');
    serverswap.fail();
  `, ALONE);
  assert.equal(await server.exit(), 0);
  assert.equal(server.stderr, '');
});

test('what is no address is a TypeError at once', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(`
    const bad = [
      '', ' ', 'a b', 'a\\tb', ':8080\\n', 'a\\0', 'a\\u00a0b', 'a\\x7f', '\\ud800', 'x'.repeat(901),
      '\\u00e9'.repeat(451), '0', ':0', '65536', '-1', ':-1', ':+80', '127.0.0.1:0', '[::1]:65536', '*:0',
      0, -1, 65536, 80.5, NaN, Infinity, 1e21, 8080n, true, null, undefined, {}, Object.create(null), [], ['8080'], Symbol('a'),
    ];
    for (const address of bad) {
      for (const call of [serverswap.readyFor, serverswap.onTakedown]) {
        try {
          call(address, () => report('called', address));
          report('accepted', address);
        } catch (err) {
          if (!(err instanceof TypeError)) report(err);
          if (/\\p{Cc}/u.test(err.message)) report('not one line');
        }
      }
    }
  `, ALONE);
  assert.equal(await server.exit(), 0);
  assert.equal(server.stderr, '');
});

test('what is no callback is a TypeError at once', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(`
    const calls = [
      () => serverswap.readyFor(':8080', null),
      () => serverswap.readyFor(':8080', 'x'),
      () => serverswap.onTakedown(':8080'),
      () => serverswap.onTakedown(':8080', {}),
    ];
    for (const call of calls) {
      try {
        call();
        report('accepted', String(call));
      } catch (err) {
        if (!(err instanceof TypeError)) report(err);
      }
    }
  `, ALONE);
  assert.equal(await server.exit(), 0);
  assert.equal(server.stderr, '');
});

test('a descriptor number that is none is nothing to write to', async (t) => {
  const supervisor = await Supervisor.start(t);
  for (const SERVERSWAP_FD of ['', 'x', '9', '-1', '1e99', '3.5']) {
    const server = supervisor.node("serverswap.readyFor('8080', () => report('bind'));",
                                   { ...ALONE, env: { SERVERSWAP_FD, SERVERSWAP_INODE: '1' } });
    assert.equal(await server.exit(), 0);
    assert.deepEqual(server.reports, ['bind'], `SERVERSWAP_FD=${SERVERSWAP_FD}`);
  }
});
