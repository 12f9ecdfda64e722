import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { LONGEST, Malformed, Mqtt, Reader, connect, disconnect, pingreq, puback, publish, reason, subscribe } from '../../../src/web/mqtt.js';

/** Texts stand in quotes, everything else is hexadecimal. */
const bytes = (text) => Uint8Array.from((text.match(/"[^"]*"|\S+/g) ?? []).flatMap((part) => (/^[0-9a-f]{2}$/.test(part) ? [parseInt(part, 16)] : [...new TextEncoder().encode(part.slice(1, -1))])));
const text = (payload) => new TextDecoder().decode(payload);
/** A packet of less than 128 bytes. */
const packet = (first, body = '') => Uint8Array.from([first, bytes(body).length, ...bytes(body)]);

/** What a broker sends. */
const CONNACK = packet(0x20, '00 00 00');
const SUBACK = (code) => packet(0x90, `00 01 00 ${code}`);
const MESSAGE = packet(0x32, '00 03 "a/b" 00 07 00 "hello"');
const PINGRESP = packet(0xd0);

const read = (...chunks) => {
  const reader = new Reader();
  return chunks.flatMap((chunk) => [...reader.feed(chunk)]);
};

describe('what is written', () => {
  test('connect: MQTT 5, a clean start, user and password, the longest packet that is taken', () => {
    assert.deepEqual(connect({ client: 'page-1', user: 'ann', password: 'secret' }),
      packet(0x10, '00 04 "MQTT" 05 c2 00 1e 05 27 00 01 40 00 00 06 "page-1" 00 03 "ann" 00 06 "secret"'));
    assert.equal(connect({ client: 'page-1' })[9], 0x02, 'neither user nor password');
  });

  test('subscribe: what is ours at QoS 1 without retained messages, the others with', () => {
    assert.deepEqual(subscribe(1, { topic: 'a/+' }), bytes('82 09 00 01 00 00 03 "a/+" 00'));
    assert.deepEqual(subscribe(258, { topic: 'a/+', own: true }), bytes('82 09 01 02 00 00 03 "a/+" 21'));
  });

  test('publish: QoS 1 with an identifier, QoS 0 without; it expires', () => {
    assert.deepEqual(publish(7, 'a/b', new TextEncoder().encode('hi')), bytes('32 0f 00 03 "a/b" 00 07 05 02 00 00 00 1e "hi"'));
    assert.deepEqual(publish(0, 'a/b', new TextEncoder().encode('hi')), bytes('30 0d 00 03 "a/b" 05 02 00 00 00 1e "hi"'));
  });

  test('the rest', () => {
    assert.deepEqual(puback(258), bytes('40 02 01 02'));
    assert.deepEqual(pingreq(), bytes('c0 00'));
    assert.deepEqual(disconnect(), bytes('e0 00'));
  });

  test('a packet of any size comes back as it was', () => {
    for (const size of [0, 1, 116, 117, 118, 16_372, 16_373, 65_536]) {
      const [message] = read(publish(9, 'edgecam/front/rpc/page', new Uint8Array(size).fill(0x61)));
      assert.equal(message.payload.length, size);
      assert.deepEqual([message.type, message.topic, message.id], ['publish', 'edgecam/front/rpc/page', 9]);
    }
  });
});

describe('what is read', () => {
  const stream = Buffer.concat([CONNACK, SUBACK('01'), MESSAGE, PINGRESP, publish(0, 'c', new Uint8Array(300)), packet(0x40, '00 05'), packet(0x40, '00 06 10'), packet(0xe0, '8b')]);
  const types = ['connack', 'suback', 'publish', 'pingresp', 'publish', 'puback', 'puback', 'disconnect'];

  test('packets are the same however they are split over frames', () => {
    const whole = read(new Uint8Array(stream));
    assert.deepEqual(whole.map(({ type }) => type), types);
    for (const size of [1, 2, 3, 7, 64, 299]) {
      const chunks = Array.from({ length: Math.ceil(stream.length / size) }, (_, i) => new Uint8Array(stream.subarray(i * size, (i + 1) * size)));
      assert.deepEqual(read(...chunks), whole, `in pieces of ${size}`);
    }
  });

  test('a message has its topic, payload, flags; its properties are read over', () => {
    const all = '01 01 02 00 00 00 1e 03 00 01 "t" 08 00 01 "r" 09 00 01 "c" 0b ff 01 26 00 01 "k" 00 01 "v"';
    const length = bytes(all).length.toString(16).padStart(2, '0');
    const [message] = read(packet(0x33, `00 03 "a/b" 00 07 ${length} ${all} "hello"`));
    assert.deepEqual([message.topic, message.id, message.retained, text(message.payload)], ['a/b', 7, true, 'hello']);
  });

  test('connack tells the broker’s limits', () => {
    const [connack] = read(packet(0x20, '01 00 0f 13 00 0a 21 00 14 24 00 27 00 00 08 00 25 01'));
    assert.deepEqual([connack.code, connack.keepAlive, connack.receiveMaximum, connack.qos, connack.longest], [0, 10, 20, 0, 2048]);
  });

  test('a broker that speaks only 3.1.1 refuses in its own words', () => {
    assert.equal(read(packet(0x20, '00 01'))[0].code, 0x84);
    assert.match(reason(0x84), /does not speak MQTT 5/);
  });

  test('what is cut off is waited for, what is wrong is refused', () => {
    for (let end = 0; end < MESSAGE.length; end++) assert.deepEqual(read(MESSAGE.slice(0, end)), [], `${end} bytes`);
    const wrong = {
      'longer than all that is taken': [0x30, ...[LONGEST + 1].flatMap((size) => [(size & 127) | 128, ((size >> 7) & 127) | 128, size >> 14])],
      'a length of five bytes': [0x30, 0xff, 0xff, 0xff, 0xff, 1],
      'a topic longer than its packet': [0x30, 3, 0, 9, 0x61],
      'a topic that is not UTF-8': [0x30, 4, 0, 1, 0xff, 0],
      'properties longer than their packet': [0x30, 4, 0, 1, 0x61, 9],
      'an unknown property': [0x30, 6, 0, 1, 0x61, 2, 0x7e, 0],
      'QoS 2': [0x34, 7, 0, 1, 0x61, 0, 1, 0, 0x61],
      'what only clients send': [0x10, 0],
      'an empty connack': [0x20, 0],
    };
    for (const [what, sent] of Object.entries(wrong)) assert.throws(() => read(Uint8Array.from(sent)), Malformed, what);
  });

  test('whoever stops reading at one packet finds the next ones where they were', () => {
    const reader = new Reader();
    for (const packet of reader.feed(new Uint8Array(stream))) if (packet.type === 'publish') break;
    assert.deepEqual([...reader.feed(PINGRESP)].map(({ type }) => type), [...types.slice(3), 'pingresp']);
  });

  test('no bytes break it in another way', () => {
    // xorshift: the same bytes in every run.
    let seed = 2463534242;
    const random = () => ((seed ^= seed << 13), (seed ^= seed >>> 17), (seed ^= seed << 5), seed >>> 0);
    for (let i = 0; i < 20_000; i++) {
      const noise = Uint8Array.from({ length: random() % 40 }, () => random() & 255);
      if (noise.length > 1) noise[1] = noise.length - 2;
      try {
        read(noise);
      } catch (error) {
        assert.ok(error instanceof Malformed, `${Buffer.from(noise).toString('hex')}: ${error}`);
      }
    }
  });
});

describe('one connection', () => {
  /** A connection with its broker's end in our hands, and a clock that only moves when told to. */
  function life(filters = [{ topic: 'a/+', own: true }, { topic: 'b' }], handlers = {}) {
    const its = { sent: [], told: [], timers: [] };
    its.socket = { readyState: 1, bufferedAmount: 0, send: (packet) => its.sent.push(...packet), close: () => (its.socket.readyState = 3) };
    const tell = (what) => (...args) => its.told.push([what, ...args]);
    its.mqtt = new Mqtt(its.socket, {
      client: 'page', filters, up: tell('up'), denied: tell('denied'), message: tell('message'), ended: tell('ended'),
      after: (ms, then) => {
        const timer = { ms, then };
        its.timers.push(timer);
        return () => (its.timers = its.timers.filter((other) => other !== timer));
      },
      ...handlers,
    });
    its.gives = (...packets) => packets.forEach((packet) => its.socket.onmessage({ data: Uint8Array.from(packet).buffer }));
    its.takes = () => its.sent.splice(0);
    its.pass = (ms) => {
      const due = its.timers.filter((timer) => timer.ms === ms);
      its.timers = its.timers.filter((timer) => timer.ms !== ms);
      due.forEach(({ then }) => then());
    };
    its.codes = [];
    its.publish = (message = 'hi', published = (code) => its.codes.push(code)) => its.mqtt.publish('a/b', message, published);
    its.socket.onopen();
    return its;
  }
  /** One that is up: all subscribed. */
  function up() {
    const its = life();
    its.gives(CONNACK, SUBACK('01'), PINGRESP, SUBACK('00'), PINGRESP);
    its.takes();
    its.told = [];
    return its;
  }

  test('subscribes to one topic after the other, each when what came with the last one is here', () => {
    const its = life();
    assert.equal(its.takes()[0], 0x10);
    its.gives(CONNACK);
    assert.deepEqual(its.takes(), [...subscribe(1, { topic: 'a/+', own: true })]);
    its.gives(SUBACK('01'));
    assert.deepEqual(its.told, [['up']]);
    assert.deepEqual(its.takes(), [...pingreq()]);
    its.gives(PINGRESP);
    assert.deepEqual(its.takes(), [...subscribe(2, { topic: 'b' })]);
    its.gives(SUBACK('87'), PINGRESP);
    assert.deepEqual(its.told, [['up'], ['denied', 'b', 0x87]]);
  });

  test('a refusal ends it with its reason, and in the broker’s words', () => {
    const its = life();
    its.gives(packet(0x20, '00 86 06 1f 00 03 "bad"'));
    assert.deepEqual(its.told, [['ended', { code: 0x86, reason: 'bad', heard: true }]]);
    assert.match(reason(0x86), /user name or password/);
  });

  test('nobody there is told apart from somebody who left', () => {
    const nobody = life();
    nobody.socket.onclose();
    assert.equal(nobody.told[0][1].heard, false);
    const left = up();
    left.socket.onclose();
    assert.deepEqual(left.told, [['ended', { code: undefined, reason: undefined, heard: true }]]);
    left.socket.onclose();
    assert.equal(left.told.length, 1, 'it ends once');
  });

  test('messages are acknowledged, and what we say is settled by the broker’s word', () => {
    const its = up();
    its.gives(MESSAGE);
    assert.deepEqual(its.told, [['message', 'a/b', 'hello', false]]);
    assert.deepEqual(its.takes(), [...puback(7)]);
    its.publish();
    its.publish();
    // Their identifiers: the ninth byte of packets of 17.
    const [first, second] = [its.sent[8], its.sent[8 + 17]];
    its.gives([0x40, 3, 0, second, 0x87], [0x40, 2, 0, first]);
    assert.deepEqual(its.codes, [0x87, 0]);
  });

  test('no more is sent than the broker takes', () => {
    const its = life();
    its.publish();
    assert.deepEqual(its.codes, [0x97], 'not before it is up');
    its.gives(packet(0x20, '00 00 08 21 00 02 27 00 00 00 28'), SUBACK('01'));
    its.takes();
    its.publish('a message that is longer than the forty bytes which this broker takes');
    for (let i = 0; i < 3; i++) its.publish();
    const sent = its.takes();
    assert.equal(sent.length, 2 * 17, 'the third waits');
    its.gives([0x40, 2, 0, sent[8]]);
    assert.equal(its.takes().length, 17, 'until one is acknowledged');
    for (let i = 0; i < 257; i++) its.publish();
    assert.deepEqual(its.codes, [0x97, 0x95, 0, 0x97], 'not all can wait');
    const slow = up();
    slow.socket.bufferedAmount = 1e6;
    slow.publish();
    assert.deepEqual(slow.codes, [0x97], 'the socket is behind');
  });

  test('where QoS 1 is not to be had, QoS 0 is used', () => {
    const its = life();
    its.gives(packet(0x20, '00 00 02 24 00'), SUBACK('00'));
    its.takes();
    its.publish();
    assert.equal(its.sent[0], 0x30);
    assert.deepEqual(its.codes, [0]);
  });

  test('silence is asked about and then counts as the end', () => {
    const its = up();
    its.pass(24_000);
    assert.deepEqual(its.takes(), [...pingreq()]);
    its.gives(PINGRESP);
    its.pass(5_000);
    assert.deepEqual(its.told, []);
    its.pass(24_000);
    its.pass(5_000);
    assert.equal(its.told[0][0], 'ended');
  });

  test('what is not MQTT ends it; what comes after the end is not heard', () => {
    const its = up();
    its.gives([0xf0, 0], MESSAGE);
    assert.deepEqual(its.told.map(([what]) => what), ['ended']);
    const words = up();
    words.socket.onmessage({ data: 'hello' });
    assert.equal(words.told[0][1].code, 0x81);
  });

  test('what others fail at is told to the browser, and disturbs neither the connection nor what came with it', () => {
    for (const fails of ['up', 'denied', 'message', 'published']) {
      const mine = () => {
        throw new RangeError('not mine');
      };
      const its = life([{ topic: 'a' }], { [fails]: mine });
      its.gives(CONNACK, SUBACK('87'), PINGRESP);
      its.publish('hi', fails === 'published' ? mine : undefined);
      const { [its.sent.length - 17 + 8]: id } = its.sent;
      its.takes();
      // All in one frame, and half of the last in the next.
      const frame = Buffer.concat([MESSAGE, packet(0x40, `00 0${id}`), MESSAGE, MESSAGE]);
      its.gives(frame.subarray(0, -4), frame.subarray(-4));
      assert.deepEqual(its.takes(), [...puback(7), ...puback(7), ...puback(7)], fails);
      assert.equal(its.told.filter(([what]) => what === 'message').length, fails === 'message' ? 0 : 3);
      assert.deepEqual(its.codes, fails === 'published' ? [] : [0]);
      assert.equal(its.socket.readyState, 1);
      assert.throws(() => its.pass(0), RangeError);
    }
  });

  test('closing says goodbye and tells nobody', () => {
    const its = up();
    its.mqtt.close();
    its.socket.onclose();
    assert.deepEqual(its.takes(), [...disconnect()]);
    assert.deepEqual(its.told, []);
  });
});
