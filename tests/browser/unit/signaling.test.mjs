import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Signaling } from '../../../src/web/signaling.js';
import { HOSTILE } from '../support/hostile.mjs';

/** A device at the other end of a socket that has no network in it, and a clock that only moves when told to. */
class Device {
  sockets = [];
  timers = [];
  token = '';

  signaling = new Signaling({
    url: 'ws://camera/ws',
    token: () => this.token,
    open: (url) => {
      const socket = { url, readyState: 0, sent: [], send: (text) => socket.sent.push(JSON.parse(text)), close: (code) => Object.assign(socket, { readyState: 3, code }) };
      this.sockets.push(socket);
      return socket;
    },
    after: (ms, then) => {
      const timer = { ms, then };
      this.timers.push(timer);
      return () => (this.timers = this.timers.filter((other) => other !== timer));
    },
  });

  get socket() {
    return this.sockets.at(-1);
  }

  open() {
    this.socket.readyState = 1;
    this.socket.onopen();
  }

  say(message) {
    this.socket.onmessage({ data: typeof message === 'string' ? message : JSON.stringify({ v: 1, ...message }) });
  }

  /** Fires the timers of this length. */
  pass(ms) {
    const due = this.timers.filter((timer) => timer.ms === ms);
    this.timers = this.timers.filter((timer) => timer.ms !== ms);
    due.forEach(({ then }) => then());
  }

  async welcome(more = {}) {
    const welcome = this.signaling.welcome();
    this.open();
    this.say({ type: 'welcome', id: 'hello', ice_servers: [], ...more });
    return welcome;
  }

  /** A session that notes what it is told. */
  join(name) {
    const heard = [];
    this.signaling.join(name, (message) => heard.push(message));
    return heard;
  }

  sent(type) {
    return this.socket.sent.filter((message) => message.type === type);
  }
}

test('one socket is opened for all who ask, and it says hello first, with the token of then', async () => {
  const device = new Device();
  device.token = 'secret';
  const both = [device.signaling.welcome(), device.signaling.welcome()];
  device.open();
  assert.deepEqual(device.socket.sent, [{ v: 1, type: 'hello', id: 'hello', token: 'secret' }]);
  device.say({ type: 'welcome', id: 'hello', ice_servers: [{ urls: 'turn:here' }] });
  for (const welcome of await Promise.all(both)) assert.deepEqual(welcome.ice_servers, [{ urls: 'turn:here' }]);
  assert.equal(device.sockets.length, 1);
});

test('no token is sent where there is none', () => {
  const device = new Device();
  device.signaling.welcome();
  device.open();
  assert.ok(!('token' in device.socket.sent[0]));
});

test('messages reach the session they are for, also errors that name only the message they answer', async () => {
  const device = new Device();
  await device.welcome();
  const [front, garden] = [device.join('s1'), device.join('s2')];
  device.signaling.send('s1', 'offer', { camera: 'front' });
  const [{ id }] = device.sent('offer');
  device.signaling.send('s2', 'offer', { camera: 'garden' });
  device.say({ type: 'answer', session: 's2', id: device.sent('offer')[1].id, description: {} });
  device.say({ type: 'error', id, code: 'too-long', message: 'too long' });
  assert.deepEqual(front.map(({ type }) => type), ['error']);
  assert.deepEqual(garden.map(({ type }) => type), ['answer']);
});

test('a refused hello gives the reason, and the next attempt a new socket', async () => {
  const device = new Device();
  const refused = device.signaling.welcome();
  device.open();
  device.say({ type: 'error', id: 'hello', code: 'token-expired', message: 'the token has expired', retry_after_ms: 500 });
  await assert.rejects(refused, (why) => why.code === 'token-expired' && why.retryAfter === 500);
  await device.welcome();
  assert.equal(device.sockets.length, 2);
});

test('a device that is not there is unreachable', async () => {
  const device = new Device();
  const welcome = device.signaling.welcome();
  device.socket.onclose();
  await assert.rejects(welcome, { code: 'unreachable' });
});

test('a device that takes the socket and says nothing is unreachable, too', async () => {
  const device = new Device();
  const welcome = device.signaling.welcome();
  device.open();
  device.pass(8_000);
  await assert.rejects(welcome, { code: 'unreachable' });
});

test('when the socket closes, every session hears it once', async () => {
  const device = new Device();
  await device.welcome();
  const heard = [device.join('s1'), device.join('s2')];
  device.socket.onclose();
  device.socket.onclose();
  for (const session of heard) assert.deepEqual(session, [{ type: 'closed' }]);
});

test('who leaves says bye; whoever was told bye does not answer it', async () => {
  const device = new Device();
  await device.welcome();
  device.join('s1');
  device.join('s2');
  device.signaling.leave('s1');
  device.say({ type: 'bye', session: 's2', reason: 'shutdown' });
  device.signaling.leave('s2');
  device.signaling.leave('never-there');
  assert.deepEqual(device.sent('bye').map(({ session }) => session), ['s1']);
});

test('a socket that does not answer counts as closed', async () => {
  const device = new Device();
  await device.welcome();
  const heard = device.join('s1');
  device.pass(15_000);
  const [{ id }] = device.sent('ping');
  device.say({ type: 'pong', id });
  device.pass(3_000);
  assert.deepEqual(heard, [], 'it answered in time');
  device.pass(15_000);
  device.pass(3_000);
  assert.deepEqual(heard, [{ type: 'closed' }]);
});

describe('a socket that is lost', () => {
  test('is replaced at once, and the sessions go on in the new network', async () => {
    const device = new Device();
    await device.welcome({ resume: 'secret', resumed: false });
    const heard = [device.join('s1'), device.join('s2')];
    device.socket.onclose();
    device.pass(0);
    device.open();
    assert.equal(device.socket.sent[0].resume, 'secret');
    device.say({ type: 'welcome', id: 'hello', resume: 'the next secret', resumed: true });
    for (const session of heard) assert.deepEqual(session, [{ type: 'resumed' }]);
    assert.equal(device.sockets.length, 2);
    device.socket.onclose();
    device.pass(0);
    device.open();
    assert.equal(device.socket.sent[0].resume, 'the next secret', 'each works once');
  });

  test('is replaced for as long as a session is there, soon and then every two seconds', async () => {
    const device = new Device();
    await device.welcome({ resume: 'secret' });
    const heard = device.join('s1');
    const waits = [];
    for (let i = 0; i < 6; i++) {
      device.socket.onclose();
      waits.push(device.timers[0].ms);
      device.pass(device.timers[0].ms);
    }
    assert.equal(waits[0], 0);
    for (const wait of waits.slice(1)) assert.ok(wait > 0 && wait <= 2_000, `${wait}`);
    assert.equal(waits[5], 2_000);
    assert.deepEqual(heard, []);
    device.signaling.leave('s1');
    device.socket.onclose();
    device.timers.forEach(({ then }) => then());
    assert.equal(device.sockets.length, 7, 'nobody is left to come back for');
    device.signaling.check(true);
    assert.equal(device.sockets.length, 7);
  });

  test('takes its sessions along when the device has forgotten them, or does not know the viewer any more', async () => {
    const device = new Device();
    await device.welcome({ resume: 'secret' });
    const heard = device.join('s1');
    device.socket.onclose();
    await device.welcome({ resume: 'other', resumed: false });
    assert.deepEqual(heard, [{ type: 'closed' }]);
    const again = device.join('s2');
    device.socket.onclose();
    device.pass(0);
    device.open();
    device.say({ type: 'error', id: 'hello', code: 'token-expired', message: 'the token has expired' });
    assert.deepEqual(again.map(({ type, code }) => [type, code]), [['error', 'token-expired']]);
  });

  test('is told apart from one that is given back, so that the device knows whom to wait for', async () => {
    const device = new Device();
    await device.welcome({ resume: 'secret' });
    const heard = device.join('s1');
    device.signaling.check();
    device.pass(3_000);
    assert.equal(device.socket.code, 4000);
    device.pass(0);
    device.open();
    device.say({ type: 'welcome', id: 'hello', resume: 'secret', resumed: true });
    device.signaling.close();
    assert.equal(device.socket.code, 1000);
    assert.deepEqual(heard, [{ type: 'resumed' }, { type: 'closed' }]);
    await device.welcome();
    assert.ok(!('resume' in device.socket.sent[0]));
  });

  test('is told later who left meanwhile', async () => {
    const device = new Device();
    await device.welcome({ resume: 'secret' });
    device.join('s1');
    device.join('s2');
    device.socket.onclose();
    device.signaling.leave('s1');
    await device.welcome({ resume: 'secret', resumed: true });
    assert.deepEqual(device.sent('bye').map(({ session }) => session), ['s1']);
  });

  test('is not waited for any longer when the network is another one', async () => {
    const device = new Device();
    await device.welcome({ resume: 'secret' });
    device.join('s1');
    device.socket.onclose();
    device.pass(0);
    assert.equal(device.sockets.length, 2);
    device.signaling.check();
    assert.equal(device.sockets.length, 2, 'this one may still come up');
    device.signaling.check(true);
    assert.equal(device.sockets.length, 3);
  });
});

test('without sessions the socket is given back', async () => {
  const device = new Device();
  await device.welcome();
  device.join('s1');
  device.signaling.leave('s1');
  device.pass(15_000);
  assert.equal(device.socket.readyState, 3);
  await device.welcome();
  assert.equal(device.sockets.length, 2);
});

test('an old socket cannot disturb the one that followed it', async () => {
  const device = new Device();
  await device.welcome();
  const old = device.socket;
  device.signaling.close();
  await device.welcome();
  const heard = device.join('s1');
  old.onmessage({ data: '{"v":1,"type":"bye","session":"s1","reason":"lost"}' });
  old.onclose();
  assert.deepEqual(heard, []);
});

test('what is not a message of this protocol is passed over', async () => {
  const device = new Device();
  await device.welcome();
  const heard = device.join('s1');
  for (const noise of HOSTILE) device.say(noise);
  assert.deepEqual(heard, []);
  device.say({ type: 'state', session: 's1', state: 'camera-back' });
  assert.equal(heard.length, 1, 'and what is one is still heard');
});

test('no hello is answered by what is not a message', async () => {
  const device = new Device();
  let answered = false;
  const welcome = device.signaling.welcome().finally(() => (answered = true));
  device.open();
  for (const noise of [...HOSTILE, '{"v":1,"type":"welcome","id":{}}', '{"v":1,"type":"error","id":"hello","code":null}']) device.say(noise);
  await Promise.resolve();
  assert.ok(!answered);
  device.say({ type: 'welcome', id: 'hello' });
  await welcome;
});
