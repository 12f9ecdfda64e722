import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CONNECT_MS, RESTART_GAP_MS, RESTORE_MS, START, STOOD_MS, delay, next, wakeAt, wanted } from '../../../src/web/connection.js';

/** A connection's life told in events; `at` moves the clock. */
class Life {
  state = START;
  now = 1_000;

  tell(...events) {
    for (const event of events) this.state = next(this.state, typeof event === 'string' ? { type: event } : event, this.now, 0.5);
    return this;
  }

  wait(ms) {
    this.now += ms;
    return this;
  }

  /** Lets the time pass until something is due. */
  due() {
    this.now = wakeAt(this.state);
    return this.tell('time');
  }
}

const life = () => new Life();
const live = () => life().tell('play', 'answered', 'connected', 'picture');
const trouble = (code, more = {}) => ({ type: 'trouble', why: { code, ...more } });

describe('a tile that plays', () => {
  test('asks for one session, and shows it when it is connected', () => {
    const { state } = live();
    assert.equal(state.is, 'live');
    assert.equal(state.picture, true);
    assert.deepEqual(wanted(state), { session: 1, restarts: 0 });
  });

  test('is left alone by a second play', () => {
    const { state } = live();
    assert.equal(next(state, { type: 'play' }, 5_000, 0.5), state);
  });

  test('wants nothing any more when stopped, whatever it was doing', () => {
    for (const before of [life().tell('play'), live(), live().tell('disconnected'), life().tell('play', trouble('full')), life().tell('play', trouble('no-such-camera'))]) {
      const { state } = before.tell('stop');
      assert.equal(state.is, 'off');
      assert.equal(wanted(state).session, null);
      assert.equal(wakeAt(state), null);
    }
  });

  test('keeps its session while the camera is gone', () => {
    const there = live();
    const gone = there.tell({ type: 'lost', message: 'unplugged' }).state;
    assert.equal(gone.is, 'live');
    assert.equal(gone.lost, 'unplugged');
    assert.equal(there.tell('stalled').state, gone, 'no new session helps against a missing camera');
    assert.equal(there.tell('back').state.lost, null);
  });

  test('hears of a lost camera before it is connected', () => {
    const { state } = life().tell('play', 'answered', { type: 'lost', message: 'busy' }, 'connected');
    assert.equal(state.lost, 'busy');
  });

  test('is live with its first picture, in whatever order the browser tells', () => {
    assert.deepEqual(life().tell('play', 'answered', 'picture').state, live().state);
    assert.deepEqual(life().tell('play', 'answered', 'picture', 'connected').state, live().state);
  });

  test('tries a new session when pictures stop without a reason', () => {
    assert.equal(live().tell('stalled').state.why.code, 'stalled');
  });
});

describe('a connection that is interrupted', () => {
  test('has its ICE restarted at once, and again, later and later, until a new session is made', () => {
    for (const event of ['disconnected', 'failed']) {
      const interrupted = live().tell(event);
      assert.deepEqual(wanted(interrupted.state), { session: 1, restarts: 1 });
      const waits = [];
      while (interrupted.state.is === 'restoring') {
        const before = interrupted.now;
        waits.push(interrupted.due().now - before);
      }
      assert.deepEqual(waits, [2_000, 4_000, 8_000, 6_000]);
      assert.equal(interrupted.now, 1_000 + RESTORE_MS);
      assert.equal(interrupted.state.why.code, 'lost');
      assert.equal(wanted(interrupted.due().state).session, 2);
    }
  });

  test('goes on as if nothing had happened when it comes back', () => {
    const { state } = live().tell('disconnected', 'connected');
    assert.deepEqual([state.is, state.picture, wakeAt(state)], ['live', true, null]);
  });

  test('is restarted once more when the restart fails, but not more often than once a second', () => {
    const failed = live().tell('failed').wait(300).tell('failed', 'failed', 'moved', 'online');
    assert.deepEqual(wanted(failed.state), { session: 1, restarts: 1 });
    assert.equal(wakeAt(failed.state), 1_000 + RESTART_GAP_MS);
    assert.deepEqual(wanted(failed.due().state), { session: 1, restarts: 2 });
  });

  test('may be interrupted and restarted again', () => {
    const { state } = live().tell('failed', 'connected').wait(5_000).tell('failed');
    assert.deepEqual(wanted(state), { session: 1, restarts: 2 });
  });

  test('is restarted while it still plays when the network is another one, and nobody is told of an interruption', () => {
    const moved = live().tell('moved', 'moved');
    assert.deepEqual([moved.state.is, wanted(moved.state).restarts], ['live', 1]);
    assert.deepEqual([moved.due().state.is, wanted(moved.state).restarts, wakeAt(moved.state)], ['live', 2, null]);
    assert.equal(live().tell('online').state.restarts, 0, 'a page that is looked at again has the same network');
    assert.equal(life().tell('play', trouble('unreachable'), 'moved').state.is, 'connecting');
    assert.equal(life().tell('moved').state.is, 'off');
  });

  test('is told after a restart whether its camera is lost', () => {
    const restored = live().tell({ type: 'lost', message: 'unplugged' }, 'moved', 'answered');
    assert.equal(restored.state.lost, null);
    assert.equal(restored.tell({ type: 'lost', message: 'unplugged' }).state.lost, 'unplugged');
  });

  test('keeps the camera lost or back while it is restored', () => {
    const { state } = live().tell('disconnected', { type: 'lost', message: 'unplugged' }, 'connected');
    assert.equal(state.lost, 'unplugged');
  });
});

describe('an attempt that fails', () => {
  test('is followed by others, later and later, at most 15 s apart', () => {
    const waits = [];
    const retrying = life().tell('play');
    for (let i = 0; i < 8; i++) {
      retrying.tell(trouble('unreachable'));
      waits.push(retrying.state.until - retrying.now);
      retrying.due();
    }
    assert.deepEqual(waits, [500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
  });

  test('starts counting anew after a connection that stood', () => {
    const failing = life().tell('play', trouble('unreachable')).due().tell(trouble('unreachable')).due().tell('connected');
    const short = new Life();
    Object.assign(short, { state: failing.state, now: failing.now });
    assert.equal(short.wait(STOOD_MS - 1).tell(trouble('lost')).state.failures, 3, 'a connection that fell at once is one more failure');
    assert.equal(failing.wait(STOOD_MS).tell(trouble('lost')).state.failures, 1);
  });

  test('tells a device that does not answer from a network without a way through', () => {
    const silent = life().tell('play').due();
    assert.equal(silent.now, 1_000 + CONNECT_MS);
    assert.equal(silent.state.why.code, 'no-answer');
    assert.equal(life().tell('play', 'answered').due().state.why.code, 'no-route');
  });

  test('waits for as long as the device says, and a little longer, so that not all come at once', () => {
    const { state, now } = life().tell('play', trouble('full', { retryAfter: 10_000 }));
    assert.equal(state.until, now + 10_500);
  });

  test('is made again at once when the network or the viewer comes back', () => {
    for (const event of ['online', 'shown', 'play']) assert.equal(life().tell('play', trouble('unreachable'), event).state.is, 'connecting');
  });

  test('is not hurried when the device named the time, except by the viewer', () => {
    const full = trouble('full', { retryAfter: 10_000 });
    for (const event of ['online', 'shown']) assert.equal(life().tell('play', full, event).state.is, 'waiting');
    assert.equal(life().tell('play', full, 'play').state.is, 'connecting');
  });

  test('is the last one when asking again cannot help', () => {
    for (const code of ['no-such-camera', 'no-common-codec', 'bad-offer', 'token-expired', 'not-allowed', 'unknown-version']) {
      const { state } = life().tell('play', trouble(code));
      assert.equal(state.is, 'ended', code);
      assert.equal(wakeAt(state), null);
    }
    assert.equal(life().tell('play', trouble('no-such-camera'), 'play').state.is, 'connecting', 'but a person may ask again');
  });

  test('does not end for a candidate the device cannot use, or a message that is new to it', () => {
    const { state } = life().tell('play', 'answered');
    for (const code of ['bad-candidate', 'unknown-type']) assert.equal(next(state, trouble(code), 1_500, 0.5), state);
  });
});

test('a hidden page gives its place back and takes it again when shown', () => {
  for (const before of [life().tell('play'), live(), live().tell('disconnected'), life().tell('play', trouble('unreachable'))]) {
    const { state } = before.tell('hidden');
    assert.equal(state.is, 'paused');
    assert.equal(wanted(state).session, null);
    assert.equal(before.tell('shown').state.is, 'connecting');
  }
  assert.equal(life().tell('hidden', 'shown').state.is, 'off', 'what did not play does not begin to');
});

test('what is switched off or offline ends it, and it comes back by itself when it can', () => {
  for (const code of ['disabled', 'offline', 'stopped']) {
    const { state } = life().tell('play', trouble(code));
    assert.equal(state.is, 'ended');
    assert.equal(wakeAt(state), null, 'nothing is tried until then');
    for (const type of ['online', 'shown', 'time', 'hidden']) assert.equal(next(state, { type }, 99_000, 0.5), state, type);
    assert.equal(next(state, { type: 'ready' }, state.since + 1_000, 0.5), state, 'what is told may be older than the refusal');
    assert.equal(next(state, { type: 'ready' }, state.since + 3_000, 0.5).is, 'connecting');
  }
  for (const code of ['no-such-camera', 'token-needed']) {
    const { state } = life().tell('play', trouble(code));
    assert.equal(next(state, { type: 'ready' }, 99_000, 0.5), state, `${code} needs a person`);
  }
  assert.equal(life().tell('ready').state.is, 'off', 'what nobody played does not begin to');
});

test('what is to be played out of sight is played when it is seen', () => {
  const { state } = life().tell('later');
  assert.equal(state.is, 'paused');
  assert.equal(next(state, { type: 'shown' }, 0, 0.5).is, 'connecting');
  const playing = live();
  assert.equal(next(playing.state, { type: 'later' }, 0, 0.5), playing.state);
});

test('delays differ by chance and stay between their limits', () => {
  for (let failures = 1; failures < 50; failures++) {
    assert.ok(delay(failures, 0) < delay(failures, 0.4));
    assert.ok(delay(failures, 0) >= 375 && delay(failures, 1) <= 15_000);
  }
});

test('in whatever order things happen, there is one session, it is never stuck, and time alone brings it on', () => {
  const random = seeded(7);
  const events = ['play', 'stop', 'hidden', 'shown', 'online', 'time', 'answered', 'connected', 'disconnected', 'failed', 'moved', 'resumed', 'picture', 'stalled', 'back', 'ready', 'later'];
  const troubles = ['full', 'lost', 'unreachable', 'bad-candidate', 'no-such-camera', 'disabled'];
  for (let round = 0; round < 500; round++) {
    let state = START;
    let now = 0;
    for (let step = 0; step < 60; step++) {
      const pick = Math.floor(random() * (events.length + 2));
      const type = events[pick] ?? (pick === events.length ? 'trouble' : 'lost');
      const code = troubles[Math.floor(random() * troubles.length)];
      now += random() * 4_000;
      const before = state;
      state = next(state, { type, message: 'gone', why: { code, retryAfter: code === 'full' ? 8_000 : undefined } }, now, random());
      const { session, restarts } = wanted(state);
      assert.ok(state.session - before.session === 0 || (state.session - before.session === 1 && state.is === 'connecting'));
      assert.ok(session === null || session === state.session);
      assert.ok(session !== wanted(before).session || restarts - wanted(before).restarts <= 1);
      const due = wakeAt(state);
      if (state.is !== 'live') assert.equal(due !== null, ['connecting', 'restoring', 'waiting'].includes(state.is));
      if (due !== null) assert.notEqual(next(state, { type: 'time' }, due, 0.5), state);
      assert.equal(next(state, { type: 'stop' }, now, 0.5).is, 'off');
    }
  }
});

/** mulberry32: the same walk every time. */
function seeded(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
