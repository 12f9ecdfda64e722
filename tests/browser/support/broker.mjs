import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Mqtt, publish } from '../../../src/web/mqtt.js';
import { freePort } from './daemon.mjs';
import { until } from './until.mjs';

const PROGRAM = process.env.MOSQUITTO ?? '/usr/sbin/mosquitto';

/** mosquitto on ports of its own: one for devices, one for pages. */
export class MqttBroker {
  #folder;
  #child;
  #log = [];

  /** @param {string} [more] lines of its configuration; HERE is its folder @param {Record<string, string>} [files] what it finds there */
  static async start(t, more = 'allow_anonymous true', files = {}) {
    const broker = new MqttBroker();
    broker.#folder = await mkdtemp(join(tmpdir(), 'edgecam-broker-'));
    t.after(() => broker.#end());
    [broker.port, broker.pages] = [await freePort(), await freePort()];
    for (const [name, text] of Object.entries(files)) await writeFile(join(broker.#folder, name), text, { mode: 0o600 });
    // As root it would become another user, who may not read the folder.
    const conf = `user root\nlog_type all\nlistener ${broker.port} 127.0.0.1\nlistener ${broker.pages} 127.0.0.1\nprotocol websockets\n${more}\n`;
    await writeFile(join(broker.#folder, 'mosquitto.conf'), conf.replaceAll('HERE', broker.#folder));
    await broker.run();
    return broker;
  }

  async run() {
    this.#child = spawn(PROGRAM, ['-c', join(this.#folder, 'mosquitto.conf')], { stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [this.#child.stdout, this.#child.stderr]) stream.on('data', (text) => this.#log.push(text));
    await until('the broker answers', async () => {
      if (this.#child.exitCode !== null) throw new Error(`the broker ended:\n${this.log}`);
      return open(this.port);
    });
  }

  /** What pages connect to. */
  get url() {
    return `ws://127.0.0.1:${this.pages}`;
  }

  /** A file in its folder. */
  file(name) {
    return join(this.#folder, name);
  }

  get log() {
    return this.#log.join('');
  }

  async kill() {
    const gone = new Promise((ended) => this.#child.once('exit', ended));
    this.#child.kill('SIGKILL');
    await gone;
  }

  /** A connection for devices, or for anybody who is no browser. */
  connect(its = {}) {
    return new Connection(this.port, its);
  }

  /** Publishes retained messages. @param {Record<string, object | string>} messages by topic */
  async retain(messages) {
    const connection = this.connect();
    await connection.up;
    for (const [topic, message] of Object.entries(messages)) connection.publish(topic, message, true);
    await connection.idle();
    connection.close();
  }

  async #end() {
    if (this.#child?.exitCode === null && this.#child.signalCode === null) await this.kill();
    if (process.env.EDGECAM_LOG) console.error(this.log);
    await rm(this.#folder, { recursive: true, force: true });
  }
}

const open = (port) =>
  new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1', () => (socket.destroy(), resolve(true))).on('error', reject);
  });

/** The page's own client over TCP, with what only devices do. */
export class Connection {
  heard = [];
  #socket;
  #mqtt;

  constructor(port, { filters = [{ topic: 'nothing/of/interest' }], message = () => {}, ...its } = {}) {
    this.#socket = tcp(port);
    this.up = new Promise((resolve, reject) => {
      const after = (ms, then) => {
        const timer = setTimeout(then, ms);
        return () => clearTimeout(timer);
      };
      const hear = (topic, text, retained) => {
        this.heard.push({ topic, text, retained });
        message(topic, text, retained);
      };
      this.ended = new Promise((ended) => {
        this.#mqtt = new Mqtt(this.#socket, { client: `test-${Math.random().toString(36).slice(2)}`, filters, after, message: hear, up: resolve, ended: (why) => (ended(why), reject(Object.assign(new Error('ended'), why))), ...its });
      });
    });
    this.up.catch(() => {});
  }

  /** @returns {Promise<number>} the broker's code */
  say(topic, text) {
    return new Promise((said) => this.#mqtt.publish(topic, text, said));
  }

  /** At QoS 0, retained or not. */
  publish(topic, message, retained = false) {
    const packet = publish(0, topic, new TextEncoder().encode(typeof message === 'string' ? message : JSON.stringify(message)));
    // A retained message that expires is one that a page does not see.
    const forEver = packet.slice();
    if (retained) forEver[0] |= 1;
    this.#socket.send(retained ? withoutExpiry(forEver) : packet);
  }

  async idle() {
    await this.say('nothing/of/interest', '');
  }

  close() {
    this.#mqtt.close();
  }
}

/** @param {Uint8Array} packet of QoS 0 with one property of five bytes */
function withoutExpiry(packet) {
  let at = 1;
  while (packet[at] & 128) at++;
  const topic = at + 1;
  const properties = topic + 2 + packet[topic] * 256 + packet[topic + 1];
  const body = Buffer.concat([packet.subarray(topic, properties), Buffer.from([0]), packet.subarray(properties + 6)]);
  const length = [];
  for (let size = body.length; ; size >>= 7) {
    length.push(size > 127 ? (size & 127) | 128 : size);
    if (size <= 127) break;
  }
  return Buffer.concat([Buffer.from([packet[0], ...length]), body]);
}

/** What the client uses of a WebSocket, over TCP. */
function tcp(port) {
  const socket = connect(port, '127.0.0.1');
  const its = {
    readyState: 0,
    bufferedAmount: 0,
    send: (bytes) => socket.write(bytes),
    close: () => socket.end(),
    onopen: () => {},
    onmessage: () => {},
    onclose: () => {},
  };
  socket.on('connect', () => ((its.readyState = 1), its.onopen()));
  socket.on('data', (data) => its.onmessage({ data: data.buffer.slice(data.byteOffset, data.byteOffset + data.length) }));
  socket.on('close', () => ((its.readyState = 3), its.onclose()));
  socket.on('error', () => {});
  return its;
}
