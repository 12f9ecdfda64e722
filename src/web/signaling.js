// @ts-check
/**
 * The envelope over one WebSocket, shared by all tiles of the page: `{"v":1,"id","type","session",…}` with the browser's own JSON inside.
 * The socket is opened when it is needed and closed when no session is left. One that is lost is replaced by another that takes the
 * sessions over. For all else each tile has its own patience (`connection.js`).
 */

import { delay } from './connection.js';

/** @import { After, Message, Reason, Receive, Welcome } from './types.d.ts' */

const OPEN_MS = 8_000;
const PING_MS = 15_000;
const PONG_MS = 3_000;
/** Between two tries to get lost sessions back. */
const AGAIN_MS = 2_000;
/** The device keeps the sessions of a socket that closes with this. */
const BACK_SOON = 4000;

/** @type {After} */
export const byClock = (ms, then) => {
  const timer = setTimeout(then, ms);
  return () => clearTimeout(timer);
};

/** Calls `then` when this machine is in another network than before. @param {() => void} then */
export function onMove(then) {
  addEventListener('online', then);
  const { connection } = /** @type {any} */ (navigator);
  let kind = connection?.type;
  // Its estimates change all the time; only the kind of network matters.
  connection?.addEventListener('change', () => {
    if (kind !== connection.type) then();
    kind = connection.type;
  });
}

export class Signaling {
  #its;
  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {Promise<Welcome> | null} */
  #welcome = null;
  /** @type {Map<string, Receive>} */
  #sessions = new Map();
  /** What the next socket takes the sessions over with. */
  #resume = '';
  /** Sessions left while there was no socket. @type {string[]} */
  #left = [];
  #failures = 0;
  #gone = (/** @type {boolean} */ _forGood) => {};
  #sent = 0;
  #heard = 0;

  /**
   * `open` and `after` stand in for network and clock in tests.
   * @param {{ url: string, token: () => string, open?: (url: string) => WebSocket, after?: After }} its
   */
  constructor({ url, token, open = (url) => new WebSocket(url), after = byClock }) {
    this.#its = { url, token, open, after };
  }

  /**
   * Opens a socket if none is.
   * @returns {Promise<Welcome>} rejected with a `Reason`
   */
  welcome() {
    this.#welcome ??= new Promise((resolve, reject) => this.#connect(resolve, reject));
    return this.#welcome;
  }

  /** @param {string} session @param {Receive} receive */
  join(session, receive) {
    this.#sessions.set(session, receive);
  }

  /** Says bye, unless the session is over already. @param {string} session */
  leave(session) {
    if (this.#sessions.has(session) && !this.#post({ type: 'bye', session })) this.#left.push(session);
    this.#sessions.delete(session);
  }

  /** @param {string} session @param {string} type @param {object} [fields] */
  send(session, type, fields) {
    const id = `${session}.${++this.#sent}`;
    if (this.#sessions.has(session)) this.#post({ type, session, id, ...fields });
    return id;
  }

  /** Asks whether the device is still there; a socket without an answer counts as lost: TCP may take minutes to notice. */
  check(moved = false) {
    const [heard, gone] = [this.#heard, this.#gone];
    if (moved && this.#socket?.readyState === 0) gone(false);
    if (!this.#socket) return this.#again();
    if (!this.#post({ type: 'ping', id: `ping.${++this.#sent}` })) return;
    this.#its.after(PONG_MS, () => heard === this.#heard && gone(false));
  }

  /** Ends all sessions: the next `welcome` introduces itself anew, with the token of then. */
  close() {
    this.#gone(true);
    this.#end({ type: 'closed' });
  }

  #again() {
    if (this.#sessions.size) this.welcome().catch(() => {});
  }

  /** @param {Message} message their last */
  #end(message) {
    const receivers = [...this.#sessions.values()];
    this.#sessions.clear();
    this.#resume = '';
    this.#left = [];
    for (const receive of receivers) receive(message);
  }

  /** @param {(welcome: Welcome) => void} resolve @param {(why: Reason) => void} reject */
  #connect(resolve, reject) {
    const { url, token, open, after } = this.#its;
    /** @type {Reason} */
    let why = { code: 'unreachable' };
    const socket = (this.#socket = open(url));
    const gone = (this.#gone = (forGood) => {
      if (this.#socket !== socket) return;
      callOff();
      socket.close(forGood ? 1000 : BACK_SOON);
      this.#socket = this.#welcome = null;
      reject(why);
      if (forGood) return;
      if (!this.#resume) return this.#end({ type: 'closed' });
      const wait = this.#failures++ && Math.min(delay(this.#failures, Math.random()), AGAIN_MS);
      after(wait, () => this.#socket || this.#again());
    });
    let callOff = after(OPEN_MS, () => gone(false));
    const beat = () => {
      if (!this.#sessions.size) return this.close();
      this.check();
      callOff = after(PING_MS, beat);
    };
    socket.onclose = () => gone(false);
    socket.onopen = () => this.#post({ type: 'hello', id: 'hello', token: token() || undefined, resume: this.#resume || undefined });
    socket.onmessage = ({ data }) => {
      if (this.#socket !== socket) return;
      this.#heard++;
      const message = parse(data);
      if (message?.type === 'welcome') {
        callOff();
        callOff = after(PING_MS, beat);
        if (!message.resumed) this.#end({ type: 'closed' });
        for (const session of this.#left.splice(0)) this.#post({ type: 'bye', session });
        this.#resume = message.resume ?? '';
        this.#failures = 0;
        resolve(message);
        if (message.resumed) for (const receive of [...this.#sessions.values()]) receive({ type: 'resumed' });
      } else if (message?.type === 'error' && message.id === 'hello') {
        why = reasonOf(message);
        gone(true);
        this.#end(message);
      } else if (message) {
        this.#route(message);
      }
    };
  }

  /** @param {Message} message */
  #route(message) {
    // The answer to a message the device could not read names no session, but its id does.
    const session = message.session ?? message.id?.split('.')[0] ?? '';
    const receive = this.#sessions.get(session);
    if (message.type === 'bye') this.#sessions.delete(session);
    receive?.(message);
  }

  /** @param {Message} message @returns {boolean} whether it is on its way */
  #post(message) {
    if (this.#socket?.readyState !== 1) return false;
    this.#socket.send(JSON.stringify({ v: 1, ...message }));
    return true;
  }
}

/** @param {Message} message @returns {Reason} */
export function reasonOf({ code = 'error', message, retry_after_ms: retryAfter }) {
  return { code, message, retryAfter };
}

/** Null for what is none. @param {any} data @returns {Message | null} */
export function parse(data) {
  try {
    const message = JSON.parse(data);
    const plain = ['type', 'id', 'session', 'code', 'message', 'reason'].every((name) => /^(string|undefined)$/.test(typeof message[name]));
    return plain && message.v === 1 ? message : null;
  } catch {
    return null;
  }
}
