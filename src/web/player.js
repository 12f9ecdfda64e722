// @ts-check
/** Carries out what `connection.js` decides for one tile: peers, the timer, and a look at the figures once a second. */

import { START, next, wakeAt, wanted } from './connection.js';
import { Peer } from './peer.js';
import { compare, sample } from './stats.js';

/** @import { Event, Link, Said, State } from './types.d.ts' */
/** @import { Figures, Sample } from './stats.js' */

const LOOK_MS = 1_000;
/** No picture for this long: perhaps the link is lost, too; browsers notice late. */
const QUIET_MS = 2_000;
/** The same, and nobody said why: a new session may help. */
const STALLED_MS = 15_000;
/** Of this page, among those that a viewer has open. */
const MARK = Math.random().toString(36).slice(2, 8);
let sessions = 0;

export class Player {
  /** @type {State} */
  state = START;
  /** How long the picture has been standing, in ms. */
  standing = 0;
  /** What the device said last of how it fares. @type {Said | null} */
  said = null;
  #its;
  /** @type {Peer | null} */
  #peer = null;
  #session = 0;
  #restarts = 0;
  #timer = 0;
  #looking = 0;
  /** @type {Sample | null} */
  #last = null;

  /**
   * @param {{ camera: string, signaling: Link, changed: (before: State) => void,
   *   show: (stream: MediaStream) => void, figures: (figures: Figures | null) => void, quality: () => string, curious: () => boolean }} its
   *   `changed` after every change of `state`; `figures` once a second while there is a connection; `curious`: the device's are wanted, too
   */
  constructor(its) {
    this.#its = its;
  }

  /** @param {Event} event */
  tell(event) {
    // A new link is no reason to disturb what moves.
    if (event.type === 'resumed' && this.state.is === 'live' && !this.standing) return;
    const before = this.state;
    this.state = next(before, event, performance.now(), Math.random());
    if (this.state === before) return;
    this.#reconcile();
    this.#arm();
    if (['disconnected', 'failed', 'moved'].includes(event.type)) this.#its.signaling.check();
    this.#its.changed(before);
  }

  /** The viewer wants another quality. */
  prefer() {
    this.#peer?.prefer();
  }

  #reconcile() {
    const { session, restarts } = wanted(this.state);
    if (this.#peer && session !== this.#session) this.#close();
    if (session !== null && !this.#peer) this.#open(session);
    if (restarts > this.#restarts) this.#peer?.restart();
    this.#restarts = restarts;
  }

  /** @param {number} session */
  #open(session) {
    this.#session = session;
    const { camera, signaling, show, quality } = this.#its;
    // Tiles share the link, so the tile's own count does not name its session.
    this.#peer = new Peer({ session: `${MARK}-${++sessions}`, camera, signaling, show, quality, stats: (said) => (this.said = said), tell: (event) => this.tell(event) });
    this.#looking = setInterval(() => this.#look(), LOOK_MS);
    this.#peer.open();
  }

  #close() {
    clearInterval(this.#looking);
    this.#peer?.close();
    this.#peer = null;
    this.#last = this.said = null;
    this.standing = 0;
    this.#its.figures(null);
  }

  #arm() {
    clearTimeout(this.#timer);
    const due = wakeAt(this.state);
    if (due !== null) this.#timer = setTimeout(() => this.tell({ type: 'time' }), Math.max(0, Math.ceil(due - performance.now())));
  }

  async #look() {
    const peer = this.#peer;
    if (this.#its.curious()) peer?.ask();
    else this.said = null;
    const report = await peer?.stats();
    if (!report || peer !== this.#peer || this.state.is !== 'live') return;
    const now = sample(report);
    const before = this.#last;
    this.#last = now;
    if (!before) return;
    const moves = now.decoded > before.decoded || this.state.lost !== null;
    const stood = this.standing;
    this.standing = moves ? 0 : stood + (now.at - before.at);
    if (stood < QUIET_MS && this.standing >= QUIET_MS) this.#its.signaling.check();
    this.#its.figures(compare(before, now, this.said));
    if (this.standing >= STALLED_MS) this.tell({ type: 'stalled' });
  }
}
