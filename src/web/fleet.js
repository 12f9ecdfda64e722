// @ts-check
/** All devices of a prefix, as their retained topics tell of them. Plain data: no page, no network. */

import { parse } from './signaling.js';

/** @import { Away, Camera, Device, Listed, Presence } from './types.d.ts' */

const NAME = /^[\w-]{1,64}$/;
/** Beyond these somebody fills the broker, and no page should fall for it. */
const MOST_DEVICES = 10_000;
const MOST_CAMERAS = 64;
const PRESENCES = ['online', 'offline', 'stopped'];

/** What is said of a device that is not there. @type {Record<string, Away>} */
export const AWAY = {
  offline: { code: 'offline', word: 'Offline', tone: 'bad', title: 'The device is offline', message: 'Its power or its network may be gone.' },
  stopped: { code: 'stopped', word: 'Stopped', tone: 'calm', title: 'The device has stopped', message: 'Somebody stopped it, or it starts again.' },
};

const order = new Intl.Collator('en', { numeric: true });

export class Fleet {
  /** @type {Map<string, Device>} */
  devices = new Map();
  #prefix;
  /** @type {Listed[] | null} */
  #sorted = null;

  /** @param {string} prefix */
  constructor(prefix) {
    this.#prefix = prefix;
  }

  /** What to subscribe to. */
  get topics() {
    return ['status', 'info', 'cam/+/state'].map((last) => `${this.#prefix}/+/${last}`);
  }

  /**
   * Takes in one message.
   * @param {string} topic @param {string} text empty: it is forgotten
   */
  hear(topic, text) {
    const [name = '', kind, camera = '', last] = topic.slice(this.#prefix.length + 1).split('/');
    if (!topic.startsWith(`${this.#prefix}/`) || !NAME.test(name)) return;
    const known = this.devices.get(name);
    if (!known && (!text || this.devices.size >= MOST_DEVICES)) return;
    /** @type {Device} */
    const device = known ?? { presence: undefined, listed: [], cameras: new Map() };
    this.devices.set(name, device);
    if (kind === 'status') device.presence = PRESENCES.includes(text) ? /** @type {Presence} */ (text) : undefined;
    else if (kind === 'info') device.listed = listed(parse(text)?.cameras);
    else if (kind === 'cam' && last === 'state' && NAME.test(camera)) told(device, camera, parse(text));
    if (!device.presence && !device.listed.length && !device.cameras.size) this.devices.delete(name);
    this.#sorted = null;
  }

  /** Every camera, in order. Where a device has one, it goes by the device's name. @returns {Listed[]} */
  cameras() {
    if (this.#sorted) return this.#sorted;
    const all = [...this.devices].flatMap(([device, { presence, listed, cameras }]) => {
      const ids = listed.length ? listed : [...cameras.keys()];
      return ids.map((id) => ({ key: `${device}/${id}`, device, name: ids.length > 1 ? `${device} · ${id}` : device, camera: { ...(cameras.get(id) ?? unknown(id)), away: AWAY[presence ?? ''] } }));
    });
    return (this.#sorted = all.sort((a, b) => order.compare(a.key, b.key)));
  }
}

/** @param {Device} device @param {string} id @param {Record<string, any> | null} state */
function told(device, id, state) {
  if (!state) return device.cameras.delete(id);
  if (device.cameras.size >= MOST_CAMERAS && !device.cameras.has(id)) return;
  const text = (/** @type {string} */ field) => (typeof state[field] === 'string' ? state[field] : null);
  const number = (/** @type {string} */ field) => (Number.isFinite(state[field]) ? state[field] : null);
  device.cameras.set(id, {
    ...unknown(id),
    state: ['opening', 'running', 'failed'].includes(state.state) ? state.state : 'idle',
    enabled: state.enabled !== false,
    error: text('error'),
    viewers: number('viewers') ?? 0,
    max_viewers: number('max_viewers') ?? 0,
    source: text('source'),
    encoder: text('encoder'),
    width: number('width'),
    height: number('height'),
    fps: number('fps'),
    bitrate_kbps: number('bitrate_kbps'),
    low: state.low,
  });
}

/** @type {(id: string) => Camera} */
function unknown(id) {
  const [error, retry_in_ms, source, width, height, fps, encoder, encoder_reason, bitrate_kbps] = Array(9).fill(null);
  return { id, state: 'idle', enabled: true, viewers: 0, max_viewers: 0, error, retry_in_ms, source, width, height, fps, encoder, encoder_reason, bitrate_kbps };
}

/** @param {unknown} cameras @returns {string[]} */
function listed(cameras) {
  if (!Array.isArray(cameras)) return [];
  return cameras.slice(0, MOST_CAMERAS).map((camera) => camera?.id).filter((id) => typeof id === 'string' && NAME.test(id));
}
