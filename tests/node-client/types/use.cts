import serverswap = require('serverswap');
import { readyFor } from 'serverswap';
import byDefault from 'serverswap';
import type { Address } from 'serverswap';

const address: Address = ':8080';
const nothing: void = serverswap.readyFor(address, () => {});
const promise: Promise<void> = readyFor(8080);
byDefault.serverUp();
serverswap.onTakedown(':8080', () => {});
serverswap.onTakedown(':8080', async () => {});
serverswap.onTakedown(':8080', (done) => setTimeout(done, 1));
declare const process: { exit(): never };
declare const server: serverswap.Server;
serverswap.onTakedown(':8080', server);
serverswap.onTakedown(':8080', server, () => process.exit());
serverswap.fail();
serverswap.fail(new Error('no database'));

// @ts-expect-error
serverswap.readyFor();
// @ts-expect-error
serverswap.readyFor(':8080', 5);
// @ts-expect-error
serverswap.readyFor(null);
// @ts-expect-error
serverswap.onTakedown(':8080');
// @ts-expect-error
serverswap.onTakedown(':8080', (done: string) => {});
// @ts-expect-error
serverswap.onTakedown(':8080', () => {}, () => {});
// @ts-expect-error
serverswap.onTakedown(':8080', server, 5);
// @ts-expect-error
serverswap.default;
// @ts-expect-error
serverswap.unknown;

export { nothing, promise };
