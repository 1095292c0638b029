/**
 * `:8080` (all interfaces; also `8080`), `127.0.0.1:8080`, `[::1]:8080`, or any
 * other name without white space.
 */
export type Address = string | number;

/**
 * Says that everything is initialised and only the bind of `address` is left.
 * Resolves when it is time to bind. Rejects with the code `ERR_SERVERSWAP_DIED`
 * if the supervisor dies before that.
 *
 * @throws {TypeError} at once, if `address` is not an address.
 */
export function readyFor(address: Address): Promise<void>;

/**
 * The same with a callback. If the supervisor dies before it is called, the
 * process exits with status 1, unless it already serves another address.
 */
export function readyFor(address: Address, callback: () => unknown): void;

/**
 * Takes over the takedown of `address`: `callback` is called when it is time to
 * stop listening there, to finish what is left, and to exit. The address counts
 * as released when `done` is called; by a callback that takes no `done`, when it
 * returns, or when what it returned is fulfilled.
 */
export function onTakedown(
  address: Address,
  callback: (done: () => void) => unknown,
): void;

/** What `onTakedown` needs of a server of `http`, `https` or `http2`. */
export interface Server {
  close(callback?: (error?: Error) => void): unknown;
  on(event: string, listener: (...args: any[]) => void): unknown;
  prependListener(event: string, listener: (...args: any[]) => void): unknown;
}

/**
 * Takes over the takedown of `address`, at which `server` listens: it stops
 * listening, answers what still comes with `Connection: close`, closes kept
 * connections once no more requests come, and calls `callback` when no connection
 * is open any more. Call it before the server listens.
 */
export function onTakedown(
  address: Address,
  server: Server,
  callback?: () => unknown,
): void;

/** Says that the server is up, for one that listens nowhere. */
export function serverUp(): void;

/** Says that the server will not make it. The supervisor then ends it. */
export function fail(reason?: unknown): void;
