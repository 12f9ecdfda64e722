import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Broker } from '../../../src/web/broker.js';

/** A broker whose answers are ours, and a clock that only moves when told to. */
function life(its = {}) {
  const life = { sockets: [], states: [], timers: [], now: 0, who: {} };
  life.broker = new Broker({
    url: 'wss://broker.example.org:8884/mqtt', client: 'page', filters: () => [{ topic: 'a' }], who: () => life.who, now: () => life.now, message: () => {},
    changed: (state) => life.states.push(state),
    open: () => {
      const socket = { readyState: 1, bufferedAmount: 0, send: (packet) => (socket.sent = packet), close: () => (socket.readyState = 3) };
      life.sockets.push(socket);
      return socket;
    },
    after: (ms, then) => {
      const timer = { ms, then };
      life.timers.push(timer);
      return () => (life.timers = life.timers.filter((other) => other !== timer));
    },
    ...its,
  });
  life.gives = (...packets) => packets.forEach((packet) => life.sockets.at(-1).onmessage({ data: Uint8Array.from(packet).buffer }));
  life.up = () => life.gives([0x20, 3, 0, 0, 0], [0x90, 4, 0, 1, 0, 0]);
  /** Until it tries again; gives how long that took. */
  life.wait = () => {
    const { ms, then } = life.timers.at(-1);
    life.timers = [];
    life.now += ms;
    then();
    return ms;
  };
  life.broker.start();
  return life;
}

test('it is always back, later and later, and soon again after a good time', () => {
  const it = life();
  const waits = Array.from({ length: 8 }, () => {
    it.sockets.at(-1).onclose();
    assert.equal(it.broker.state.is, 'waiting');
    return it.wait();
  });
  assert.ok(waits[0] < 1_000 && waits[7] > 10_000 && waits[7] <= 15_000, `${waits}`);
  it.up();
  it.now += 60_000;
  it.sockets.at(-1).onclose();
  assert.ok(it.wait() < 1_000);
});

test('what is wrong is said with what helps', () => {
  const silent = life();
  silent.sockets[0].onclose();
  assert.match(silent.broker.state.title, /broker\.example\.org:8884 does not answer/);
  assert.match(silent.broker.state.detail, /WebSocket listener on/);
  const old = life();
  old.gives([0x20, 2, 0, 1]);
  assert.match(old.broker.state.title, /does not speak MQTT 5/);
  assert.equal(old.broker.state.is, 'waiting');
  const lost = life();
  lost.up();
  lost.sockets[0].onclose();
  assert.match(lost.broker.state.title, /was lost/);
  const insecure = life({ open: () => { throw new DOMException('insecure', 'SecurityError'); } });
  assert.equal(insecure.broker.state.is, 'barred', 'no password helps');
  assert.match(insecure.broker.state.title, /came by https, so its broker needs wss/);
});

test('a refused user is asked for, not tried again', () => {
  for (const code of [0x86, 0x87]) {
    const it = life();
    it.gives([0x20, 3, 0, code, 0]);
    assert.equal(it.broker.state.is, 'refused');
    assert.equal(it.timers.length, 0);
    it.who = { user: 'ann', password: 'secret' };
    it.broker.start();
    it.sockets.at(-1).onopen();
    assert.match(Buffer.from(it.sockets.at(-1).sent).toString(), /ann.*secret/s);
    it.up();
    assert.equal(it.broker.state.is, 'up');
  }
});

test('a refused subscription names its topic', () => {
  const it = life();
  it.gives([0x20, 3, 0, 0, 0], [0x90, 4, 0, 1, 0, 0x87]);
  assert.match(it.broker.state.title, /let you read a: .*not authorised/);
});

test('who comes back does not wait', () => {
  const it = life();
  it.sockets[0].onclose();
  it.broker.hurry();
  assert.equal(it.sockets.length, 2);
  it.up();
  it.broker.hurry();
  assert.equal(it.sockets.length, 2, 'a connection that stands is only asked');
});

test('nothing is said to a broker that is not there', () => {
  const it = life();
  const codes = [];
  it.broker.publish('a', {}, (code) => codes.push(code));
  assert.deepEqual(codes, [0x88]);
});
