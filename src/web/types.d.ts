/** The shapes the page's modules share. Read by the type checker only, not served. */

/* connection.js */

/** Why it does not play; `retryAfter` in ms when the device named a time. */
export interface Reason { code: string; title?: string; message?: string; retryAfter?: number }

/** `session` counts the attempts of a tile; `lost` is what the device said when its camera went, null while the camera is there. */
export interface Off { is: 'off'; session: number }
export interface Connecting { is: 'connecting'; session: number; failures: number; answered: boolean; lost: string | null; giveUpAt: number }
/** `tries` are the ICE restarts since something happened, `restarts` all. */
export interface Live { is: 'live'; session: number; failures: number; restarts: number; restartAt: number | null; restartedAt: number; tries: number; since: number; picture: boolean; lost: string | null }
export interface Restoring extends Omit<Live, 'is'> { is: 'restoring'; giveUpAt: number }
export interface Waiting { is: 'waiting'; session: number; failures: number; until: number; why: Reason }
export interface Paused { is: 'paused'; session: number }
export interface Ended { is: 'ended'; session: number; since: number; why: Reason }
export type Connected = Connecting | Live | Restoring;
export type State = Off | Connected | Waiting | Paused | Ended;

export type Event =
  | { type: 'play' | 'stop' | 'hidden' | 'shown' | 'online' | 'time' }
  /** Here or there the network is another than before. */
  | { type: 'moved' }
  | { type: 'resumed' }
  /** To be played when it is seen. */
  | { type: 'later' }
  /** The camera can be played, as far as is known. */
  | { type: 'ready' }
  | { type: 'answered' | 'connected' | 'disconnected' | 'failed' | 'picture' | 'stalled' | 'back' }
  | { type: 'lost'; message: string }
  /** The device said no or bye, or is not there, or the browser cannot. */
  | { type: 'trouble'; why: Reason };

/** `now` in ms of any clock that only moves forward, `random` from 0 to 1. */
export type Step<S extends State = State> = (state: S, now: number, random: number) => State;

/* signaling.js, peer.js */

export interface Message { type: string; id?: string; session?: string; [field: string]: any }
export interface Welcome extends Message { ice_servers?: RTCIceServer[] }
/** Gets every message of a session, `{ type: 'resumed' }` when the link came back, `{ type: 'closed' }` when it did not. */
export type Receive = (message: Message) => void;
/** Calls `then` after `ms`, unless what it returns is called before. */
export type After = (ms: number, then: () => void) => () => void;
export type Tell = (event: Event) => void;
/** How the sessions with one device are made: `Signaling` or `MqttSignaling`. */
export interface Link {
  /** Rejected with a `Reason`. */
  welcome(): Promise<Welcome>;
  join(session: string, receive: Receive): void;
  leave(session: string): void;
  /** Gives the message's id. */
  send(session: string, type: string, fields?: object): string;
  /** `moved`: what is under way is no good any more. */
  check(moved?: boolean): void;
  close(): void;
}

/* stats.js */

/** The device's answer to `stats`. */
export interface Said extends Message { quality?: string; rendition?: string | null; thinned?: boolean; estimate_kbps?: number | null; sent_kbps?: number; loss?: number; round_trip_ms?: number | null; path?: { transport: string; local_type: string; remote_relayed: boolean } | null }
export interface Entry { id: string; type: string; [field: string]: any }
/** As RTCStatsReport, which is a Map. */
export interface Report { values(): Iterable<Entry> }

/* words.js */

/** One entry of `/api/cameras`. */
export interface Camera {
  id: string;
  state: 'idle' | 'opening' | 'running' | 'failed';
  /** False: its owner switched it off. */
  enabled?: boolean;
  /** Its device is not there, as a broker tells. */
  away?: Away;
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
  /** The smaller rendition, where the device knows of such. */
  low?: { state: string; reason?: string };
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

/* mqtt.js */

export type Packet =
  | { type: 'connack' | 'disconnect'; code: number; reason?: string; keepAlive?: number; receiveMaximum?: number; qos?: number; longest?: number }
  | { type: 'publish'; topic: string; id: number; retained: boolean; payload: Uint8Array }
  | { type: 'puback'; id: number; code: number }
  | { type: 'suback'; id: number; codes: number[] }
  | { type: 'pingresp' };
/** Told once what the broker said to a message: 0, or a reason code. */
export type Published = (code: number) => void;
/** Why a connection is over; without a code nobody said. */
export interface Over { code?: number; reason?: string }
/** What is used of a WebSocket. */
export type MqttSocket = Pick<WebSocket, 'binaryType' | 'bufferedAmount' | 'readyState' | 'send' | 'close' | 'onopen' | 'onmessage' | 'onclose'>;
/** `own`: what is said to us alone. */
export interface Filter { topic: string; own?: boolean }
export interface MqttSettings {
  client: string;
  user?: string;
  password?: string;
  filters: Filter[];
  after: After;
  up(): void;
  denied(topic: string, code: number): void;
  message(topic: string, text: string, retained: boolean): void;
  /** `heard`: anything came from the broker. */
  ended(why: Over & { heard: boolean }): void;
}

/* broker.js */

/** `barred`: the browser lets this page reach no such broker. */
export interface BrokerState { is: 'connecting' | 'up' | 'waiting' | 'refused' | 'barred'; title: string; detail?: string; until?: number }
export interface BrokerSettings {
  url: string;
  client: string;
  /** Asked for at each connection, as is `who`. */
  filters(): Filter[];
  who(): { user?: string; password?: string };
  changed(state: BrokerState): void;
  message(topic: string, text: string, retained: boolean): void;
  open(url: string): MqttSocket;
  after: After;
  now(): number;
}

/* fleet.js */

export type Presence = 'online' | 'offline' | 'stopped';
/** `listed`: the cameras it says it has; `cameras`: what it says of each. */
/** Why a device is not there, and the word for it. */
export interface Away extends Reason { word: string; tone: 'bad' | 'calm' }
export interface Device { presence: Presence | undefined; listed: string[]; cameras: Map<string, Camera> }
/** A camera of some device, under a key and a name of its own. */
export interface Listed { key: string; device: string; name: string; camera: Camera }

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
  hint: HTMLElement;
  stats: HTMLElement;
  name: HTMLAnchorElement;
  state: HTMLElement;
  word: HTMLElement;
  watching: HTMLElement;
  controls: HTMLElement;
  quality: HTMLSelectElement;
  stop: HTMLButtonElement;
  shot: HTMLButtonElement;
  info: HTMLButtonElement;
  pip: HTMLButtonElement;
  full: HTMLButtonElement;
}

/** What a tile needs of the page around it. */
export interface Around {
  signaling: Link;
  /** Says a sentence to screen readers. */
  announce(sentence: string): void;
  /** The tile's connection changed. */
  changed(tile: import('./tile.js').Tile): void;
  /** The tile is to be shown alone. */
  open(tile: import('./tile.js').Tile): void;
}
