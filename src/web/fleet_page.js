// @ts-check
/** The page of a fleet: every camera of every device that a broker knows of. Few are tiles; many are rows, which become tiles when they play. */

import * as access from './access.js';
import { Broker } from './broker.js';
import { START } from './connection.js';
import { AWAY, Fleet } from './fleet.js';
import { listenToKeys } from './keys.js';
import { MqttSignaling } from './mqtt_signaling.js';
import { byClock, onMove, parse } from './signaling.js';
import { Tile } from './tile.js';
import { badge, title, unable } from './words.js';

/** @import { BrokerState, Listed } from './types.d.ts' */
/** @typedef {{ element: HTMLElement, said: string }} Row */

/** More tiles than these are no overview. */
const FEW = 24;
/** Messages come in hundreds; nobody reads that fast. */
const RENDER_MS = 100;
/** What a picture may stand before a device that is offline counts as gone: without the broker alone it plays on. */
const GONE_MS = 2_000;
/** How long the broker may take to tell of the first device. */
const FIRST_MS = 2_000;

/** @type {(id: string) => any} */
const byId = (id) => document.getElementById(id);
/** @type {HTMLElement[]} */
const [main, stage, rows, form, announcer, notice, all, playAll] = ['fleet', 'cameras', 'rows', 'access', 'announcer', 'notice', 'all', 'play-all'].map(byId);
/** @type {HTMLInputElement[]} */
const [filter, user, password, token] = ['filter', 'user', 'password', 'token'].map(byId);
/** @param {string} name */
const setting = (name) => document.querySelector(`meta[name="edgecam-${name}"]`)?.getAttribute('content') ?? '';
const [prefix, heading] = [setting('prefix'), setting('title')];

access.takeFromFragment('user', 'password', 'token');
const fleet = new Fleet(prefix);
/** @type {Map<string, MqttSignaling>} */
const links = new Map();
/** @type {Map<string, Tile>} */
const tiles = new Map();
/** @type {Map<string, Row>} */
const lines = new Map();
/** The camera shown alone, '' for all; played once when it is known. */
let [alone, unplayed] = ['', ''];
/** Whom the keys are for. @type {Tile | undefined} */
let chosen;
let [rendering, upSince] = [0, 0];

const page = `page-${Math.random().toString(36).slice(2, 12)}`;
/** Our level in a device's topics. Access lists can name users and client names, so it has to be the one or the other. */
const client = () => (/^[\w-]{1,64}$/.test(access.kept('user')) ? access.kept('user') : page);
const broker = new Broker({
  url: setting('broker'),
  client: page,
  filters: () => [{ topic: `${prefix}/+/rsp/${client()}`, own: true }, ...fleet.topics.map((topic) => ({ topic }))],
  who: () => ({ user: access.kept('user'), password: access.kept('password') }),
  open: (url) => new WebSocket(url, 'mqtt'),
  after: byClock,
  now: () => performance.now(),
  message: hear,
  changed: onBroker,
});

listen();
route();
broker.start();
setInterval(tick, 1_000);

/** @type {(topic: string, text: string, retained: boolean) => void} */
function hear(topic, text, retained) {
  const [device = '', kind] = topic.slice(prefix.length + 1).split('/');
  if (kind !== 'rsp') {
    fleet.hear(topic, text);
    return renderSoon();
  }
  const message = parse(text);
  // What is retained was said to somebody else, some other day.
  if (message && !retained) links.get(device)?.receive(message);
}

/** @param {BrokerState} state */
function onBroker(state) {
  if (state.is === 'refused') ask('broker', [state.title, state.detail].filter(Boolean).join(': '));
  if (state.is === 'up') {
    if (!upSince) upSince = performance.now();
    if (!byId('for-broker').hidden) form.hidden = true;
    tellAll('online');
  }
  renderSoon();
}

/** @param {'online' | 'moved'} type */
function tellAll(type) {
  for (const { player } of tiles.values()) player.tell({ type });
}

/** @param {string} device */
function linkTo(device) {
  const known = links.get(device);
  if (known) return known;
  const away = () => AWAY[fleet.devices.get(device)?.presence ?? ''];
  const link = new MqttSignaling({ broker, topic: `${prefix}/${device}`, client, token: () => tokenFor(device), away, after: byClock });
  links.set(device, link);
  return link;
}

/** Each device has tokens of its own: the one that names it, else one that cannot be read. @param {string} device */
function tokenFor(device) {
  const all = access.token().split(/\s+/);
  return all.find((token) => audience(token) === device) ?? all.find((token) => audience(token) === null) ?? '';
}

/** @param {string} token */
function audience(token) {
  try {
    return JSON.parse(atob(token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/'))).aud;
  } catch {
    return null;
  }
}

/** @param {Listed} listed */
function tileOf({ key, device, name, camera }) {
  const known = tiles.get(key);
  if (known) return known;
  const around = {
    signaling: linkTo(device),
    announce: (/** @type {string} */ sentence) => (announcer.textContent = sentence),
    changed: (/** @type {Tile} */ tile) => onTile(device, tile),
    open: () => (location.hash = `camera=${key}`),
  };
  const tile = new Tile(camera.id, around, name, `#camera=${key}`);
  tiles.set(key, tile);
  for (const event of ['focusin', 'pointerdown']) tile.element.addEventListener(event, () => (chosen = tile));
  return tile;
}

/** @param {string} device @param {Tile} tile */
function onTile(device, { player: { state } }) {
  if (state.is === 'ended' && state.why.code.startsWith('token-')) ask('device', `${device}: ${state.why.message}`);
  renderSoon();
}

function renderSoon() {
  rendering ||= setTimeout(render, RENDER_MS);
}

function render() {
  clearTimeout(rendering);
  rendering = 0;
  const every = fleet.cameras();
  const wanted = filter.value.toLowerCase().split(/\s+/);
  const matching = every.filter((listed) => (alone ? listed.key === alone : matches(listed, wanted)));
  const few = matching.length <= FEW;
  const visible = new Set(matching);
  // What plays stays, whatever is looked for.
  const staged = every.filter((listed) => (visible.has(listed) && few) || (!alone && (tiles.get(listed.key)?.player.state.is ?? 'off') !== 'off'));
  const tiled = new Set(staged);
  arrange(stage, staged.map((listed) => tileOf(listed).element));
  arrange(rows, matching.filter((listed) => !tiled.has(listed)).map(rowOf));
  for (const listed of staged) tileOf(listed).update(listed.camera);
  const keys = new Set(staged.map(({ key }) => key));
  for (const [key, tile] of tiles) {
    if (keys.has(key)) continue;
    tile.remove();
    tiles.delete(key);
  }
  // What the broker forgot.
  for (const map of [lines, links]) for (const key of map.keys()) if (!fleet.devices.has(key.split('/')[0])) map.delete(key);
  if (unplayed && keys.has(unplayed)) tiles.get((unplayed = '') || alone)?.play();
  layOut(every, matching, staged);
}

/** @param {Listed[]} every @param {Listed[]} matching @param {Listed[]} staged */
function layOut(every, matching, staged) {
  const devices = [...fleet.devices.values()];
  const online = devices.filter(({ presence }) => presence === 'online').length;
  const found = matching.length < every.length ? `${matching.length} of ${every.length} cameras` : '';
  byId('count').textContent = [`${online} of ${devices.length} ${devices.length === 1 ? 'device' : 'devices'} online`, found].filter(Boolean).join(' · ');
  byId('overview').hidden = !!alone || !devices.length;
  filter.hidden = every.length < 8;
  stage.dataset.alone = String(staged.length === 1 && matching.length === 1);
  all.hidden = !alone;
  playAll.hidden = staged.length < 2;
  playAll.textContent = staged.every(({ key }) => tiles.get(key)?.wanted) ? 'Stop all' : 'Play all';
  byId('title').textContent = heading;
  document.title = [alone, heading].filter(Boolean).join(' · ');
  notify(every.length);
}

/** What is wrong, above the cameras. @param {number} cameras */
function notify(cameras) {
  const { state } = broker;
  let [sentence, detail] = [title(state, performance.now()), state.detail ?? ''];
  if (state.is === 'up' && !sentence && performance.now() - upSince > FIRST_MS) {
    if (!cameras) [sentence, detail] = [`No camera is known below ${prefix}/`, `Is the prefix right, has a device been online yet, and may this user read ${prefix}/+/info?`];
    else if (unplayed) sentence = `There is no camera ${alone}`;
  }
  notice.hidden = !sentence || state.is === 'refused';
  for (const [id, text] of [['notice-title', sentence], ['notice-detail', detail]]) if (byId(id).textContent !== text) byId(id).textContent = text;
}

/** @param {Listed} listed @param {string[]} wanted each of these has to be in the names or in what is said of it */
function matches({ key, camera }, wanted) {
  const text = `${key} ${badge(START, camera).word}`.toLowerCase();
  return wanted.every((word) => text.includes(word));
}

/** @param {Listed} listed */
function rowOf({ key, name, camera }) {
  const row = lines.get(key) ?? newRow(key);
  const { word, tone } = badge(START, camera);
  const fit = !unable(camera);
  const now = fit && camera.viewers ? `${camera.viewers} watching` : word;
  const looks = !fit || tone === 'bad' ? tone : camera.state === 'running' ? 'live' : 'good';
  const said = `${name}, ${now}`;
  if (said !== row.said) {
    row.said = said;
    const button = /** @type {HTMLElement} */ (row.element.firstElementChild);
    button.dataset.tone = looks;
    button.toggleAttribute('data-unable', !fit);
    [button.children[1].textContent, button.children[2].textContent] = [name, now];
  }
  return row.element;
}

/** @param {string} key @returns {Row} */
function newRow(key) {
  const element = /** @type {HTMLElement} */ (byId('row').content.firstElementChild.cloneNode(true));
  element.dataset.key = key;
  const row = { element, said: '' };
  lines.set(key, row);
  return row;
}

/** Puts these in, in this order, and takes the others out. Nothing that is there is moved: a video that moves stops. @param {HTMLElement} into @param {HTMLElement[]} elements */
function arrange(into, elements) {
  const wanted = new Set(elements);
  for (const child of [...into.children]) if (!wanted.has(/** @type {HTMLElement} */ (child))) child.remove();
  let at = into.firstElementChild;
  for (const element of elements) {
    if (element === at) at = at.nextElementSibling;
    else into.insertBefore(element, at);
  }
}

function tick() {
  for (const listed of fleet.cameras()) {
    const tile = tiles.get(listed.key);
    if (!tile) continue;
    const { state, standing } = tile.player;
    const gone = state.is === 'restoring' || (state.is === 'live' && standing >= GONE_MS) || (state.is === 'connecting' && !state.answered);
    if (gone && listed.camera.away) tile.player.tell({ type: 'trouble', why: listed.camera.away });
    if (state.is === 'waiting' || state.is === 'ended') tile.update(listed.camera);
  }
  notify(fleet.cameras().length);
}

/** @param {'broker' | 'device'} who wants to know @param {string} message */
function ask(who, message) {
  form.hidden = false;
  for (const one of ['broker', 'device']) byId(`for-${one}`).hidden = one !== who;
  byId('access-message').textContent = message;
  byId('not-now').hidden = who === 'broker';
  if (!form.contains(document.activeElement)) (who === 'broker' ? user : token).focus();
}

/** @param {Event} event */
function onAnswer(event) {
  event.preventDefault();
  form.hidden = true;
  if (!byId('for-broker').hidden) {
    access.keep('user', user.value);
    access.keep('password', password.value);
    return broker.start();
  }
  // A new one for a device takes the place of its old one.
  const others = access.token().split(/\s+/).filter((old) => audience(old) !== audience(token.value));
  access.keep('token', [...others, token.value.trim()].join(' '));
  token.value = '';
  for (const tile of tiles.values()) if (tile.player.state.is === 'ended') tile.play();
}

/** The fragment names a camera; without one all are shown. */
function route() {
  alone = unplayed = new URLSearchParams(location.hash.slice(1)).get('camera') ?? '';
  for (const [key, tile] of tiles) if (alone && key !== alone) tile.stop();
  render();
  main.focus();
}

function listen() {
  addEventListener('hashchange', route);
  onMove(() => {
    broker.hurry();
    tellAll('moved');
  });
  document.addEventListener('visibilitychange', () => document.hidden || broker.hurry());
  // A page kept for the back button would keep its sessions.
  addEventListener('pagehide', () => {
    for (const link of links.values()) link.close();
    broker.close();
  });
  addEventListener('pageshow', ({ persisted }) => persisted && broker.start());
  listenToKeys(() => (chosen?.element.isConnected ? chosen : tiles.values().next().value));
  filter.oninput = render;
  form.onsubmit = onAnswer;
  byId('not-now').onclick = () => (form.hidden = true);
  playAll.onclick = () => {
    const stop = [...tiles.values()].every((tile) => tile.wanted);
    for (const tile of tiles.values()) stop ? tile.stop() : tile.play();
  };
  rows.onclick = ({ target }) => {
    const key = /** @type {HTMLElement} */ (target).closest('li')?.dataset.key;
    const listed = fleet.cameras().find((listed) => listed.key === key);
    if (!listed) return;
    const tile = tileOf(listed);
    tile.play();
    render();
    tile.focus();
    tile.element.scrollIntoView({ block: 'nearest' });
  };
}
