export { default, readyFor, onTakedown, serverUp, fail } from './index.js';
