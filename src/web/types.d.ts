/** The shapes the page's modules share. Read by the type checker only, not served. */

/* connection.js */

/** Why it does not play; `retryAfter` in ms when the device named a time. */
export interface Reason { code: string; message?: string; retryAfter?: number }

/** `session` counts the attempts of a tile; `lost` is what the device said when its camera went, null while the camera is there. */
export interface Off { is: 'off'; session: number }
export interface Connecting { is: 'connecting'; session: number; failures: number; answered: boolean; lost: string | null; giveUpAt: number }
export interface Live { is: 'live'; session: number; failures: number; restarts: number; since: number; picture: boolean; lost: string | null }
export interface Restoring extends Omit<Live, 'is'> { is: 'restoring'; restartAt: number | null; giveUpAt: number }
export interface Waiting { is: 'waiting'; session: number; failures: number; until: number; why: Reason }
export interface Paused { is: 'paused'; session: number }
export interface Ended { is: 'ended'; session: number; why: Reason }
export type Connected = Connecting | Live | Restoring;
export type State = Off | Connected | Waiting | Paused | Ended;

export type Event =
  | { type: 'play' | 'stop' | 'hidden' | 'shown' | 'online' | 'time' }
  | { type: 'answered' | 'connected' | 'disconnected' | 'failed' | 'picture' | 'stalled' | 'back' }
  | { type: 'lost'; message: string }
  /** The device said no or bye, or is not there, or the browser cannot. */
  | { type: 'trouble'; why: Reason };

/** `now` in ms of any clock that only moves forward, `random` from 0 to 1. */
export type Step<S extends State = State> = (state: S, now: number, random: number) => State;

/* signaling.js, peer.js */

export interface Message { type: string; id?: string; session?: string; [field: string]: any }
export interface Welcome extends Message { ice_servers?: RTCIceServer[] }
/** Gets every message of a session, and `{ type: 'closed' }` when the socket is gone. */
export type Receive = (message: Message) => void;
/** Calls `then` after `ms`, unless what it returns is called before. */
export type After = (ms: number, then: () => void) => () => void;
export type Tell = (event: Event) => void;

/* stats.js */

export interface Entry { id: string; type: string; [field: string]: any }
/** As RTCStatsReport, which is a Map. */
export interface Report { values(): Iterable<Entry> }

/* words.js */

/** One entry of `/api/cameras`. */
export interface Camera {
  id: string;
  state: 'idle' | 'opening' | 'running' | 'failed';
  error: string | null;
  retry_in_ms: number | null;
  viewers: number;
  max_viewers: number;
  source: string | null;
  width: number | null;
  height: number | null;
  fps: number | null;
  encoder: string | null;
  encoder_reason: string | null;
  bitrate_kbps: number | null;
}

/** What stands over the picture. */
export interface Saying {
  title: string;
  detail?: string;
  /** The moment that is counted down to. */
  until?: number;
  /** Something is under way. */
  busy?: boolean;
  /** What the button says; it plays. */
  action?: string;
}

/* api.js */

export interface Board { device: string; cameras: Camera[] }
export type Answer = { is: 'board'; board: Board } | { is: 'unauthorized' | 'refused'; message: string } | { is: 'unreachable' };

/* picture.js */

export interface Video extends HTMLVideoElement {
  /** Safari's own. */
  webkitEnterFullscreen?(): void;
}

/* tile.js: the elements of the template by their `data-part` */

export interface Parts {
  picture: HTMLElement;
  video: Video;
  held: HTMLCanvasElement;
  message: HTMLElement;
  title: HTMLElement;
  detail: HTMLElement;
  again: HTMLButtonElement;
  start: HTMLButtonElement;
  stats: HTMLElement;
  name: HTMLAnchorElement;
  state: HTMLElement;
  word: HTMLElement;
  watching: HTMLElement;
  controls: HTMLElement;
  stop: HTMLButtonElement;
  shot: HTMLButtonElement;
  info: HTMLButtonElement;
  pip: HTMLButtonElement;
  full: HTMLButtonElement;
}

/** What a tile needs of the page around it. */
export interface Around {
  signaling: import('./signaling.js').Signaling;
  /** Says a sentence to screen readers. */
  announce(sentence: string): void;
  /** The tile's connection changed. */
  changed(tile: import('./tile.js').Tile): void;
  /** The tile is to be shown alone. */
  open(tile: import('./tile.js').Tile): void;
}
