// @ts-check
/** From the browser's statistics to figures a person can read. */

/** @import { Camera, Entry, Report, Said } from './types.d.ts' */
/** @typedef {ReturnType<typeof sample>} Sample the counters of one moment */
/** @typedef {ReturnType<typeof compare>} Figures of the time between two samples */

const UNKNOWN = 'not known yet';

/** @param {Report} report */
export function sample(report) {
  const entries = new Map([...report.values()].map((entry) => [entry.id, entry]));
  const inbound = [...entries.values()].find(({ type, kind }) => type === 'inbound-rtp' && kind === 'video');
  const pair = chosenPair(entries);
  const count = (/** @type {string} */ field) => /** @type {number} */ (inbound?.[field] ?? 0);
  return {
    at: count('timestamp'),
    width: count('frameWidth'),
    height: count('frameHeight'),
    decoded: count('framesDecoded'),
    dropped: count('framesDropped'),
    bytes: count('bytesReceived'),
    received: count('packetsReceived'),
    lost: count('packetsLost'),
    repaired: count('retransmittedPacketsReceived'),
    freezes: count('freezeCount'),
    frozen: count('totalFreezesDuration'),
    buffered: count('jitterBufferDelay'),
    emitted: count('jitterBufferEmittedCount'),
    decoding: count('totalDecodeTime'),
    /** ms */
    roundTrip: pair?.currentRoundTripTime === undefined ? null : pair.currentRoundTripTime * 1000,
    codec: codecOf(entries.get(inbound?.codecId)),
    path: pathOf(pair, entries),
  };
}

/** @param {Sample} before @param {Sample} now @param {Said | null} said by the device */
export function compare(before, now, said = null) {
  const seconds = Math.max((now.at - before.at) / 1000, 0.001);
  const received = now.received - before.received;
  // A packet counted lost may still come.
  const lost = Math.max(now.lost - before.lost, 0);
  return {
    ...now,
    said,
    lost: Math.max(now.lost, 0),
    fps: (now.decoded - before.decoded) / seconds,
    kbps: ((now.bytes - before.bytes) * 8) / 1000 / seconds,
    /** percent */
    loss: received + lost > 0 ? (100 * lost) / (received + lost) : 0,
    /** ms a frame */
    buffer: each(now.buffered - before.buffered, now.emitted - before.emitted),
    /** ms a frame */
    decode: each(now.decoding - before.decoding, now.decoded - before.decoded),
  };
}

/** @type {(figures: Figures, camera: Camera | undefined) => [label: string, value: string][]} */
export function lines(figures, camera) {
  const { said } = figures;
  return [
    ['Picture', figures.width ? `${figures.width} × ${figures.height}, ${figures.fps.toFixed(0)} fps` : 'none yet'],
    ['Quality', said?.rendition ? `${said.quality === 'auto' ? 'auto, now ' : ''}${said.rendition}${said.thinned ? '; few pictures: slow network' : ''}` : UNKNOWN],
    ['Bitrate', `${figures.kbps.toFixed(0)} kbit/s${said ? ` of ${said.sent_kbps} sent` : ''}`],
    ['Network', said?.estimate_kbps ? `carries about ${said.estimate_kbps} kbit/s` : UNKNOWN],
    ['Loss', `${figures.loss.toFixed(1)} %, ${figures.lost} in all, ${figures.repaired} repaired${said ? `; camera ${(100 * Number(said.loss)).toFixed(1)} %` : ''}`],
    ['Round trip', `${ms(figures.roundTrip)}${said?.round_trip_ms ? `; camera ${ms(Number(said.round_trip_ms))}` : ''}`],
    ['Jitter buffer', ms(figures.buffer)],
    ['Decoding', `${ms(figures.decode)}, ${figures.dropped} dropped`],
    ['Freezes', figures.freezes ? `${figures.freezes}, ${figures.frozen.toFixed(1)} s in all` : 'none'],
    ['Path', figures.path],
    ['Camera’s side', said?.path ? `${said.path.local_type}, ${String(said.path.transport).toUpperCase()}${said.path.remote_relayed ? ', you behind a relay' : ''}` : UNKNOWN],
    ['Codec', figures.codec],
    ['Encoder', camera?.encoder_reason ?? camera?.encoder ?? UNKNOWN],
    ['Source', camera?.source ?? UNKNOWN],
  ];
}

/** @type {(seconds: number, count: number) => number | null} */
function each(seconds, count) {
  return count > 0 ? (1000 * seconds) / count : null;
}

/** @param {number | null} value */
function ms(value) {
  return value === null ? '–' : `${value.toFixed(value < 10 ? 1 : 0)} ms`;
}

/**
 * Firefox has no `selectedCandidatePairId`.
 * @type {(entries: Map<string, Entry>) => Entry | undefined}
 */
function chosenPair(entries) {
  const all = [...entries.values()];
  const transport = all.find(({ type, selectedCandidatePairId }) => type === 'transport' && selectedCandidatePairId);
  return entries.get(transport?.selectedCandidatePairId) ?? all.find(({ type, nominated, state }) => type === 'candidate-pair' && nominated && state === 'succeeded');
}

/** @type {(pair: Entry | undefined, entries: Map<string, Entry>) => string} */
function pathOf(pair, entries) {
  const [local, remote] = [entries.get(pair?.localCandidateId), entries.get(pair?.remoteCandidateId)];
  if (!local || !remote) return UNKNOWN;
  const protocol = (local.relayProtocol ?? local.protocol ?? 'udp').toUpperCase();
  const relayed = [local, remote].some(({ candidateType, relayProtocol }) => relayProtocol || candidateType === 'relay');
  return `you ${local.candidateType} → camera ${remote.candidateType}, ${protocol}, ${relayed ? 'relayed' : 'direct'}`;
}

/** @param {Entry | undefined} codec */
function codecOf(codec) {
  if (!codec) return UNKNOWN;
  const profile = /profile-level-id=(\w+)/.exec(codec.sdpFmtpLine ?? '')?.[1];
  return [codec.mimeType?.replace('video/', ''), profile].filter(Boolean).join(' ');
}
