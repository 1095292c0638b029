// Over the inherited descriptor.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { Supervisor, bind, client, freePort, get, until } from './supervisor.mjs';

async function start(t, script, options) {
  const supervisor = await Supervisor.start(t);
  return supervisor.node(script, options);
}

test('readyFor says READY, and calls back on GO and not before', async (t) => {
  const server = await start(t, "serverswap.readyFor(':8080', (...args) => report('bind', args.length));");
  await server.control.hears('READY :8080');
  server.control.say('ERROR not yet', 'GO :8081', 'ERROR still not', 'GO :8080');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['serverswap: not yet', 'serverswap: still not', 'bind 0']);
  assert.deepEqual(server.control.lines, ['READY :8080']);
});

test('readyFor without a callback is a promise', async (t) => {
  const server = await start(t, `
    (async () => {
      report(await serverswap.readyFor(':8080'));
      await serverswap.readyFor(':8081');
      report('both');
    })();
  `);
  await server.control.hears('READY :8080');
  server.control.say('GO :8080');
  await server.control.hears('READY :8081');
  server.control.say('GO :8081');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['undefined', 'both']);
});

test('several addresses, and several waiting for one', async (t) => {
  const server = await start(t, `
    serverswap.readyFor(':1', () => {
      report('one');
      serverswap.readyFor(':1', () => report('one again'));
    });
    serverswap.readyFor(':2', () => report('two'));
    serverswap.readyFor(':1').then(() => report('one too'));
    serverswap.readyFor('blue', () => report('blue'));
  `);
  await server.control.hears('READY blue');
  server.control.say('GO :2', 'GO :1');
  await server.control.hears('READY :1', 2);
  server.control.say('GO :1');
  await server.reported('one again');
  server.control.say('GO blue', 'GO blue');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['two', 'one', 'one too', 'one again', 'blue']);
  assert.deepEqual(server.control.lines, ['READY :1', 'READY :2', 'READY blue', 'READY :1']);
});

test('a callback that throws does not keep the others from their turn', async (t) => {
  const server = await start(t, `
    process.on('uncaughtException', (err) => report(err.message));
    serverswap.readyFor(':1', () => { throw new Error('first'); });
    serverswap.readyFor(':1', () => report('second'));
    serverswap.readyFor(':2', () => report('third'));
  `);
  await server.control.hears('READY :2');
  server.control.say('GO :1\nGO :2');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['first', 'second', 'third']);
});

test('an answer is known in any spelling', async (t) => {
  const spellings = [
    [':8080', '8080', '8080', '*:8080', '0.0.0.0:8080', '[::]:8080', '[0:0::0]:8080', ':08080'],
    ['127.0.0.1:8080', '127.0.0.1:08080'],
    ['[::1]:8080', '[::0:1]:8080', '[0:0:0:0:0:0:0:1]:8080'],
    ['[2001:db8::a]:443', '[2001:DB8:0::000A]:443'],
    ['[::ffff:127.0.0.1]:80', '[::ffff:7f00:1]:80', '[::FFFF:127.0.0.1]:80'],
    ['blue'], ['localhost:80'], ['300.0.0.1:80'], ['[fe80::1%lo]:80'], ['::'], ['/run/x.sock'],
    ['\u00e9t\u00e9'], ['BLUE'], ['[::g]:1'],
  ];
  const server = await start(t, `
    for (const group of ${JSON.stringify(spellings)}) {
      for (const asked of group) {
        serverswap.readyFor(asked, () => report(asked));
        if (/^\\d+$/.test(asked)) serverswap.readyFor(Number(asked), () => report('number'));
      }
    }
    serverswap.serverUp();
  `);
  await server.control.hears('UP');
  // One READY for each group: its members are the same address.
  assert.equal(server.control.lines.length, spellings.length + 1);
  for (const group of spellings) {
    const calls = server.reports.length;
    server.control.say(`GO ${group.at(-1)}`);
    await until(() => `all of ${group}`, () => server.reports.filter((r) => group.includes(r)).length === group.length);
    assert.equal(server.reports.slice(calls).filter((r) => r !== 'number' && !group.includes(r)).length, 0);
  }
  assert.equal(await server.exit(), 0);
});

test('lines arrive split and joined, with and without a carriage return', async (t) => {
  const server = await start(t, `
    for (const address of ['a', 'b', 'c', '\u00e9\u20ac']) serverswap.readyFor(address, () => report(address));
  `);
  await server.control.hears('READY \u00e9\u20ac');
  for (const byte of Buffer.from('GO \u00e9\u20ac\r\nGO a\n')) {
    await server.control.flush(Uint8Array.of(byte));
  }
  await server.control.flush('GO b\r\nGO c\nGO');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['\u00e9\u20ac', 'a', 'b', 'c']);
});

test('a line of the greatest length is read, a longer one is skipped', async (t) => {
  const longest = 'x'.repeat(1024 - 'ERROR '.length);
  // Less memory than the line has.
  const server = await start(t, "serverswap.readyFor('a', () => report('bind'));",
                             { env: { NODE_OPTIONS: '--max-old-space-size=30' } });
  await server.control.hears('READY a');
  server.control.say(`ERROR ${longest}`, `ERROR ${longest}x`);
  await server.control.flush('ERROR ');
  for (let i = 0; i < 100; i++) await server.control.flush('x'.repeat(1_000_000));
  server.control.write('\nGO a\n');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, [`serverswap: ${longest}`, 'bind']);
});

test('an ERROR is one line on stderr and is not answered', async (t) => {
  const server = await start(t, "serverswap.readyFor('a', () => report('bind'));");
  await server.control.hears('READY a');
  server.control.say('ERROR bad  address: \u001b[31m%s %d', 'ERROR', 'GO a');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['serverswap: bad  address:  [31m%s %d', 'serverswap: ', 'bind']);
  assert.deepEqual(server.control.lines, ['READY a']);
});

test('a word that is not known is answered by ERROR and changes nothing', async (t) => {
  const server = await start(t, "serverswap.readyFor('a', () => report('bind'));");
  await server.control.hears('READY a');
  server.control.say('', 'go a', 'HELLO a', 'TAKEDOWN a', 'TAKEDOWN', 'GO', 'GO ', ' GO a', 'constructor');
  await server.control.hears('ERROR unknown word', 5);
  server.control.say('GO a');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['bind']);
  assert.equal(server.control.lines.length, 6);
});

test('serverUp and fail', async (t) => {
  const server = await start(t, `
    serverswap.serverUp();
    serverswap.fail();
    serverswap.fail('no\\r\\n  database\\0!');
    serverswap.fail(new Error('no database'));
    serverswap.fail('\u20ac'.repeat(500));
    serverswap.fail('x'.repeat(2000));
  `);
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.control.lines, [
    'UP', 'FAIL', 'FAIL no   database !', 'FAIL Error: no database',
    `FAIL ${'\u20ac'.repeat(333)}`, `FAIL ${'x'.repeat(1000)}`,
  ]);
});

test('a process is kept alive while a readyFor waits, and by nothing else', async (t) => {
  const server = await start(t, `
    process.on('exit', () => report('exit'));
    serverswap.onTakedown(':8080', () => report('taken down'));
    serverswap.readyFor('a', () => report('a'));
    serverswap.readyFor('b', () => report('b'));
  `);
  await server.control.hears('READY b');
  server.control.say('GO a');
  await server.reported('a');
  server.control.say('ERROR alive');
  await server.reported('serverswap: alive');
  server.control.say('GO b');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['a', 'serverswap: alive', 'b', 'exit']);
});

test('a supervisor that does not read does not stop the server', async (t) => {
  const server = await start(t, `
    setInterval(() => {}, 1e9);
    process.on('SIGUSR2', () => {
      for (let i = 0; i < 5000; i++) serverswap.onTakedown('x'.repeat(800) + i, () => {});
      setImmediate(() => report('still here'));
      serverswap.readyFor('last', () => process.exit());
    });
    serverswap.onTakedown('first', () => {});
  `);
  await server.control.hears('TAKEDOWN first');
  server.control.pause();
  process.kill(server.pid, 'SIGUSR2');
  await server.reported('still here');
  server.control.resume();
  await server.control.hears('READY last');
  assert.equal(server.control.lines.length, 5002);
  server.control.say('GO last');
  assert.equal(await server.exit(), 0);
});

test('a supervisor that talks nonsense and does not read does not fill the memory', async (t) => {
  const server = await start(t, "serverswap.readyFor('a', () => report('bind'));");
  await server.control.hears('READY a');
  server.control.pause();
  for (let i = 0; i < 200; i++) await server.control.flush('X\n'.repeat(1000));
  server.control.say('GO a');
  await server.reported('bind');
  server.control.resume();
  assert.equal(await server.exit(), 0);
  assert.ok(server.control.lines.length < 100_000, `${server.control.lines.length} lines`);
});

test('onTakedown says TAKEDOWN once, and RELEASED when all callbacks have let go', async (t) => {
  const server = await start(t, `
    const dones = [];
    const stay = setInterval(() => {}, 1e9);
    serverswap.onTakedown('0.0.0.0:8080', () => report('returns'));
    serverswap.onTakedown(8080, (done) => { report('done'); dones.push(done); });
    serverswap.onTakedown(':8080', () => new Promise((resolve) => { report('promise'); dones.push(resolve); }));
    serverswap.onTakedown(':8080', () => ({ then(resolve) { report('thenable'); dones.push(resolve); } }));
    serverswap.onTakedown(':9090', () => { report('other'); });
    const release = (left) => serverswap.readyFor('release' + left, () => {
      const done = dones.shift();
      done(new Error('ignored'));
      done();
      if (dones.length > 0) release(dones.length); else clearInterval(stay);
    });
    release(3);
  `);
  await server.control.hears('READY release3');
  server.control.say('TAKEDOWN :8080');
  await server.reported('thenable');
  server.control.say('GO release3');
  await server.control.hears('READY release2');
  server.control.say('GO release2');
  await server.control.hears('READY release1');
  server.control.say('TAKEDOWN :9090');
  await server.control.hears('RELEASED :9090');
  server.control.say('GO release1');
  await server.control.hears('RELEASED :8080');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['returns', 'done', 'promise', 'thenable', 'other']);
  assert.deepEqual(server.control.lines, [
    'TAKEDOWN :8080', 'TAKEDOWN :9090', 'READY release3', 'READY release2', 'READY release1',
    'RELEASED :9090', 'RELEASED :8080',
  ]);
});

test('a callback that takes done has not released when it returns', async (t) => {
  const server = await start(t, `
    serverswap.onTakedown('a', async (done) => {
      report('taken down');
      await null;
      serverswap.readyFor('b', done);
    });
    serverswap.readyFor('c', () => {});
  `);
  await server.control.hears('READY c');
  server.control.say('TAKEDOWN a');
  await server.control.hears('READY b');
  server.control.say('PING');
  await server.control.hears('ERROR unknown word');
  server.control.say('GO b', 'GO c');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.control.lines, ['TAKEDOWN a', 'READY c', 'READY b', 'ERROR unknown word', 'RELEASED a']);
});

test('a callback is called once', async (t) => {
  const server = await start(t, `
    serverswap.onTakedown('a', () => report('taken down'));
    serverswap.readyFor('b', () => {});
  `);
  await server.control.hears('READY b');
  server.control.say('TAKEDOWN a', 'TAKEDOWN a', 'GO b');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['taken down']);
  assert.deepEqual(server.control.lines, ['TAKEDOWN a', 'READY b', 'RELEASED a']);
});

test('a callback that fails has not released, and is one line on stderr', async (t) => {
  const server = await start(t, `
    serverswap.onTakedown('a', () => { throw new Error('boom\\nbang'); });
    serverswap.onTakedown('a', () => report('called all the same'));
    serverswap.onTakedown('b', async () => { throw 'no error'; });
    serverswap.onTakedown('c', (done) => { throw new Error('early'); });
    serverswap.onTakedown('d', async (done) => { done(); throw new Error('late'); });
    serverswap.onTakedown('e', (done) => { done(); throw new Error('late'); });
    serverswap.onTakedown('f', (done) => { setImmediate(done); throw new Error('halfway'); });
    serverswap.readyFor('end', () => {});
  `);
  await server.control.hears('READY end');
  const before = server.control.lines.length;
  for (const name of 'abcdef') {
    const reports = server.reports.length;
    server.control.say(`TAKEDOWN ${name}`);
    await until(() => `a report for ${name}`, () => server.reports.length > reports + (name === 'a'));
  }
  await server.control.hears('RELEASED f');
  server.control.say('GO end');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, [
    'called all the same',
    'serverswap: a: takedown callback failed: Error: boom bang (not released)',
    'serverswap: b: takedown callback failed: no error (not released)',
    'serverswap: c: takedown callback failed: Error: early (not released)',
    'serverswap: d: takedown callback failed: Error: late',
    'serverswap: e: takedown callback failed: Error: late',
    'serverswap: f: takedown callback failed: Error: halfway (not released)',
  ]);
  assert.deepEqual(server.control.lines.slice(before), ['RELEASED d', 'RELEASED e', 'RELEASED f']);
});

test('the server of the README', async (t) => {
  const port = await freePort();
  const readme = fs.readFileSync(path.join(client, 'README.md'), 'utf8');
  const [, script] = /```js\n(.*?)```/s.exec(readme);
  const supervisor = await Supervisor.start(t);
  supervisor.file('server.js', script.replaceAll('8080', port));
  const server = supervisor.run([process.execPath, 'server.js']);
  await server.control.hears(`TAKEDOWN :${port}`);
  await assert.rejects(get(port), { code: 'ECONNREFUSED' });
  server.control.say(`GO :${port}`);
  assert.equal(await until(() => 'an answer', () => get(port).catch(() => null)), 'hello\n');
  server.control.say(`TAKEDOWN :${port}`);
  await server.control.hears(`RELEASED :${port}`);
  await bind(t, port);
  assert.equal(await server.exit(), 0);
  assert.equal(server.stderr, '');
});

test('server.close() lets go of the port before RELEASED, and requests finish', async (t) => {
  const port = await freePort();
  const server = await start(t, `
    const server = require('http').createServer((request, response) => {
      process.on('SIGUSR2', () => response.end('hello'));
      report('request');
    });
    serverswap.readyFor(${port}, () => server.listen(${port}, () => report('listening')));
    const fs = require('fs');
    const listening = () => ['tcp', 'tcp6'].some((family) => {
      const entry = ':' + (${port}).toString(16).toUpperCase().padStart(4, '0') + ' [0-9A-F]+:0000 0A ';
      return new RegExp(entry).test(fs.readFileSync('/proc/self/net/' + family, 'latin1'));
    });
    serverswap.onTakedown(${port}, () => {
      report('listening before:', listening());
      server.close(() => process.exit());
      report('listening after:', listening());
    });
  `);
  await server.control.hears(`READY :${port}`);
  server.control.say(`GO :${port}`);
  await server.reported('listening');
  const answer = get(port);
  await server.reported('request');
  server.control.say(`TAKEDOWN :${port}`);
  await server.control.hears(`RELEASED :${port}`);
  await bind(t, port);
  process.kill(server.pid, 'SIGUSR2');
  assert.equal(await answer, 'hello');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['listening', 'request', 'listening before: true', 'listening after: false']);
});

test('when the supervisor dies, a server that serves goes on and says so once', async (t) => {
  const server = await start(t, `
    const stay = setInterval(() => {}, 1e9);
    serverswap.onTakedown(':8080', () => report('taken down'));
    serverswap.readyFor(':8080', () => report('bind'));
    process.on('SIGUSR2', () => {
      report('alive');
      serverswap.serverUp();
      serverswap.onTakedown(':8081', () => report('taken down'));
      serverswap.readyFor(':8081', () => { report('later'); clearInterval(stay); });
    });
  `);
  await server.control.hears('READY :8080');
  server.control.say('GO :8080');
  await server.reported('bind');
  server.control.die();
  await server.reported('serverswap: the supervisor has died (the server goes on without it)');
  process.kill(server.pid, 'SIGUSR2');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, [
    'bind', 'serverswap: the supervisor has died (the server goes on without it)', 'alive', 'later',
  ]);
});

test('when the supervisor dies, what it said before still counts', async (t) => {
  const server = await start(t, "serverswap.readyFor('a', () => report('bind'));");
  await server.control.hears('READY a');
  await server.control.flush('GO a\n');
  server.control.die();
  assert.equal(await server.exit(), 0);
  assert.equal(server.reports[0], 'bind');
});

test('when the supervisor dies, a server that waits with a callback exits with 1', async (t) => {
  const server = await start(t, `
    setInterval(() => {}, 1e9);
    serverswap.readyFor(':8080', () => report('bind'));
    serverswap.readyFor(':8081').catch(() => report('refused'));
  `);
  await server.control.hears('READY :8081');
  server.control.die();
  assert.equal(await server.exit(), 1);
  assert.deepEqual(server.reports, ['serverswap: the supervisor has died before it said GO for :8080, :8081 (exiting)']);
});

test('when the supervisor dies, a promise is rejected', async (t) => {
  const server = await start(t, `
    serverswap.readyFor(':8080').then(() => report('bind'), (err) => report(err.code, err.message));
  `);
  await server.control.hears('READY :8080');
  server.control.die();
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, [
    'serverswap: the supervisor has died before it said GO for :8080 (not to be bound)',
    'ERR_SERVERSWAP_DIED the serverswap supervisor has died',
  ]);
});

test('when the supervisor dies, a server that serves one address and waits for another goes on', async (t) => {
  const server = await start(t, `
    const stay = setInterval(() => {}, 1e9);
    serverswap.readyFor(':8080', () => report('bind'));
    serverswap.readyFor(':8081', () => report('bind too'));
    process.on('SIGUSR2', () => { report('alive'); clearInterval(stay); });
  `);
  await server.control.hears('READY :8081');
  server.control.say('GO :8080');
  await server.reported('bind');
  server.control.die();
  await until(() => 'the message', () => server.reports.length === 2);
  process.kill(server.pid, 'SIGUSR2');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, [
    'bind', 'serverswap: the supervisor has died before it said GO for :8081 (not to be bound)', 'alive',
  ]);
});

test('a stderr that nobody reads any more does no harm', async (t) => {
  const server = await start(t, `
    require('fs').closeSync(2);
    serverswap.readyFor('a', () => process.stdout.write('bind'));
  `);
  await server.control.hears('READY a');
  server.control.say('ERROR lost', 'GO a');
  assert.equal(await server.exit(), 0);
  assert.equal(server.stdout, 'bind');
});
