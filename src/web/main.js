// @ts-check
/** The page: which cameras are there, which are shown, and who may watch. */

import * as access from './access.js';
import { cameras } from './api.js';
import { listenToKeys } from './keys.js';
import { Signaling, onMove } from './signaling.js';
import { Tile } from './tile.js';

/** @import { Around, Board } from './types.d.ts' */

const REFRESH_MS = 5_000;

/** @type {(id: string) => any} */
const byId = (id) => document.getElementById(id);
/** @type {HTMLElement[]} */
const [grid, notice, announcer, form, all, playAll] = ['cameras', 'notice', 'announcer', 'access', 'all', 'play-all'].map(byId);
/** @type {HTMLDialogElement} */
const help = byId('help');
/** @type {HTMLInputElement} */
const field = byId('token');

access.takeFromFragment('token');
const signaling = new Signaling({ url: new URL('ws', location.href).href.replace(/^http/, 'ws'), token: access.token });
/** @type {Around} */
const around = { signaling, changed, open: (tile) => go(tile.id), announce: (sentence) => (announcer.textContent = sentence) };
/** @type {Map<string, Tile>} */
const tiles = new Map();
let device = '';
/** The camera shown alone, '' for all. */
let alone = '';
/** The one the keys are for. @type {Tile | undefined} */
let chosen;
let refreshing = 0;

listen();
route();
refresh();
setInterval(() => tiles.forEach((tile) => tile.player.state.is === 'waiting' && tile.render()), 1_000);

async function refresh() {
  clearTimeout(refreshing);
  const answer = await cameras();
  clearTimeout(refreshing);
  if (!document.hidden) refreshing = setTimeout(refresh, REFRESH_MS);
  form.hidden = answer.is !== 'unauthorized';
  // A tile that plays says so itself.
  const silent = answer.is === 'unreachable' && !shown().some((tile) => tile.busy);
  notify(silent ? 'The device does not answer.' : answer.is === 'refused' ? answer.message : '');
  if (answer.is === 'unauthorized') askForToken(answer.message);
  if (answer.is === 'board') show(answer.board);
}

/** @param {Board} board */
function show(board) {
  device = board.device;
  const found = new Map(board.cameras.map((camera) => [camera.id, camera]));
  for (const id of found.keys()) tileOf(id);
  for (const [id, tile] of tiles) {
    tile.update(found.get(id));
    if (!found.has(id) && !tile.busy && id !== alone) remove(tile);
  }
  if (!found.size) notify('No camera is configured on this device.');
  layOut();
}

/** @param {string} id */
function tileOf(id) {
  const known = tiles.get(id);
  if (known) return known;
  const tile = new Tile(id, around);
  tiles.set(id, tile);
  grid.append(tile.element);
  for (const event of ['focusin', 'pointerdown']) tile.element.addEventListener(event, () => (chosen = tile));
  return tile;
}

/** @param {Tile} tile */
function remove(tile) {
  tile.remove();
  tiles.delete(tile.id);
}

function shown() {
  return [...tiles.values()].filter(({ id }) => !alone || id === alone);
}

/** The last part of the path names a camera; without one all are shown. */
function route() {
  alone = location.pathname.split('/').pop() ?? '';
  if (alone) tileOf(alone).play();
  for (const tile of tiles.values()) if (!shown().includes(tile)) tile.stop();
  layOut();
}

/** @param {string} name a camera, or '' for all */
function go(name) {
  history.pushState(null, '', name || './');
  route();
  refresh();
  grid.focus();
}

function layOut() {
  const visible = shown();
  for (const tile of tiles.values()) tile.element.hidden = !visible.includes(tile);
  grid.dataset.alone = String(visible.length === 1);
  all.hidden = !alone || (tiles.size === 1 && !!tiles.get(alone)?.camera);
  playAll.hidden = visible.length < 2;
  playAll.textContent = visible.every((tile) => tile.wanted) ? 'Stop all' : 'Play all';
  byId('device').textContent = device || 'edgecam';
  document.title = [alone, device || 'edgecam'].filter(Boolean).join(' · ');
}

/** @param {Tile} tile */
function changed({ player: { state } }) {
  // The device says what it did about it: who watches, which encoder, how the camera is, or that a token is needed.
  if (['live', 'off', 'waiting', 'ended'].includes(state.is)) setTimeout(refresh, 300);
  layOut();
}

/** @param {string} message */
function askForToken(message) {
  byId('access-message').textContent = access.token() && message;
  if (!form.contains(document.activeElement) && !help.open) field.focus();
}

/** A line above the cameras. @param {string} sentence */
function notify(sentence) {
  notice.hidden = !sentence;
  if (notice.textContent !== sentence) notice.textContent = sentence;
}

function listen() {
  addEventListener('popstate', route);
  listenToKeys(() => shown().find((tile) => tile === chosen) ?? shown()[0]);
  onMove(() => wake(true));
  document.addEventListener('visibilitychange', () => wake(false));
  // A page kept for the back button would keep its sessions.
  addEventListener('pagehide', () => signaling.close());
  playAll.onclick = () => {
    const stop = shown().every((tile) => tile.wanted);
    for (const tile of shown()) stop ? tile.stop() : tile.play();
  };
  all.onclick = (event) => {
    event.preventDefault();
    go('');
  };
  form.onsubmit = onToken;
}

/** @param {Event} event */
async function onToken(event) {
  event.preventDefault();
  access.keep('token', field.value);
  field.value = '';
  signaling.close();
  await refresh();
  for (const tile of tiles.values()) if (tile.player.state.is === 'ended') tile.play();
}

/** @param {boolean} moved */
function wake(moved) {
  clearTimeout(refreshing);
  if (document.hidden && !moved) return;
  signaling.check(moved);
  for (const tile of tiles.values()) tile.player.tell({ type: moved ? 'moved' : 'online' });
  refresh();
}
