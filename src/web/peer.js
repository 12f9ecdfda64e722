// @ts-check
/** One WebRTC connection of one session: offers to receive, trickles, restarts ICE. Tells what happens and decides nothing. */

import { reasonOf } from './signaling.js';

/** @import { Link, Message, Reason, Said, Tell } from './types.d.ts' */

export class Peer {
  #its;
  /** @type {Tell} */
  #tell;
  /** @type {RTCPeerConnection | null} */
  #connection = null;
  /** Held back until the offer is on its way. @type {(RTCIceCandidate | null)[] | null} */
  #held = [];
  /** What is to be answered next, once: answers to earlier offers are of no use, and a broker may bring one twice. */
  #asked = '';
  #closed = false;

  /**
   * @param {{ session: string, camera: string, signaling: Link, tell: Tell, show: (stream: MediaStream) => void, quality: () => string, stats: (said: Said) => void }} its
   *   `stats`: what the device says to `ask`
   */
  constructor(its) {
    this.#its = its;
    this.#tell = (event) => this.#closed || its.tell(event);
  }

  async open() {
    const { session, camera, signaling } = this.#its;
    if (!globalThis.RTCPeerConnection) return this.#trouble({ code: 'no-webrtc' });
    try {
      const { ice_servers: iceServers = [] } = await signaling.welcome();
      if (this.#closed) return;
      signaling.join(session, (message) => this.#receive(message));
      await this.#try(async () => {
        this.#listen((this.#connection = new RTCPeerConnection({ iceServers, bundlePolicy: 'max-bundle' })));
        this.#connection.addTransceiver('video', { direction: 'recvonly' });
        await this.#offer('offer', { camera, quality: this.#its.quality() });
      });
    } catch (refusal) {
      this.#trouble(/** @type {Reason} */ (refusal));
    }
  }

  /** New paths for the same session, when the network changed under it. */
  restart() {
    return this.#try(async () => {
      this.#held = [];
      this.#connection?.restartIce();
      await this.#offer('restart', {});
    });
  }

  /** What it wants now. */
  prefer() {
    this.#its.signaling.send(this.#its.session, 'quality', { quality: this.#its.quality() });
  }

  /** How the device sees it. */
  ask() {
    this.#its.signaling.send(this.#its.session, 'stats');
  }

  /** @returns {Promise<RTCStatsReport> | undefined} */
  stats() {
    return this.#connection?.getStats();
  }

  close() {
    this.#closed = true;
    this.#its.signaling.leave(this.#its.session);
    this.#connection?.close();
  }

  /** @param {RTCPeerConnection} connection */
  #listen(connection) {
    connection.onconnectionstatechange = () => {
      const state = connection.connectionState;
      if (state === 'connected' || state === 'disconnected' || state === 'failed') this.#tell({ type: state });
      if (state === 'closed') this.#trouble({ code: 'lost' });
    };
    connection.onicecandidate = ({ candidate }) => (this.#held ? this.#held.push(candidate) : this.#trickle(candidate));
    connection.ontrack = ({ receiver, track, streams }) => {
      // Pictures are shown as they come; a late one is repaired or skipped, never waited for.
      if ('jitterBufferTarget' in receiver) receiver.jitterBufferTarget = 0;
      this.#its.show(streams[0] ?? new MediaStream([track]));
    };
  }

  /** @param {'offer' | 'restart'} type @param {object} fields */
  async #offer(type, fields) {
    await this.#connection?.setLocalDescription();
    this.#asked = this.#its.signaling.send(this.#its.session, type, { ...fields, description: this.#connection?.localDescription });
    const held = this.#held ?? [];
    this.#held = null;
    for (const candidate of held) this.#trickle(candidate);
  }

  /** @param {RTCIceCandidate | null} candidate */
  #trickle(candidate) {
    this.#its.signaling.send(this.#its.session, 'candidate', { candidate: candidate?.candidate ? candidate : null });
  }

  /** @param {Message} message */
  #receive(message) {
    switch (message.type) {
      case 'answer':
        if (message.id !== this.#asked) return;
        this.#asked = '';
        this.#tell({ type: 'answered' });
        return this.#try(() => this.#connection?.setRemoteDescription(message.description));
      case 'state':
        if (message.state === 'camera-lost') this.#tell({ type: 'lost', message: message.message ?? '' });
        if (message.state === 'camera-back') this.#tell({ type: 'back' });
        if (message.state === 'address-changed') this.#tell({ type: 'moved' });
        return;
      case 'stats':
        return this.#its.stats(message);
      case 'resumed':
        return this.#tell({ type: 'resumed' });
      case 'error':
        return this.#trouble(reasonOf(message));
      case 'bye':
        return this.#trouble({ code: message.reason });
      case 'closed':
        return this.#trouble({ code: 'unreachable' });
    }
  }

  /** @param {Reason} why */
  #trouble(why) {
    this.#tell({ type: 'trouble', why });
  }

  /** What the browser itself refuses. @param {() => Promise<void> | undefined} act */
  async #try(act) {
    try {
      await act();
    } catch (error) {
      this.#trouble({ code: 'browser', message: String(error) });
    }
  }
}
