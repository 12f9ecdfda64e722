import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AWAY } from '../../../src/web/fleet.js';
import { MqttSignaling } from '../../../src/web/mqtt_signaling.js';
import { parse } from '../../../src/web/signaling.js';
import { HOSTILE } from '../support/hostile.mjs';

/** A device behind a broker that has no network in it. */
class Device {
  sent = [];
  timers = [];
  token = '';
  presence = 'online';
  /** What the broker says to the next messages. */
  code = 0;

  link = new MqttSignaling({
    broker: { publish: (topic, message, published) => (this.sent.push({ topic, ...message }), published(this.code)), check: () => (this.checked = true) },
    topic: 'edgecam/door',
    client: () => 'ann',
    token: () => this.token,
    away: () => AWAY[this.presence],
    after: (ms, then) => {
      this.timers.push(then);
      return () => (this.timers = this.timers.filter((other) => other !== then));
    },
  });

  get last() {
    return this.sent.at(-1);
  }

  say(message) {
    this.receive(JSON.stringify({ v: 1, ...message }));
  }

  /** Any text, as the page hands it on. */
  receive(text) {
    const message = parse(text);
    if (message) this.link.receive(message);
  }

  async welcome() {
    const welcome = this.link.welcome();
    this.say({ type: 'welcome', id: this.last.id, ice_servers: [] });
    return welcome;
  }

  join(name) {
    const heard = [];
    this.link.join(name, (message) => heard.push(message));
    return heard;
  }
}

test('all who ask share one hello, which brings the token', async () => {
  const device = new Device();
  device.token = 'secret';
  const both = [device.link.welcome(), device.link.welcome()];
  assert.equal(device.sent.length, 1);
  const { topic, v, type, id, token } = device.last;
  assert.deepEqual([topic, v, type, token], ['edgecam/door/rpc/ann', 1, 'hello', 'secret']);
  device.say({ type: 'welcome', id: 'hello.1.somebody-else' });
  device.say({ type: 'welcome', id, device: 'door' });
  assert.deepEqual((await Promise.all(both)).map(({ device }) => device), ['door', 'door']);
  assert.equal(device.timers.length, 0);
});

test('an offer brings the token again, for the device may have started anew', async () => {
  const device = new Device();
  device.token = 'secret';
  await device.welcome();
  device.join('s1');
  device.link.send('s1', 'offer', { camera: 'front', description: { type: 'offer', sdp: '…' } });
  assert.deepEqual([device.last.type, device.last.session, device.last.camera, device.last.token], ['offer', 's1', 'front', 'secret']);
  device.link.send('s1', 'candidate', { candidate: null });
  assert.equal(device.last.token, undefined);
});

test('a device that is known to be away is not asked', async () => {
  for (const presence of ['offline', 'stopped']) {
    const device = new Device();
    device.presence = presence;
    await assert.rejects(device.link.welcome(), { code: presence });
    assert.deepEqual(device.sent, []);
    device.presence = 'online';
    assert.ok(await device.welcome(), 'it is asked when it is back');
  }
});

test('what the broker refuses is told with its remedy', async () => {
  for (const [code, slug, remedy] of [[0x10, 'no-answer', /not connected/], [0x87, 'broker-denies', /edgecam\/door\/rpc\/ann/], [0x95, 'broker-denies', /length/], [0x97, 'no-broker', undefined]]) {
    const device = new Device();
    device.code = code;
    await assert.rejects(device.link.welcome(), (why) => why.code === slug && (remedy === why.message || remedy.test(why.message)));
    device.code = 0;
    await device.welcome();
    const heard = device.join('s1');
    device.code = code;
    device.link.send('s1', 'offer', {});
    assert.deepEqual(heard.map(({ type, code }) => [type, code]), [['error', slug]]);
  }
});

test('silence after hello is told, with what the broker may forbid', async () => {
  const device = new Device();
  const welcome = device.link.welcome();
  device.timers.forEach((then) => then());
  await assert.rejects(welcome, (why) => why.code === 'no-answer' && /edgecam\/door\/rsp\/ann/.test(why.message));
});

test('a refused hello gives the device’s reason, and the next one asks anew', async () => {
  const device = new Device();
  const welcome = device.link.welcome();
  device.say({ type: 'error', id: device.last.id, code: 'token-needed', message: 'ask the owner' });
  await assert.rejects(welcome, { code: 'token-needed', message: 'ask the owner' });
  assert.ok(await device.welcome());
});

test('each session hears its own messages, and nothing after bye', async () => {
  const device = new Device();
  await device.welcome();
  const [first, second] = [device.join('s1'), device.join('s2')];
  device.link.send('s1', 'offer', {});
  const answer = { type: 'answer', session: 's1', id: device.last.id, description: {} };
  device.say(answer);
  device.say({ type: 'error', id: device.last.id, code: 'bad-field' });
  device.say({ type: 'state', session: 's3', state: 'camera-lost' });
  device.say({ type: 'bye', session: 's1', reason: 'disabled' });
  device.say({ type: 'state', session: 's1', state: 'camera-back' });
  assert.deepEqual(first.map(({ type }) => type), ['answer', 'error', 'bye']);
  assert.deepEqual(second, []);
  const sent = device.sent.length;
  device.link.leave('s1');
  assert.equal(device.sent.length, sent, 'a session that is over needs no bye');
});

test('leaving says bye, and after the last one the welcome is forgotten', async () => {
  const device = new Device();
  await device.welcome();
  device.join('s1');
  device.link.leave('s1');
  assert.deepEqual([device.last.type, device.last.session], ['bye', 's1']);
  device.link.welcome();
  assert.equal(device.last.type, 'hello');
});

test('closing says bye for all, and tells them', async () => {
  const device = new Device();
  await device.welcome();
  const [first, second] = [device.join('s1'), device.join('s2')];
  device.link.close();
  assert.deepEqual(device.sent.slice(-2).map(({ type, session }) => [type, session]), [['bye', 's1'], ['bye', 's2']]);
  assert.deepEqual([...first, ...second], [{ type: 'closed' }, { type: 'closed' }]);
});

test('what is not a message of this protocol is passed over', async () => {
  const device = new Device();
  let answered = false;
  const welcome = device.link.welcome().finally(() => (answered = true));
  const { id } = device.last;
  const heard = device.join('s1');
  for (const noise of HOSTILE) device.receive(noise);
  await Promise.resolve();
  assert.ok(!answered);
  device.say({ type: 'welcome', id });
  await welcome;
  device.say({ type: 'state', session: 's1', state: 'camera-back' });
  assert.deepEqual(heard.map(({ type }) => type), ['state']);
});
