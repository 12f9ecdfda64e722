import assert from 'node:assert/strict';
import { test } from 'node:test';
import { START, next } from '../../../src/web/connection.js';
import { AWAY } from '../../../src/web/fleet.js';
import { badge, say, title, unable } from '../../../src/web/words.js';

const camera = { id: 'front', state: 'running', error: null, viewers: 8, max_viewers: 8 };
const after = (...events) => events.reduce((state, event) => next(state, typeof event === 'string' ? { type: event } : event, 1_000, 0), START);
const trouble = (code, more) => ({ type: 'trouble', why: { code, ...more } });

test('a full house says how many places there are and counts the seconds', () => {
  const saying = say(after('play', trouble('full', { retryAfter: 12_000 })), camera, 0);
  assert.equal(title(saying, 1_000), 'All 8 places are taken, trying again in 12 s');
  assert.equal(title(saying, 3_500), 'All 8 places are taken, trying again in 10 s');
  assert.equal(title(saying, 99_000), 'All 8 places are taken, trying again in 1 s', 'never zero or less');
  assert.ok(saying.action);
  assert.equal(say(after('play', trouble('full')), { ...camera, max_viewers: 1 }, 0).title, 'The only place is taken');
});

test('a camera that is gone is waited for, with the reason the device gave', () => {
  const state = after('play', 'connected', 'picture', { type: 'lost', message: '/dev/video0 went away' });
  const { title: sentence, detail } = say(state, camera, 0);
  assert.match(sentence, /unplugged.*waiting for it to come back/);
  assert.equal(detail, '/dev/video0 went away');
  assert.equal(badge(state, camera).tone, 'bad');
});

test('a picture that moves needs no words, one that stands does', () => {
  const live = after('play', 'connected', 'picture');
  assert.equal(say(live, camera, 0), null);
  assert.equal(say(live, camera, 2_900), null);
  assert.match(say(live, camera, 4_200).detail, /4 s old/);
  assert.deepEqual(badge(live, camera), { word: 'Live', tone: 'live' });
});

test('the wait for the first picture says what it is for', () => {
  const connected = after('play', 'connected');
  assert.equal(say(connected, { ...camera, state: 'opening' }, 0).title, 'Opening the camera');
  assert.equal(say(connected, camera, 0).title, 'Waiting for the first picture');
});

test('a broken camera says so before anybody plays it', () => {
  const failed = { ...camera, state: 'failed', error: 'no such device' };
  assert.equal(say(START, failed, 0).detail, 'no such device');
  assert.equal(badge(START, failed).tone, 'bad');
  assert.equal(say(START, camera, 0), null);
});

test('every reason has a sentence, also one this page has never heard of', () => {
  const codes = ['full', 'busy', 'shutdown', 'shutting-down', 'unreachable', 'no-answer', 'no-route', 'connect-timeout', 'lost', 'link-too-slow', 'stalled', 'viewer-left',
    'replaced', 'no-such-session', 'no-such-camera', 'no-common-codec', 'bad-offer', 'no-webrtc', 'browser', 'token-expired', 'not-allowed', 'brand-new-reason', 'disabled', 'offline', 'stopped', 'no-answer', 'no-broker', 'broker-denies'];
  for (const code of codes) {
    for (const of of [camera, undefined]) {
      const { title: sentence, action } = say(after('play', trouble(code, { message: 'as the device says' })), of, 0);
      assert.match(sentence, /^[A-Z][^{}]+[^.]$/, code);
      assert.ok(!sentence.includes('undefined'), code);
      assert.ok(action, code);
    }
  }
});

test('a camera that cannot be played says why before anybody tries', () => {
  const told = { disabled: [{ enabled: false }, /switched off/, 'Switched off'], offline: [{ away: AWAY.offline }, /offline/, 'Offline'], stopped: [{ away: AWAY.stopped, enabled: false }, /stopped/, 'Stopped'] };
  for (const [code, [what, sentence, word]] of Object.entries(told)) {
    const of = { ...camera, ...what };
    assert.ok(unable(of));
    assert.match(say(START, of, 0).title, sentence);
    assert.match(say(after('play', trouble(code, of.away)), of, 0).title, sentence);
    for (const state of [START, after('play', trouble(code)), after('play', 'hidden')]) assert.equal(badge(state, of).word, word);
    assert.equal(badge(after('play', 'connected', 'picture'), of).word, 'Live', 'a picture that moves is believed more');
  }
  for (const fine of [camera, { ...camera, enabled: true }, undefined]) assert.equal(unable(fine), false);
});

test('no state is told by colour alone', () => {
  const states = [START, after('play'), after('play', 'connected'), after('play', 'connected', 'disconnected'), after('play', trouble('full')), after('play', trouble('bad-offer')), after('play', 'hidden')];
  for (const state of states) assert.ok(badge(state, camera).word, state.is);
});
