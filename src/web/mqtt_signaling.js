// @ts-check
/**
 * The envelope to one device through the broker: what `signaling.js` is over a socket. All devices share the broker's connection.
 * When the broker is away, sessions go on: their pictures do not come that way, and only the pictures tell that a session is over.
 */

import { reasonOf } from './signaling.js';

/** @import { After, Away, Message, Reason, Receive, Welcome } from './types.d.ts' */
/** @import { Broker } from './broker.js' */

const WELCOME_MS = 8_000;
const NO_SUBSCRIBER = 0x10;
const DENIED = { code: 'broker-denies', title: 'The broker does not let the device be called' };

export class MqttSignaling {
  #its;
  /** @type {Promise<Welcome> | null} */
  #welcome = null;
  /** @type {(message: Message) => void} */
  #hello = () => {};
  /** @type {Map<string, Receive>} */
  #sessions = new Map();
  #sent = 0;

  /**
   * @param {{ broker: Pick<Broker, 'publish' | 'check'>, topic: string, client: () => string, token: () => string, away: () => Away | undefined, after: After }} its
   *   `topic`: `<prefix>/<device>`; `client`: our level in its topics
   */
  constructor(its) {
    this.#its = its;
  }

  /** @returns {Promise<Welcome>} rejected with a `Reason` */
  welcome() {
    this.#welcome ??= new Promise((resolve, reject) => this.#introduce(resolve, reject)).catch((why) => {
      this.#welcome = null;
      throw why;
    });
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
    // What a new session needs may have changed by then: the ICE servers' credentials do not hold for ever.
    if (!this.#sessions.size) this.#welcome = null;
  }

  /** @param {string} session @param {string} type @param {object} [fields] */
  send(session, type, fields) {
    const receive = this.#sessions.get(session);
    if (!receive) return '';
    // The device may have started anew since it was greeted.
    const token = type === 'offer' ? this.#its.token() || undefined : undefined;
    const id = this.#mark(session);
    // All else can wait until the broker is back, or be said again.
    this.#post({ type, session, id, token, ...fields }, (why) => type === 'offer' && receive({ type: 'error', ...why }));
    return id;
  }

  check() {
    this.#its.broker.check();
  }

  /** Ends all sessions. The next `welcome` introduces itself anew, with the token of then. */
  close() {
    const sessions = [...this.#sessions];
    for (const [session] of sessions) this.leave(session);
    this.#welcome = null;
    for (const [, receive] of sessions) receive({ type: 'closed' });
  }

  /** @param {Message} message from our own topic below the device's `rsp/` */
  receive(message) {
    this.#hello(message);
    const session = message.session ?? message.id?.split('.')[0] ?? '';
    const receive = this.#sessions.get(session);
    if (message.type === 'bye') this.#sessions.delete(session);
    receive?.(message);
  }

  /** @param {(welcome: Welcome) => void} resolve @param {(why: Reason) => void} reject */
  #introduce(resolve, reject) {
    const away = this.#its.away();
    if (away) return reject(away);
    const id = this.#mark('hello');
    const remedy = `Nothing came on ${this.#its.topic}/rsp/${this.#its.client()}; the broker’s access list must let you read it.`;
    const callOff = this.#its.after(WELCOME_MS, () => reject({ code: 'no-answer', message: remedy }));
    this.#hello = (message) => {
      if (message.id !== id) return;
      callOff();
      message.type === 'welcome' ? resolve(message) : reject(reasonOf(message));
    };
    this.#post({ type: 'hello', id, token: this.#its.token() || undefined }, (why) => {
      callOff();
      reject(why);
    });
  }

  /** Ours alone, also where several pages use one name. @param {string} about */
  #mark(about) {
    return `${about}.${++this.#sent}.${MARK}`;
  }

  /** @param {Message} message @param {(why: Reason) => void} refused */
  #post(message, refused) {
    const topic = `${this.#its.topic}/rpc/${this.#its.client()}`;
    this.#its.broker.publish(topic, { v: 1, ...message }, (code) => {
      if (code === NO_SUBSCRIBER) refused({ code: 'no-answer', message: 'The device is not connected to the broker.' });
      else if (code === 0x87 || code === 0x90) refused({ ...DENIED, message: `The broker’s access list must let you write to ${topic}.` });
      else if (code === 0x95) refused({ ...DENIED, message: 'The broker takes no messages of this length.' });
      else if (code >= 0x80) refused({ code: 'no-broker', title: 'The broker does not answer' });
    });
  }
}

/** Of this page, among all of one user. */
const MARK = Math.random().toString(36).slice(2, 8);
