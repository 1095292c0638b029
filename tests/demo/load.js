// The clients of "make demo": eight that ask without a pause, each time over a
// new connection, and two whose answers take a second.  No failure is tried
// again: every one is counted.  Ends at the end of its input, with a table, and
// with status 1 if anything failed.
'use strict';

const net = require('node:net');

const port = Number(process.argv[2]);
const QUICK = 8;
const SLOW = 2;
const PAUSE_MS = 5;
const TIMEOUT_MS = 5000;

const answers = new Map(); // generation -> { pid, quick, slow }
const failures = { refused: 0, reset: 0, empty: 0, cut: 0, 'timed out': 0, other: 0 };
let stopping = false;
let asked = 0;
let lastAnswer;
let longestGap = 0;

// Resolves to the body of the answer, or rejects with the kind of the failure.
function ask(path) {
  return new Promise((resolve, reject) => {
    let text = '';
    const socket = net.connect({ port, host: '127.0.0.1' });
    const timer = setTimeout(() => fail('timed out'), TIMEOUT_MS);
    const fail = (kind) => {
      clearTimeout(timer);
      socket.destroy();
      reject(kind);
    };
    socket.setEncoding('utf8');
    socket.on('connect', () => socket.write(`GET ${path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n`));
    socket.on('data', (chunk) => { text += chunk; });
    socket.on('error', ({ code }) => {
      if (code === 'ECONNREFUSED') return fail('refused');
      if (code === 'ECONNRESET' || code === 'EPIPE') return fail('reset');
      return fail('other');
    });
    socket.on('end', () => {
      const [, body] = text.split('\r\n\r\n');
      const [, generation, pid] = /(\d+) (\d+)\n/.exec(body ?? '') ?? [];
      if (text === '') return fail('empty');
      if (pid === undefined) return fail('cut');
      clearTimeout(timer);
      return resolve({ generation: Number(generation), pid });
    });
  });
}

async function client(path, kind) {
  while (!stopping) {
    asked += 1;
    try {
      const { generation, pid } = await ask(path);
      if (!answers.has(generation)) answers.set(generation, { pid, quick: 0, slow: 0 });
      answers.get(generation)[kind] += 1;
      const now = performance.now();
      if (kind === 'quick') {
        longestGap = Math.max(longestGap, now - (lastAnswer ?? now));
        lastAnswer = now;
      }
    } catch (failure) {
      if (!(failure in failures)) throw failure;
      failures[failure] += 1;
    }
    await new Promise((resolve) => { setTimeout(resolve, PAUSE_MS); });
  }
}

function report() {
  const row = (...cells) => console.log(`  ${cells.map((cell) => String(cell).padStart(12)).join('')}`);
  row('generation', 'pid', 'answers', 'slow ones');
  for (const [generation, { pid, quick, slow }] of [...answers].sort(([a], [b]) => a - b)) {
    row(generation, pid, quick, slow);
  }
  const failed = Object.values(failures).reduce((sum, count) => sum + count, 0);
  const kinds = Object.entries(failures).filter(([kind]) => kind !== 'other' || failures.other > 0);
  console.log();
  console.log(`  ${asked} connections, ${failed} failed: ${kinds.map(([kind, count]) => `${count} ${kind}`).join(', ')}`);
  console.log(`  longest time without an answer: ${Math.ceil(longestGap)} ms`);
  if (failed > 0) process.exitCode = 1;
}

process.stdin.resume();
process.stdin.on('end', () => { stopping = true; });

const clients = [
  ...Array.from({ length: QUICK }, () => client('/', 'quick')),
  ...Array.from({ length: SLOW }, () => client('/slow', 'slow')),
];
Promise.all(clients).then(report);
