import serverswap = require('./index.js');

export type { Address, Server } from './index.js';
export { readyFor, onTakedown, serverUp, fail } from './index.js';
export default serverswap;
