// @ts-check
/**
 * The envelope over one WebSocket, shared by all tiles of the page: `{"v":1,"id","type","session",…}` with the browser's own JSON inside.
 * The socket is opened when it is needed and closed when no session is left. Each tile has its own patience (`connection.js`),
 * so there is none here.
 */

/** @import { After, Message, Reason, Receive, Welcome } from './types.d.ts' */

const OPEN_MS = 8_000;
const PING_MS = 15_000;
const PONG_MS = 5_000;

/** @type {After} */
export const byClock = (ms, then) => {
  const timer = setTimeout(then, ms);
  return () => clearTimeout(timer);
};

export class Signaling {
  #its;
  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {Promise<Welcome> | null} */
  #welcome = null;
  /** @type {Map<string, Receive>} */
  #sessions = new Map();
  #gone = () => {};
  #sent = 0;
  #heard = 0;

  /**
   * `open` and `after` stand in for the network and the clock in tests.
   * @param {{ url: string, token: () => string, open?: (url: string) => WebSocket, after?: After }} its
   */
  constructor({ url, token, open = (url) => new WebSocket(url), after = byClock }) {
    this.#its = { url, token, open, after };
  }

  /**
   * Opens the socket if none is open.
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
    this.send(session, 'bye');
    this.#sessions.delete(session);
  }

  /** @param {string} session @param {string} type @param {object} [fields] */
  send(session, type, fields) {
    if (this.#sessions.has(session)) this.#post({ type, session, id: `${session}.${++this.#sent}`, ...fields });
  }

  /** Asks whether the device is still there; a socket without an answer counts as closed, since TCP may take minutes to notice. */
  check() {
    const [heard, gone] = [this.#heard, this.#gone];
    if (!this.#post({ type: 'ping', id: `ping.${++this.#sent}` })) return;
    this.#its.after(PONG_MS, () => heard === this.#heard && gone());
  }

  /** Ends the socket: the next `welcome` introduces itself anew, with the token of then. */
  close() {
    this.#gone();
  }

  /** @param {(welcome: Welcome) => void} resolve @param {(why: Reason) => void} reject */
  #connect(resolve, reject) {
    const { url, token, open, after } = this.#its;
    /** @type {Reason} */
    let why = { code: 'unreachable' };
    const socket = (this.#socket = open(url));
    const gone = (this.#gone = () => {
      if (this.#socket !== socket) return;
      callOff();
      socket.close();
      this.#socket = this.#welcome = null;
      reject(why);
      const receivers = [...this.#sessions.values()];
      this.#sessions.clear();
      for (const receive of receivers) receive({ type: 'closed' });
    });
    let callOff = after(OPEN_MS, gone);
    const beat = () => {
      if (!this.#sessions.size) return gone();
      this.check();
      callOff = after(PING_MS, beat);
    };
    socket.onclose = gone;
    socket.onopen = () => this.#post({ type: 'hello', id: 'hello', token: token() || undefined });
    socket.onmessage = ({ data }) => {
      if (this.#socket !== socket) return;
      this.#heard++;
      const message = parse(data);
      if (message?.type === 'welcome') {
        callOff();
        callOff = after(PING_MS, beat);
        resolve(message);
      } else if (message?.type === 'error' && message.id === 'hello') {
        why = reasonOf(message);
        gone();
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
