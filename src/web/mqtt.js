// @ts-check
/**
 * As much of MQTT 5 as a viewer needs, over one WebSocket: the codec, and the life of one connection. Section numbers are those of
 * the OASIS standard. `broker.js` connects anew, and knows what the messages are for.
 */

/** @import { Filter, MqttSettings, MqttSocket, Over, Packet, Published } from './types.d.ts' */

/** Inbound; the device's messages are at most 64 KiB, a topic and properties come on top. */
export const LONGEST = 80 * 1024;
/** What a broker may leave unacknowledged before the next has to wait, and how many may wait. */
const IN_FLIGHT = 64;
const WAITING = 256;
/** Bytes the socket may hold back before no more is sent. */
const BACKLOG = 512 * 1024;
const KEEP_ALIVE_S = 30;
const OPEN_MS = 10_000;
const ANSWER_MS = 5_000;
const EXPIRY_S = 30;

const [CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT] = [1, 2, 3, 4, 8, 9, 12, 13, 14];

/** What is not MQTT, or is too much of it. */
export class Malformed extends Error {}

const utf8 = new TextEncoder();
const strict = new TextDecoder('utf-8', { fatal: true });
const lenient = new TextDecoder();

/* Writing */

/** @param {...(number | ArrayLike<number>)} parts */
function bytes(...parts) {
  const lists = parts.map((part) => (typeof part === 'number' ? [part] : part));
  const all = new Uint8Array(lists.reduce((size, list) => size + list.length, 0));
  lists.reduce((at, list) => (all.set(list, at), at + list.length), 0);
  return all;
}

/** @param {number} value */
const two = (value) => [value >> 8, value & 255];
/** @param {number} value */
const four = (value) => [value >>> 24, (value >> 16) & 255, (value >> 8) & 255, value & 255];

/** 1.5.5 @param {number} value */
function varint(value) {
  const out = [];
  do {
    out.push((value & 127) | (value > 127 ? 128 : 0));
    value >>= 7;
  } while (value);
  return out;
}

/** 1.5.4 @param {string} value */
function text(value) {
  const encoded = utf8.encode(value);
  if (encoded.length > 65_535) throw new Malformed('a text is longer than 65535 bytes');
  return bytes(two(encoded.length), encoded);
}

/** @param {number} type @param {number} flags @param {Uint8Array} body */
function packet(type, flags, body) {
  return bytes((type << 4) | flags, varint(body.length), body);
}

/** 3.1: a clean start, no session left behind. @param {{ client: string, user?: string, password?: string }} who */
export function connect({ client, user, password }) {
  // Maximum Packet Size; no Session Expiry, no Topic Alias: both are zero by default.
  const properties = bytes(0x27, four(LONGEST));
  const flags = 0x02 | (user ? 0x80 : 0) | (password ? 0x40 : 0);
  const head = bytes(text('MQTT'), 5, flags, two(KEEP_ALIVE_S), varint(properties.length), properties);
  return packet(CONNECT, 0, bytes(head, text(client), user ? text(user) : [], password ? text(password) : []));
}

/**
 * 3.8: retained messages first and QoS 0, or, for what is said to us alone, no retained ones and QoS 1.
 * @param {number} id @param {Filter} filter
 */
export function subscribe(id, { topic, own }) {
  return packet(SUBSCRIBE, 2, bytes(two(id), 0, text(topic), own ? 0x21 : 0));
}

/** 3.3: id 0 is QoS 0. @param {number} id @param {string} topic @param {Uint8Array} payload */
export function publish(id, topic, payload) {
  const properties = bytes(0x02, four(EXPIRY_S));
  return packet(PUBLISH, id ? 2 : 0, bytes(text(topic), id ? two(id) : [], varint(properties.length), properties, payload));
}

/** @param {number} id */
export const puback = (id) => packet(PUBACK, 0, bytes(two(id)));
export const pingreq = () => packet(PINGREQ, 0, bytes());
export const disconnect = () => packet(DISCONNECT, 0, bytes());

/* Reading */

/** Cuts what comes into packets, however it was split or merged on the way. */
export class Reader {
  /** @type {Uint8Array} */
  #rest = new Uint8Array();

  /**
   * @param {Uint8Array} chunk
   * @returns {Generator<Packet>} throws `Malformed`
   */
  *feed(chunk) {
    this.#rest = this.#rest.length ? bytes(this.#rest, chunk) : chunk;
    for (;;) {
      const from = this.#rest;
      const head = length(from);
      if (!head || from.length < head.start + head.size) return;
      // Before it is given away: whoever takes it may never come back.
      this.#rest = from.subarray(head.start + head.size);
      yield decode(from[0] >> 4, from[0] & 15, from.subarray(head.start, head.start + head.size));
    }
  }
}

/** The fixed header (2.1), null while it is not complete. @param {Uint8Array} from */
function length(from) {
  let size = 0;
  for (let i = 0; i < 4; i++) {
    const byte = from[1 + i];
    if (byte === undefined) return null;
    size |= (byte & 127) << (7 * i);
    if (byte < 128) {
      if (size > LONGEST) throw new Malformed(`a packet of ${size} bytes is longer than ${LONGEST}`);
      return { start: 2 + i, size };
    }
  }
  throw new Malformed('the length of a packet has more than four bytes');
}

/** @type {(type: number, flags: number, body: Uint8Array) => Packet} */
function decode(type, flags, body) {
  const from = new Cursor(body);
  switch (type) {
    case CONNACK: {
      from.one();
      const code = from.one();
      // A broker of 3.1.1 refuses with a code of its own and without properties.
      return { type: 'connack', code: code === 1 ? 0x84 : code, ...from.properties() };
    }
    case PUBLISH: {
      const [qos, retained] = [(flags >> 1) & 3, !!(flags & 1)];
      if (qos > 1) throw new Malformed('a message came with more than QoS 1');
      const topic = from.text();
      const id = qos ? from.two() : 0;
      from.properties();
      return { type: 'publish', topic, id, retained, payload: from.rest() };
    }
    case PUBACK:
      return { type: 'puback', id: from.two(), code: from.left ? from.one() : 0 };
    case SUBACK: {
      const id = from.two();
      from.properties();
      return { type: 'suback', id, codes: [...from.rest()] };
    }
    case PINGRESP:
      return { type: 'pingresp' };
    case DISCONNECT:
      return { type: 'disconnect', code: from.left ? from.one() : 0, ...from.properties() };
    default:
      throw new Malformed(`a packet of type ${type} came`);
  }
}

/** How the value of a property is written (2.2.2.2): bytes, or a text, a pair of texts, a varint. @type {Record<number, number | 'text' | 'pair' | 'varint'>} */
const SHAPES = {
  0x01: 1, 0x02: 4, 0x03: 'text', 0x08: 'text', 0x09: 'text', 0x0b: 'varint', 0x11: 4, 0x12: 'text', 0x13: 2, 0x15: 'text', 0x16: 'text', 0x17: 1, 0x18: 4,
  0x19: 1, 0x1a: 'text', 0x1c: 'text', 0x1f: 'text', 0x21: 2, 0x22: 2, 0x23: 2, 0x24: 1, 0x25: 1, 0x26: 'pair', 0x27: 4, 0x28: 1, 0x29: 1, 0x2a: 1,
};

class Cursor {
  #from;
  #at = 0;

  /** @param {Uint8Array} from */
  constructor(from) {
    this.#from = from;
  }

  get left() {
    return this.#from.length - this.#at;
  }

  /** @param {number} count */
  take(count) {
    if (count > this.left) throw new Malformed('a packet ends too early');
    return this.#from.subarray(this.#at, (this.#at += count));
  }

  /** @param {number} count */
  number(count) {
    return this.take(count).reduce((value, byte) => value * 256 + byte, 0);
  }

  one() {
    return this.number(1);
  }

  two() {
    return this.number(2);
  }

  rest() {
    return this.take(this.left);
  }

  text() {
    try {
      return strict.decode(this.take(this.two()));
    } catch (error) {
      throw error instanceof Malformed ? error : new Malformed('a text is not UTF-8');
    }
  }

  varint() {
    for (let value = 0, shift = 0; shift < 28; shift += 7) {
      const byte = this.one();
      value |= (byte & 127) << shift;
      if (byte < 128) return value;
    }
    throw new Malformed('a number has more than four bytes');
  }

  /** Those that say what the broker wants; the others are read over. A packet may end before them. */
  properties() {
    if (!this.left) return {};
    const its = new Cursor(this.take(this.varint()));
    /** @type {Record<number, number | string>} */
    const found = {};
    while (its.left) {
      const name = its.varint();
      const shape = SHAPES[name];
      if (shape === undefined) throw new Malformed(`a property ${name} came`);
      if (typeof shape === 'number') found[name] = its.number(shape);
      else if (shape === 'varint') its.varint();
      else found[name] = its.text();
      if (shape === 'pair') its.text();
    }
    const [keepAlive, receiveMaximum, qos, longest, reason] = [0x13, 0x21, 0x24, 0x27, 0x1f].map((name) => found[name]);
    return /** @type {{ keepAlive?: number, receiveMaximum?: number, qos?: number, longest?: number, reason?: string }} */ ({ keepAlive, receiveMaximum, qos, longest, reason });
  }
}

/* One connection */

/** From the first byte to the last. Tells what happens and decides nothing; ends exactly once, unless it is closed. */
export class Mqtt {
  #its;
  #socket;
  #reader = new Reader();
  /** What is told when a message of ours is acknowledged. @type {Map<number, Published>} */
  #unacknowledged = new Map();
  /** @type {(() => void)[]} */
  #waiting = [];
  #packet = 0;
  /** Subscribed so far. */
  #filter = 0;
  #heard = 0;
  #up = false;
  #over = false;
  #limits = { longest: Infinity, qos: 1, inFlight: IN_FLIGHT };
  #callOff = () => {};

  /**
   * @param {MqttSocket} socket @param {MqttSettings} its
   *   `up` when the first subscription is answered; `denied` for each that is refused; `ended` when it is over
   */
  constructor(socket, its) {
    this.#socket = socket;
    this.#its = its;
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => this.#send(connect(its));
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = () => this.#end({});
    this.#callOff = its.after(OPEN_MS, () => this.#end({}));
  }

  /**
   * @param {string} topic @param {string} message
   * @param {Published} published what the broker said to it: 0 or a reason code
   */
  publish(topic, message, published) {
    if (!this.#up || this.#waiting.length >= WAITING || this.#socket.bufferedAmount > BACKLOG) return published(0x97);
    if (this.#unacknowledged.size >= this.#limits.inFlight) return void this.#waiting.push(() => this.publish(topic, message, published));
    const id = this.#limits.qos ? this.#next() : 0;
    const sent = publish(id, topic, utf8.encode(message));
    if (sent.length > this.#limits.longest) return published(0x95);
    if (id) this.#unacknowledged.set(id, published);
    this.#send(sent);
    if (!id) published(0);
  }

  /** Asks whether the broker is still there. */
  check() {
    const heard = this.#heard;
    this.#send(pingreq());
    this.#its.after(ANSWER_MS, () => heard === this.#heard && this.#end({}));
  }

  close() {
    if (this.#up) this.#send(disconnect());
    this.#over = true;
    this.#leave();
  }

  /** @param {unknown} data */
  #receive(data) {
    this.#heard++;
    try {
      if (!(data instanceof ArrayBuffer)) throw new Malformed('a text came where bytes were due');
      for (const packet of this.#reader.feed(new Uint8Array(data))) {
        if (this.#over) return;
        this.#act(packet);
      }
    } catch (error) {
      if (!(error instanceof Malformed)) throw error;
      this.#end({ code: 0x81, reason: error.message });
    }
  }

  /** @param {Packet} packet */
  #act(packet) {
    switch (packet.type) {
      case 'connack':
        if (packet.code) return this.#end(packet);
        this.#limits = { longest: packet.longest ?? Infinity, qos: packet.qos ?? 1, inFlight: Math.min(packet.receiveMaximum ?? IN_FLIGHT, IN_FLIGHT) };
        this.#beat(1000 * Math.min(packet.keepAlive || KEEP_ALIVE_S, KEEP_ALIVE_S));
        return this.#subscribe();
      case 'suback': {
        const first = !this.#up;
        this.#up = true;
        if (first) this.#tell(() => this.#its.up());
        const [code = 0x80] = packet.codes;
        if (code >= 0x80) this.#tell(() => this.#its.denied(this.#its.filters[this.#filter - 1].topic, code));
        return this.#send(pingreq());
      }
      case 'pingresp':
        return this.#subscribe();
      case 'publish':
        if (packet.id) this.#send(puback(packet.id));
        return this.#tell(() => this.#its.message(packet.topic, lenient.decode(packet.payload), packet.retained));
      case 'puback': {
        const published = this.#unacknowledged.get(packet.id);
        this.#unacknowledged.delete(packet.id);
        this.#tell(() => published?.(packet.code));
        return this.#tell(() => this.#waiting.shift()?.());
      }
      case 'disconnect':
        return this.#end(packet);
    }
  }

  /** What others make of it harms neither the connection nor what came with it. @param {() => void} what */
  #tell(what) {
    try {
      what();
    } catch (error) {
      this.#its.after(0, () => {
        throw error;
      });
    }
  }

  /**
   * One filter after the other, each when what the last one brought has come: a broker keeps only so many messages for a client
   * (mosquitto 1000) and drops the rest without a word.
   */
  #subscribe() {
    const filter = this.#its.filters[this.#filter];
    if (!filter) return;
    this.#filter++;
    this.#send(subscribe(this.#next(), filter));
  }

  /** A ping before the broker counts the connection as dead; nothing heard since the last one means that it is. @param {number} every */
  #beat(every) {
    this.#callOff();
    this.#callOff = this.#its.after(every * 0.8, () => {
      this.check();
      this.#beat(every);
    });
  }

  #next() {
    do this.#packet = (this.#packet % 65_535) + 1;
    while (this.#unacknowledged.has(this.#packet));
    return this.#packet;
  }

  /** @param {Uint8Array<ArrayBuffer>} packet */
  #send(packet) {
    if (this.#socket.readyState === 1) this.#socket.send(packet);
  }

  /** @param {Over} why */
  #end(why) {
    if (this.#over) return;
    this.#over = true;
    this.#leave();
    this.#its.ended({ code: why.code, reason: why.reason, heard: this.#heard > 0 });
  }

  #leave() {
    this.#callOff();
    this.#up = false;
    this.#socket.close();
  }
}

/** What a broker's refusal means, and what helps. @param {number} code */
export function reason(code) {
  return REASONS[code] ?? `it gives reason ${code} (0x${code.toString(16)})`;
}

/** 2.4 @type {Record<number, string>} */
const REASONS = {
  0x81: 'it sent what is not MQTT 5',
  0x82: 'it saw an error in the protocol',
  0x84: 'it does not speak MQTT 5; mosquitto does since 1.6',
  0x85: 'it does not take the client’s name',
  0x86: 'user name or password is wrong',
  0x87: 'this user is not authorised',
  0x88: 'it is not available just now',
  0x89: 'it is busy just now',
  0x8a: 'this client is banned',
  0x8b: 'it is shutting down',
  0x8c: 'it wants another way to log in',
  0x8d: 'it heard nothing for too long',
  0x8e: 'somebody else came with the same client name',
  0x8f: 'it does not take the topic filter',
  0x90: 'it does not take the topic’s name',
  0x93: 'too much came at once',
  0x95: 'the message is longer than it takes',
  0x96: 'messages came too fast',
  0x97: 'its quota is used up',
  0x98: 'its administrator ended the connection',
  0x9c: 'another server is to be used',
  0x9d: 'the server has moved',
  0x9f: 'connections came too fast',
  0xa2: 'it does not allow wildcards in topics',
};
