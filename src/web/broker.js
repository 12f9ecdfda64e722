// @ts-check
/** The broker, shared by all devices of the page: connected for as long as the page is there, and always back. */

import { delay } from './connection.js';
import { Mqtt, reason } from './mqtt.js';

/** @import { BrokerSettings, BrokerState, Over, Published } from './types.d.ts' */

/** Wrong password, not authorised, another way to log in: asking again with the same words does not help. */
const ASK = [0x86, 0x87, 0x8c];
/** A connection that stood this long was a good one. */
const STOOD_MS = 5_000;

export class Broker {
  /** @type {BrokerState} */
  state = { is: 'connecting', title: '' };
  #its;
  /** @type {Mqtt | null} */
  #mqtt = null;
  #failures = 0;
  #since = 0;
  #callOff = () => {};

  /** @param {BrokerSettings} its */
  constructor(its) {
    this.#its = its;
    this.host = new URL(its.url).host;
  }

  /** Connects, or connects anew: with the user and password of now. */
  start() {
    this.#callOff();
    this.#mqtt?.close();
    this.#change({ is: 'connecting', title: `Connecting to ${this.host}` });
    const { url, open, client, filters, after, message } = this.#its;
    try {
      this.#mqtt = new Mqtt(open(url), { client, ...this.#its.who(), filters: filters(), after, message, up: () => this.#up(), denied: (topic, code) => this.#denied(topic, code), ended: (why) => this.#ended(why) });
    } catch {
      // Mixed content: neither time nor a password helps.
      this.#change({ is: 'barred', title: `This page came by https, so its broker needs wss, not ${url}`, detail: 'Print it anew with a wss address.' });
    }
  }

  /** The network is back, or the page. */
  hurry() {
    if (this.state.is === 'waiting') this.start();
    else this.check();
  }

  check() {
    this.#mqtt?.check();
  }

  close() {
    this.#callOff();
    this.#mqtt?.close();
  }

  /** @param {string} topic @param {object} message @param {Published} published */
  publish(topic, message, published) {
    if (this.#mqtt && this.state.is === 'up') this.#mqtt.publish(topic, JSON.stringify(message), published);
    else published(0x88);
  }

  #up() {
    this.#since = this.#its.now();
    this.#change({ is: 'up', title: '' });
  }

  /** @param {string} topic @param {number} code */
  #denied(topic, code) {
    this.#change({ is: 'up', title: `The broker does not let you read ${topic}: ${reason(code)}`, detail: 'Its access list must allow it to this user.' });
  }

  /** @param {Over & { heard: boolean }} why */
  #ended({ code = 0, reason: words, heard }) {
    const stood = this.state.is === 'up' && this.#its.now() - this.#since >= STOOD_MS;
    if (ASK.includes(code)) return this.#change({ is: 'refused', title: `The broker ${this.host} refuses: ${reason(code)}`, detail: words });
    this.#failures = (stood ? 0 : this.#failures) + 1;
    const wait = delay(this.#failures, Math.random());
    this.#callOff = this.#its.after(wait, () => this.start());
    const until = this.#its.now() + wait;
    if (code) this.#change({ is: 'waiting', until, title: `The broker ${this.host} ended the connection: ${reason(code)}`, detail: words });
    else if (heard) this.#change({ is: 'waiting', until, title: `The connection to the broker ${this.host} was lost` });
    else {
      const detail = 'Is the address right, is its WebSocket listener on, and does this browser trust its certificate?';
      this.#change({ is: 'waiting', until, title: `The broker ${this.host} does not answer`, detail });
    }
  }

  /** @param {BrokerState} state */
  #change(state) {
    this.state = state;
    this.#its.changed(state);
  }
}
