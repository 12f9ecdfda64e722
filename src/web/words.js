// @ts-check
/** What the page says. Pure: state and camera go in, sentences come out. */

/** @import { Camera, Live, Reason, Saying, State } from './types.d.ts' */

/**
 * Null when the picture speaks for itself; `standing` is how long there was no new one, in ms.
 * @type {(state: State, camera: Camera | undefined, standing: number) => Saying | null}
 */
export function say(state, camera, standing) {
  switch (state.is) {
    case 'off':
      if (unable(camera)) return why(camera?.away ?? { code: 'disabled' }, camera);
      return camera?.state === 'failed' ? { title: 'The camera does not work', detail: camera.error ?? undefined } : null;
    case 'connecting':
      return { title: 'Connecting', busy: true };
    case 'restoring':
      return { title: 'The connection was interrupted', detail: 'Looking for another way.', busy: true };
    case 'live':
      return sayLive(state, camera, standing);
    case 'paused':
      return { title: 'Paused while it was out of sight' };
    case 'waiting':
      return { ...why(state.why, camera), until: state.until, action: 'Try now' };
    case 'ended':
      return { ...why(state.why, camera), action: unable(camera) ? undefined : 'Try again' };
  }
}

/** It is known that nobody can play it now. @param {Camera | undefined} camera */
export function unable(camera) {
  return !!camera?.away || camera?.enabled === false;
}

/**
 * One or two words on what the tile does, for the line below the picture.
 * @type {(state: State, camera: Camera | undefined) => { word: string, tone: 'live' | 'busy' | 'bad' | 'calm' }}
 */
export function badge(state, camera) {
  switch (state.is) {
    case 'live':
      if (state.lost !== null) return { word: 'Camera gone', tone: 'bad' };
      return state.picture ? { word: 'Live', tone: 'live' } : { word: 'Starting', tone: 'busy' };
    case 'connecting':
      return { word: 'Connecting', tone: 'busy' };
    case 'restoring':
      return { word: 'Interrupted', tone: 'busy' };
    case 'waiting':
      return { word: 'Waiting', tone: 'busy' };
    case 'paused':
    case 'ended':
    case 'off':
      if (camera?.away) return camera.away;
      if (unable(camera)) return { word: 'Switched off', tone: 'calm' };
      if (state.is === 'ended') return { word: 'Ended', tone: 'bad' };
      return camera?.state === 'failed' ? { word: 'Not working', tone: 'bad' } : { word: camera?.state === 'running' ? 'On' : 'Ready', tone: 'calm' };
  }
}

/**
 * A sentence with what is left of the wait.
 * @type {(saying: Saying, now: number) => string}
 */
export function title(saying, now) {
  if (saying.until === undefined) return saying.title;
  return `${saying.title}, trying again in ${Math.max(1, Math.ceil((saying.until - now) / 1000))} s`;
}

/** @type {(state: Live, camera: Camera | undefined, standing: number) => Saying | null} */
function sayLive(state, camera, standing) {
  if (state.lost !== null) return { title: 'Camera unplugged or not answering, waiting for it to come back', detail: state.lost || camera?.error || undefined, busy: true };
  if (!state.picture) return { title: camera?.state === 'running' ? 'Waiting for the first picture' : 'Opening the camera', busy: true };
  return standing >= 3_000 ? { title: 'No new picture', detail: `This one is ${Math.round(standing / 1000)} s old.`, busy: true } : null;
}

/** @type {(reason: Reason, camera: Camera | undefined) => Saying} */
function why(reason, camera) {
  switch (reason.code) {
    case 'full':
      return { title: !camera ? 'All places are taken' : camera.max_viewers === 1 ? 'The only place is taken' : `All ${camera.max_viewers} places are taken` };
    case 'busy':
      return { title: 'Many viewers are connecting just now' };
    case 'shutdown':
    case 'shutting-down':
      return { title: 'The device is stopping or starting again' };
    case 'unreachable':
      return { title: 'The device does not answer' };
    case 'no-answer':
      return { title: 'The device took too long to answer', detail: reason.message };
    case 'disabled':
      return { title: 'The camera is switched off', detail: 'Its owner can switch it on again.' };
    case 'no-route':
    case 'connect-timeout':
      return { title: 'No way through for the video', detail: 'The page arrives, the video does not. A firewall may be between.' };
    case 'lost':
      return { title: 'The connection was lost' };
    case 'stalled':
      return { title: 'No new picture came' };
    case 'no-such-camera':
      return { title: 'This device has no camera of that name' };
    case 'no-common-codec':
      return { title: 'This browser does not play H.264', detail: 'It is the one format this camera sends. Another browser will do.' };
    case 'no-webrtc':
      return { title: 'This browser has WebRTC switched off', detail: 'Without it there is no live picture.' };
    default:
      return { title: reason.title ?? 'The connection ended', detail: reason.message };
  }
}
