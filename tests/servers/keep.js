// Clients that keep their connections, of protocols that are not HTTP/1 in the clear. They never ask again. Lines on
// standard output as those of ask.py. Arguments: `https`, `http2` or `websocket`, as web.js has them; `looks` or `blind`:
// whether it is noticed before a request that the server has closed the connection; what is between an answer and the next
// request, `closed`: nothing, or `pauses`: 50 to 500 ms; a port; how many clients; 0: until the end of standard input.

const crypto = require('crypto');
const http2 = require('http2');
const net = require('net');
const tls = require('tls');

const PATIENCE = 30_000;
const [kind, sight, manner] = process.argv.slice(2);
const [port, clients] = process.argv.slice(5).map(Number);
let stopped = false;
process.stdin.on('end', () => { stopped = true; }).resume();

// A stream on which one thing is asked at a time. `complete` gives the answer that the bytes hold, or undefined.
class Stream {
  #data = Buffer.alloc(0);
  #over;
  #wake = () => {};

  constructor(socket, complete) {
    this.socket = socket;
    this.complete = complete;
    const over = (failure) => { this.#over ??= failure; this.#wake(); };
    socket.on('data', (data) => { this.#data = Buffer.concat([this.#data, data]); this.#wake(); });
    socket.on('error', (e) => over({ ECONNREFUSED: 'refused', ECONNRESET: 'reset', EPIPE: 'reset' }[e.code] ?? 'other'));
    socket.on('end', () => over('empty')).on('close', () => over('empty'));
  }

  async ask(bytes) {
    if (this.#over === undefined) this.socket.write(bytes);
    for (;;) {
      const answer = this.complete(this.#data);
      if (answer !== undefined) {
        this.#data = Buffer.alloc(0);
        return answer;
      }
      if (this.#over !== undefined) throw this.#over;
      await new Promise((resolve) => { this.#wake = resolve; });
    }
  }

  isOver() {
    return this.#over !== undefined;
  }

  destroy() {
    this.socket.destroy();
  }
}

const opened = (socket, event) => new Promise((resolve, reject) => {
  socket.once(event, resolve).once('error', (e) => reject(e.code === 'ECONNREFUSED' ? 'refused' : 'reset'));
  socket.once('close', () => reject('empty'));
});

// Each opens a connection: what asks for an id and tells the answer, whether the other side has closed it, and what ends
// it.
const PROTOCOLS = {
  async https() {
    const socket = tls.connect({ host: '127.0.0.1', port, rejectUnauthorized: false });
    await opened(socket, 'secureConnect');
    const stream = new Stream(socket, (data) => {
      const [head, body] = data.toString().split('\r\n\r\n');
      return body?.endsWith('\n') ? { text: body, last: /^connection: close/im.test(head) } : undefined;
    });
    return {
      ask: (id) => stream.ask(`POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ${id.length}\r\n\r\n${id}`),
      isOver: () => stream.isOver(),
      destroy: () => stream.destroy(),
    };
  },

  async http2() {
    const session = http2.connect(`http://127.0.0.1:${port}`);
    let last = false;
    session.on('goaway', () => { last = true; });
    await opened(session, 'connect');
    session.on('error', () => {});
    return {
      ask: (id) => new Promise((resolve, reject) => {
        let text = '';
        try {
          const request = session.request({ ':method': 'POST', ':path': '/' });
          request.setEncoding('utf8').on('data', (data) => { text += data; });
          request.on('error', () => reject('reset'));
          request.on('close', () => (text.endsWith('\n') ? resolve({ text, last }) : reject('empty')));
          request.end(id);
        } catch {
          // It is closed already: who does not look writes all the same.
          reject('reset');
        }
      }),
      isOver: () => last || session.closed || session.destroyed,
      destroy: () => session.destroy(),
    };
  },

  async websocket() {
    const socket = net.connect({ host: '127.0.0.1', port, noDelay: true });
    await opened(socket, 'connect');
    const head = 'GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13';
    const hands = new Stream(socket, (data) => (data.includes('\r\n\r\n') ? data.toString() : undefined));
    const hello = await hands.ask(`${head}\r\nSec-WebSocket-Key: ${crypto.randomBytes(16).toString('base64')}\r\n\r\n`);
    if (!hello.startsWith('HTTP/1.1 101')) throw 'other';
    hands.complete = (data) => {
      if (data.length < 2 || data.length < 2 + (data[1] & 127)) return undefined;
      return data[0] === 0x81 ? { text: data.subarray(2).toString(), last: false } : { text: '', last: true };
    };
    return {
      ask(id) {
        const [mask, text] = [crypto.randomBytes(4), Buffer.from(id)];
        text.forEach((byte, i) => { text[i] = byte ^ mask[i % 4]; });
        return hands.ask(Buffer.concat([Buffer.from([0x81, 0x80 | text.length]), mask, text]));
      },
      isOver: () => hands.isOver(),
      destroy: () => hands.destroy(),
    };
  },
};

const limit = (promise) => {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject('timed-out'), PATIENCE); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
};

async function run(client) {
  let connection;
  for (let turn = 0; !stopped; turn += 1) {
    const [id, began] = [`${client}.${turn}`, Date.now()];
    let said;
    if (sight === 'looks' && connection?.isOver()) {
      connection.destroy();
      connection = undefined;
    }
    try {
      connection ??= await limit(PROTOCOLS[kind]());
      const { text, last } = await limit(connection.ask(id));
      const [generation, , echo] = text.split(/\s/);
      said = echo === id ? generation : `other ${text}`;
      if (last) {
        connection.destroy();
        connection = undefined;
      }
    } catch (failure) {
      said = failure instanceof Error ? `other ${failure.message}` : failure;
      connection?.destroy();
      connection = undefined;
      await new Promise((resolve) => { setTimeout(resolve, 5); });
    }
    const [word, ...rest] = said.split(' ');
    console.log([word, client, Date.now() - began, ...rest].join(' ').trim());
    if (manner === 'pauses') await new Promise((resolve) => { setTimeout(resolve, 50 + 450 * Math.random()); });
  }
  connection?.destroy();
}

Promise.all(Array.from({ length: clients }, (_, client) => run(client)));
