// Where the inherited descriptor is not there, or is not ours.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { Supervisor, bind, client, freePort, get, until } from './supervisor.mjs';

const SCRIPT = `
  serverswap.readyFor(':8080', () => report('bind'));
  serverswap.onTakedown(':8080', () => report('taken down'));
`;

// Swaps a server that should use the channel, and ends well.
async function converse(channel, server) {
  await channel.hears('READY :8080');
  await channel.hears('TAKEDOWN :8080');
  channel.say('TAKEDOWN :8080', 'GO :8080');
  await channel.hears('RELEASED :8080');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['taken down', 'bind']);
}

test('the descriptor comes first', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(SCRIPT);
  await converse(server.control, server);
  assert.equal(supervisor.connections.length, 0);
});

test('without a descriptor the socket is used', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(SCRIPT, { fd: null });
  await converse(await supervisor.connection(), server);
});

test('a descriptor with another inode is not written to', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(SCRIPT, { inode: '1' });
  await converse(await supervisor.connection(), server);
  assert.deepEqual(server.control.lines, []);
});

test('a descriptor that is no socket is not written to, whatever its inode', async (t) => {
  const supervisor = await Supervisor.start(t);
  const file = supervisor.file('precious', 'data');
  const fd = fs.openSync(file, 'a+');
  t.after(() => fs.closeSync(fd));
  const server = supervisor.node(SCRIPT, { fd });
  await converse(await supervisor.connection(), server);
  assert.equal(fs.readFileSync(file, 'utf8'), 'data');
});

test('the connection is made when the script has run', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(`
    const open = () => require('fs').readdirSync('/proc/self/fd').length;
    const before = open();
    serverswap.readyFor(':8080', () => report('bind'));
    report(open() - before);
  `, { fd: null });
  const channel = await supervisor.connection();
  await channel.hears('READY :8080');
  channel.say('GO :8080');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['0', 'bind']);
});

test('over the socket too, only a readyFor that waits keeps a process alive', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node("serverswap.onTakedown('a', () => {}); serverswap.fail('b');", { fd: null });
  assert.equal(await server.exit(), 0);
  const channel = await supervisor.connection();
  await channel.hears('FAIL b');
  assert.deepEqual(channel.lines, ['TAKEDOWN a', 'FAIL b']);
});

test('when nobody listens on the socket, a server starts as without serverswap', async (t) => {
  const supervisor = await Supervisor.start(t);
  supervisor.die();
  const server = supervisor.node(SCRIPT + "serverswap.readyFor('b').then(() => report('promise'));", { fd: null });
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, [
    `serverswap: cannot connect to ${supervisor.socket}: ENOENT (going on without it)`, 'bind', 'promise',
  ]);
});

test('when nobody is left behind the socket, a server that serves goes on', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(`
    serverswap.readyFor('a', () => {
      report('bind');
      process.on('SIGUSR2', () => { report('alive'); process.exit(); });
      setInterval(() => {}, 1e9);
    });
  `, { fd: null });
  const channel = await supervisor.connection();
  await channel.hears('READY a');
  channel.say('GO a');
  await server.reported('bind');
  supervisor.die();
  await until(() => 'the message', () => server.reports.length === 2);
  process.kill(server.pid, 'SIGUSR2');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, [
    'bind', 'serverswap: the supervisor has died (the server goes on without it)', 'alive',
  ]);
});

test('when the supervisor closes the socket, a server that waits exits with 1', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(SCRIPT, { fd: null });
  const channel = await supervisor.connection();
  await channel.hears('READY :8080');
  supervisor.die();
  assert.equal(await server.exit(), 1);
  assert.deepEqual(server.reports, ['serverswap: the supervisor has died before it said GO for :8080 (exiting)']);
});

const npm = { npm_config_cache: '/nonexistent', npm_config_update_notifier: 'false', npm_config_loglevel: 'silent' };
const wrappers = {
  'sh -c': ['sh', '-c', 'node server.js; exit $?'],
  'npm start': ['npm', 'start'],
  'npm run': ['npm', 'run', 'server'],
  'npx': ['npx', '--no-install', 'server'],
};

for (const [name, command] of Object.entries(wrappers)) {
  test(`behind ${name}`, async (t) => {
    const supervisor = await Supervisor.start(t);
    supervisor.file('package.json', JSON.stringify({
      name: 'server', version: '1.0.0', bin: { server: 'server.js' },
      scripts: { start: 'node server.js', server: 'sh -c "node server.js"' },
    }));
    supervisor.file('server.js', `#!/usr/bin/env node
      const serverswap = require('serverswap'); const report = console.error; ${SCRIPT}`);
    fs.chmodSync(path.join(supervisor.dir, 'server.js'), 0o755);
    fs.mkdirSync(path.join(supervisor.dir, 'node_modules', '.bin'));
    fs.symlinkSync('../../server.js', path.join(supervisor.dir, 'node_modules', '.bin', 'server'));
    const server = supervisor.run(command, {
      env: { ...npm, PATH: `${path.dirname(process.execPath)}:${process.env.PATH}` },
    });
    const channel = name === 'sh -c' ? server.control : await supervisor.connection();
    await converse(channel, server);
    if (channel !== server.control) assert.deepEqual(server.control.lines, []);
  });
}

test('behind node --watch, again after each change', async (t) => {
  const supervisor = await Supervisor.start(t);
  const script = supervisor.file('server.js', `
    require('serverswap').readyFor(':8080', () => { console.error('bind'); setInterval(() => {}, 1e9); });
  `);
  const server = supervisor.run([process.execPath, '--watch', 'server.js']);
  const first = await supervisor.connection(0);
  await first.hears('READY :8080');
  first.say('GO :8080');
  await server.reported('bind');
  fs.appendFileSync(script, '// changed\n');
  const second = await supervisor.connection(1);
  await second.hears('READY :8080');
  second.say('GO :8080');
  await until(() => 'the second bind', () => server.reports.filter((line) => line === 'bind').length === 2);
  await until(() => 'the end of the first', () => first.ended);
  assert.deepEqual(server.control.lines, []);
});

test('in a cluster the primary and each worker have a channel of their own', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(`
    const cluster = require('cluster');
    const name = cluster.isPrimary ? 'primary' : 'worker' + cluster.worker.id;
    serverswap.readyFor(name, () => {
      report(name);
      if (cluster.isWorker) process.disconnect();
    });
    serverswap.onTakedown(name, () => {});
    if (cluster.isPrimary) { cluster.fork(); cluster.fork(); }
  `);
  await server.control.hears('TAKEDOWN primary');
  await until(() => 'two workers', async () => supervisor.connections.length === 2 &&
                                         supervisor.connections.every((c) => c.lines.length === 2));
  const names = supervisor.connections.map((c) => c.lines[0]);
  assert.deepEqual([...names].sort(), ['READY worker1', 'READY worker2']);
  for (const [i, channel] of supervisor.connections.entries()) {
    assert.deepEqual(channel.lines, [names[i], names[i].replace('READY', 'TAKEDOWN')]);
    channel.say(names[i].replace('READY', 'GO'));
  }
  server.control.say('GO primary');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports.sort(), ['primary', 'worker1', 'worker2']);
  assert.deepEqual(server.control.lines, ['READY primary', 'TAKEDOWN primary']);
});

test('a cluster lets go of its port when the primary disconnects it', async (t) => {
  const supervisor = await Supervisor.start(t);
  const port = await freePort();
  const server = supervisor.node(`
    const cluster = require('cluster');
    if (cluster.isWorker) {
      require('http').createServer((request, response) => response.end('hello')).listen(${port});
    } else {
      serverswap.readyFor(${port}, () => {
        cluster.fork();
        cluster.fork();
        cluster.on('listening', () => report('listening'));
      });
      serverswap.onTakedown(${port}, (done) => cluster.disconnect(done));
    }
  `);
  await server.control.hears(`TAKEDOWN :${port}`);
  server.control.say(`GO :${port}`);
  await until(() => 'both workers', () => server.reports.length === 2);
  assert.equal(await get(port), 'hello');
  server.control.say(`TAKEDOWN :${port}`);
  await server.control.hears(`RELEASED :${port}`);
  await bind(t, port);
  assert.equal(await server.exit(), 0);
  assert.equal(supervisor.connections.length, 0);
});

test('a worker thread does not touch the descriptor', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(`
    const { Worker, isMainThread } = require('worker_threads');
    const name = isMainThread ? 'main' : 'thread';
    serverswap.onTakedown(name, () => {});
    serverswap.readyFor(name, () => report(name));
    if (isMainThread) new Worker(__filename);
  `);
  const channel = await supervisor.connection();
  await channel.hears('READY thread');
  await server.control.hears('READY main');
  channel.say('GO thread');
  await server.reported('thread');
  server.control.say('GO main');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['thread', 'main']);
  assert.deepEqual(server.control.lines, ['TAKEDOWN main', 'READY main']);
});

test('a worker thread that waits when the supervisor dies ends with 1', async (t) => {
  const supervisor = await Supervisor.start(t);
  const server = supervisor.node(`
    const { Worker, isMainThread } = require('worker_threads');
    if (isMainThread) new Worker(__filename).on('exit', (code) => report('thread', code));
    else serverswap.readyFor('a', () => report('bind'));
  `, { fd: null });
  const channel = await supervisor.connection();
  await channel.hears('READY a');
  supervisor.die();
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports.sort(), [
    'serverswap: the supervisor has died before it said GO for a (exiting)', 'thread 1',
  ]);
});

test('a child of the server does not inherit the channel, and can open its own', async (t) => {
  const supervisor = await Supervisor.start(t);
  supervisor.file('child.js', `
    const fs = require('fs');
    let inode;
    try { inode = String(fs.fstatSync(3, { bigint: true }).ino); } catch {}
    if (inode === process.env.SERVERSWAP_INODE) console.error('inherited');
    require('serverswap').readyFor('child', () => console.error('child'));
  `);
  const server = supervisor.node(`
    serverswap.readyFor('server', () => {
      require('child_process').spawn(process.execPath, ['child.js'], { stdio: 'inherit' })
        .on('exit', () => report('server'));
    });
  `);
  await server.control.hears('READY server');
  server.control.say('GO server');
  const channel = await supervisor.connection();
  await channel.hears('READY child');
  channel.say('GO child');
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['child', 'server']);
});

test('several copies in one process share the channel', async (t) => {
  const supervisor = await Supervisor.start(t);
  fs.cpSync(client, path.join(supervisor.dir, 'lib/node_modules/serverswap'), { recursive: true });
  fs.cpSync(path.join(client, 'index.js'), path.join(supervisor.dir, 'serverswap.cjs'));
  supervisor.file('lib/index.mjs', "export { readyFor } from 'serverswap';");
  supervisor.file('server.mjs', `
    import { createRequire } from 'node:module';
    import serverswap, { readyFor } from 'serverswap';
    import alone, { readyFor as alone2 } from './serverswap.cjs';
    import { readyFor as nested } from './lib/index.mjs';
    const required = createRequire(import.meta.url)('serverswap');
    const all = [serverswap.readyFor, readyFor, alone.readyFor, alone2, nested, required.readyFor];
    for (const ready of all) ready('a', () => console.error('bind'));
    serverswap.serverUp();
  `);
  for (const options of [{}, { fd: null }]) {
    const server = supervisor.run([process.execPath, 'server.mjs'], options);
    const channel = server.control ?? await supervisor.connection();
    await channel.hears('UP');
    channel.say('GO a');
    assert.equal(await server.exit(), 0);
    assert.deepEqual(server.reports, Array(6).fill('bind'));
    assert.deepEqual(channel.lines, ['READY a', 'UP']);
  }
  assert.equal(supervisor.connections.length, 1);
});

test('npm install DIR', async (t) => {
  const supervisor = await Supervisor.start(t);
  fs.rmSync(path.join(supervisor.dir, 'node_modules'), { recursive: true });
  supervisor.file('package.json', '{ "private": true }');
  const install = supervisor.run(['npm', 'install', '--offline', client], {
    fd: null, env: { ...npm, npm_config_cache: path.join(supervisor.dir, 'cache') },
  });
  assert.equal(await install.exit(), 0, install.stderr);
  const server = supervisor.node(`
    serverswap.readyFor('a', async () => report((await import('serverswap')).readyFor === serverswap.readyFor));
  `, { fd: null, socket: null });
  assert.equal(await server.exit(), 0);
  assert.deepEqual(server.reports, ['true']);
});
