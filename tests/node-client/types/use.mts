import serverswap, { readyFor, onTakedown, serverUp, fail, type Address, type Server } from 'serverswap';
import * as all from 'serverswap';

const address: Address = 8080;
await readyFor(address);
await serverswap.readyFor(address);
all.default.serverUp();
readyFor(address, () => {});
onTakedown(address, (done) => done());
declare const server: Server;
onTakedown(address, server, () => {});
serverUp();
fail('no database');

// @ts-expect-error
serverswap.default;
// @ts-expect-error
readyFor(address, 5);
// @ts-expect-error
all.unknown;
