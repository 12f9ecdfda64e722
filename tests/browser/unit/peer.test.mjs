import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';
import { Peer } from '../../../src/web/peer.js';

/** A browser's connection without a network, and a link that carries nothing. */
class Connection {
  connectionState = 'new';
  remote = [];
  offers = 0;
  addTransceiver() {}
  restartIce() {}
  close() {}
  async setLocalDescription() {
    this.localDescription = { type: 'offer', sdp: `offer ${++this.offers}` };
  }
  async setRemoteDescription({ sdp }) {
    this.remote.push(sdp);
  }
}

let connection;
beforeEach(() => {
  globalThis.RTCPeerConnection = class extends Connection {
    constructor() {
      super();
      connection = this;
    }
  };
});
afterEach(() => delete globalThis.RTCPeerConnection);

async function open(quality = 'auto') {
  const [sent, told, said] = [[], [], []];
  let hear;
  const signaling = {
    welcome: async () => ({}),
    join: (_, receive) => (hear = receive),
    leave() {},
    send: (session, type, fields) => `${session}.${sent.push({ type, ...fields })}`,
  };
  const peer = new Peer({ session: 's', camera: 'front', signaling, show() {}, tell: (event) => told.push(event), quality: () => quality, stats: (figures) => said.push(figures) });
  await peer.open();
  return { peer, sent, told, said, hear: (message) => hear({ v: 1, session: 's', ...message }) };
}

const answer = (id) => ({ type: 'answer', id, description: { type: 'answer', sdp: `answer to ${id}` } });

test('an answer counts once, and only to what was offered last', async () => {
  const { peer, hear, told } = await open();
  await hear(answer('s.1'));
  await hear(answer('s.1'));
  await peer.restart();
  await peer.restart();
  for (const id of ['s.1', 's.2', 's.3', 's.2', 's.3', undefined]) await hear(answer(id));
  assert.deepEqual(connection.remote, ['answer to s.1', 'answer to s.3']);
  assert.deepEqual(told, [{ type: 'answered' }, { type: 'answered' }]);
});

test('the offer says which quality is wanted, and another one is said when it is chosen', async () => {
  const { peer, sent } = await open('low');
  assert.deepEqual([sent[0].type, sent[0].camera, sent[0].quality], ['offer', 'front', 'low']);
  peer.prefer();
  assert.deepEqual(sent[1], { type: 'quality', quality: 'low' });
});

test('figures are handed on to who asked, and are no trouble where the device knows of none', async () => {
  const { peer, sent, said, told, hear } = await open();
  peer.ask();
  assert.deepEqual(sent[1].type, 'stats');
  await hear({ type: 'stats', sent_kbps: 310 });
  assert.deepEqual(said.map(({ sent_kbps: kbps }) => kbps), [310]);
  await hear({ type: 'error', code: 'unknown-type', message: 'there is no message type "stats"' });
  assert.deepEqual(told, [{ type: 'trouble', why: { code: 'unknown-type', message: 'there is no message type "stats"', retryAfter: undefined } }]);
});

test('another network, here or there, is told as such', async () => {
  const { told, hear } = await open();
  await hear({ type: 'state', state: 'address-changed' });
  await hear({ type: 'resumed' });
  assert.deepEqual(told, [{ type: 'moved' }, { type: 'resumed' }]);
});
