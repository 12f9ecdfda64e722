// @ts-check
/**
 * The life of one tile's connection, as plain data: no page, no clock, no network. `next` decides, `player.js` carries out.
 *
 *              play                    connected
 *     off ──────────────▶ connecting ─────────────▶ live ◀─────────────┐
 *      ▲                   ▲      │                  │ disconnected    │ connected
 *      │ stop,        time │      │ trouble,         ▼                 │
 *      │ from      or play │      │ too late      restoring ───────────┘
 *      │ anywhere          │      ▼                  │ too late
 *      │                   waiting ◀─────────────────┘
 *
 *     ended: trouble for good, a person must act        paused: out of sight for a while; goes on when shown
 *
 * Every attempt is a new session with a new number. Restoring is the same session, its ICE restarted again and again.
 */

/** @import { Connected, Connecting, Event, Live, Reason, Restoring, State, Step, Waiting } from './types.d.ts' */

/** The device gives a negotiation 10 s; a moment longer, so that its own word on it arrives first. */
export const CONNECT_MS = 12_000;
/** The device keeps a session without a way to its viewer for 30 s. */
export const RESTORE_MS = 20_000;
/** Between two ICE restarts; then twice that, and so on, while nothing helps. */
export const RESTART_GAP_MS = 1_000;
/** A connection that stood this long was good: failures count anew. */
export const STOOD_MS = 5_000;
const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 15_000;

/** Asking again does not help; a person has to. */
const FINAL = /^(token-.*|not-allowed|foreign-page|no-such-camera|no-common-codec|bad-offer|bad-field|unknown-version|no-webrtc|broker-denies)$/;
/** Final until others tell that it can play again. */
const HELD = /^(disabled|offline|stopped)$/;
/** What they tell may be older than the refusal. */
const HELD_MS = 2_000;
/** The session goes on without this candidate, or with a device that knows no `quality` or `stats`. */
const HARMLESS = /^(bad-candidate|too-many-candidates|unknown-type)$/;

/** @type {State} */
export const START = { is: 'off', session: 0 };

/** @type {(state: State, event: Event, now: number, random: number) => State} */
export function next(state, event, now, random) {
  switch (event.type) {
    case 'play':
      return hasPeer(state) ? state : connect(state, now);
    case 'later':
      return hasPeer(state) ? state : { is: 'paused', session: state.session };
    case 'stop':
      return state.is === 'off' ? state : { is: 'off', session: state.session };
    case 'hidden':
      return hasPeer(state) || state.is === 'waiting' ? { is: 'paused', session: state.session } : state;
    case 'shown':
      return state.is === 'paused' ? connect(state, now) : hurry(state, now);
    case 'online':
      return state.is === 'restoring' ? soon(state, now, random) : hurry(state, now);
    case 'moved':
    case 'resumed':
      return state.is === 'live' || state.is === 'restoring' ? soon(state, now, random) : hurry(state, now);
    case 'ready':
      return state.is === 'ended' && HELD.test(state.why.code) && now - state.since >= HELD_MS ? connect(state, now) : state;
    case 'time':
      return onTime(state, now, random);
    case 'trouble':
      return onTrouble(state, event.why, now, random);
    case 'stalled':
      return state.is === 'live' && state.lost === null ? retry(state, { code: 'stalled' }, now, random) : state;
    case 'lost':
      return hasPeer(state) ? { ...state, lost: event.message } : state;
    case 'back':
      return hasPeer(state) ? { ...state, lost: null } : state;
    case 'answered':
      if (state.is === 'connecting') return { ...state, answered: true };
      // What was said of the camera meanwhile may be lost; after this answer it is said again.
      return hasPeer(state) && state.lost !== null ? { ...state, lost: null } : state;
    case 'picture':
      // The picture may be told before the connection that brought it.
      if (state.is === 'connecting') return { ...onConnected(state, now), picture: true };
      return state.is === 'live' || state.is === 'restoring' ? { ...state, picture: true } : state;
    case 'connected':
      return state.is === 'connecting' || state.is === 'restoring' ? onConnected(state, now) : state;
    case 'disconnected':
      return state.is === 'live' ? restore(state, now, random) : state;
    case 'failed':
      if (state.is === 'connecting') return retry(state, { code: 'no-route' }, now, random);
      return state.is === 'live' ? restore(state, now, random) : state.is === 'restoring' ? soon(state, now, random) : state;
  }
}

/**
 * What should stand on the network: at most one session, and how often its ICE was restarted.
 * @param {State} state
 */
export function wanted(state) {
  return { session: hasPeer(state) ? state.session : null, restarts: 'restarts' in state ? state.restarts : 0 };
}

/**
 * When `next` wants to hear of the time.
 * @type {(state: State) => number | null}
 */
export function wakeAt(state) {
  switch (state.is) {
    case 'connecting':
      return state.giveUpAt;
    case 'live':
      return state.restartAt;
    case 'restoring':
      return Math.min(state.restartAt ?? Infinity, state.giveUpAt);
    case 'waiting':
      return state.until;
    default:
      return null;
  }
}

/**
 * 0.5 s after the first failure in a row, doubling to 15 s, with a quarter of chance so that many viewers do not knock together.
 * @type {(failures: number, random: number) => number}
 */
export function delay(failures, random) {
  const base = Math.min(FIRST_DELAY_MS * 2 ** (failures - 1), LONGEST_DELAY_MS);
  return Math.min(base * (0.75 + random / 2), LONGEST_DELAY_MS);
}

/** @type {(state: State) => state is Connected} */
function hasPeer(state) {
  return state.is === 'connecting' || state.is === 'live' || state.is === 'restoring';
}

/** @type {(state: State, now: number) => Connecting} */
function connect(state, now) {
  const failures = state.is === 'waiting' ? state.failures : 0;
  return { is: 'connecting', session: state.session + 1, failures, answered: false, lost: null, giveUpAt: now + CONNECT_MS };
}

/**
 * The world changed for the better: no more waiting, unless the device itself named the time.
 * @type {(state: State, now: number) => State}
 */
function hurry(state, now) {
  return state.is === 'waiting' && state.why.retryAfter === undefined ? connect(state, now) : state;
}

/** @type {(state: Live, now: number, random: number) => State} */
function restore(state, now, random) {
  return soon({ ...state, is: 'restoring', tries: 0, giveUpAt: now + RESTORE_MS }, now, random);
}

/** A restart, at once unless the last one was only just made. @type {(state: Live | Restoring, now: number, random: number) => State} */
function soon(state, now, random) {
  return onTime({ ...state, tries: 0, restartAt: Math.max(now, state.restartedAt + RESTART_GAP_MS) }, now, random);
}

/** @type {(state: Connected, why: Reason, now: number, random: number) => Waiting} */
function retry(state, why, now, random) {
  const stood = 'since' in state && now - state.since >= STOOD_MS;
  const failures = (stood ? 0 : state.failures) + 1;
  const wait = why.retryAfter === undefined ? delay(failures, random) : why.retryAfter * (1 + random / 10);
  return { is: 'waiting', session: state.session, failures, until: now + wait, why };
}

/** @type {Step} */
function onTime(state, now, random) {
  const due = wakeAt(state);
  if (due === null || now < due) return state;
  if (state.is === 'waiting') return connect(state, now);
  if (state.is === 'connecting') return retry(state, { code: state.answered ? 'no-route' : 'no-answer' }, now, random);
  if (state.is !== 'live' && state.is !== 'restoring') return state;
  if (state.is === 'restoring' && now >= state.giveUpAt) return retry(state, { code: 'lost' }, now, random);
  const again = state.is === 'live' ? null : now + 2 * RESTART_GAP_MS * 2 ** state.tries;
  return { ...state, restarts: state.restarts + 1, tries: state.tries + 1, restartedAt: now, restartAt: again };
}

/** @type {(state: State, why: Reason, now: number, random: number) => State} */
function onTrouble(state, why, now, random) {
  if (!hasPeer(state) || HARMLESS.test(why.code)) return state;
  const final = FINAL.test(why.code) || HELD.test(why.code);
  return final ? { is: 'ended', session: state.session, since: now, why } : retry(state, why, now, random);
}

/** @type {(state: Connecting | Restoring, now: number) => Live} */
function onConnected(state, now) {
  if (state.is === 'connecting') {
    const { session, failures, lost } = state;
    return { is: 'live', session, failures, restarts: 0, restartAt: null, restartedAt: -Infinity, tries: 0, since: now, picture: false, lost };
  }
  const { giveUpAt: _, ...kept } = state;
  return { ...kept, is: 'live', restartAt: null };
}
