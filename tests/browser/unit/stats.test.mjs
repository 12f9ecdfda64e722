import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compare, lines, sample } from '../../../src/web/stats.js';

/** As Chromium reports a playing video. */
function chromium(inbound = {}, more = []) {
  const entries = [
    { id: 'I', type: 'inbound-rtp', kind: 'video', timestamp: 10_000, codecId: 'C', framesDecoded: 300, framesDropped: 2, frameWidth: 1280, frameHeight: 720,
      bytesReceived: 1_000_000, packetsReceived: 1_000, packetsLost: 3, retransmittedPacketsReceived: 3, freezeCount: 0, totalFreezesDuration: 0,
      jitterBufferDelay: 3, jitterBufferEmittedCount: 300, totalDecodeTime: 0.3, ...inbound },
    { id: 'C', type: 'codec', mimeType: 'video/H264', sdpFmtpLine: 'level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f' },
    { id: 'T', type: 'transport', selectedCandidatePairId: 'P' },
    { id: 'Q', type: 'candidate-pair', nominated: true, state: 'succeeded', localCandidateId: 'R', remoteCandidateId: 'R', currentRoundTripTime: 9 },
    { id: 'P', type: 'candidate-pair', nominated: true, state: 'succeeded', localCandidateId: 'L', remoteCandidateId: 'R', currentRoundTripTime: 0.012 },
    { id: 'L', type: 'local-candidate', candidateType: 'relay', protocol: 'udp', relayProtocol: 'tls' },
    { id: 'R', type: 'remote-candidate', candidateType: 'host', protocol: 'udp' },
    ...more,
  ];
  return new Map(entries.map((entry) => [entry.id, entry]));
}

const figures = (after) => compare(sample(chromium()), sample(chromium(after)));

test('rates are of the time between two samples', () => {
  const { fps, kbps } = figures({ timestamp: 12_000, framesDecoded: 360, bytesReceived: 1_500_000 });
  assert.equal(fps, 30);
  assert.equal(kbps, 2_000);
});

test('delays are of the frames between two samples', () => {
  const { buffer, decode } = figures({ timestamp: 11_000, framesDecoded: 330, jitterBufferDelay: 3.24, jitterBufferEmittedCount: 330, totalDecodeTime: 0.33 });
  assert.equal(buffer.toFixed(3), '8.000');
  assert.equal(decode.toFixed(3), '1.000');
});

test('loss is a share of what was sent', () => {
  assert.equal(figures({ timestamp: 11_000, packetsReceived: 1_095, packetsLost: 8 }).loss, 5);
});

test('a packet that comes after it was counted lost makes no negative loss', () => {
  const { loss, lost } = figures({ timestamp: 11_000, packetsReceived: 1_100, packetsLost: -1 });
  assert.equal(loss, 0);
  assert.equal(lost, 0);
});

test('nothing received is no division by nothing', () => {
  const { fps, loss, buffer, decode } = compare(sample(new Map()), sample(new Map()));
  assert.deepEqual({ fps, loss, buffer, decode }, { fps: 0, loss: 0, buffer: null, decode: null });
});

test('the chosen path is told with both ends, and how a relay is reached', () => {
  const { path, roundTrip } = sample(chromium());
  assert.equal(path, 'you relay → camera host, TLS, relayed');
  assert.equal(roundTrip, 12);
});

test('an end on a TURN server counts as relayed, whatever it is called', () => {
  const renamed = chromium();
  renamed.set('L', { ...renamed.get('L'), candidateType: 'prflx' });
  assert.equal(sample(renamed).path, 'you prflx → camera host, TLS, relayed');
});

test('without the transport that names it, the nominated pair is the path', () => {
  const firefox = chromium();
  firefox.delete('T');
  firefox.delete('Q');
  assert.equal(sample(firefox).path, 'you relay → camera host, TLS, relayed');
});

test('what the device says stands beside what the browser measures', () => {
  const said = { quality: 'auto', rendition: 'low', thinned: true, estimate_kbps: 380, sent_kbps: 310, loss: 0.0123, round_trip_ms: 52.3, path: { transport: 'tcp', local_type: 'host', remote_relayed: true } };
  const told = (said) => Object.fromEntries(lines(compare(sample(chromium()), sample(chromium({ timestamp: 11_000, bytesReceived: 1_025_000 })), said), undefined));
  const { Quality, Bitrate, Network, Loss, 'Round trip': trip, 'Camera’s side': side } = told(said);
  assert.deepEqual([Quality, Bitrate, Network], ['auto, now low; few pictures: slow network', '200 kbit/s of 310 sent', 'carries about 380 kbit/s']);
  assert.deepEqual([Loss.split('; ')[1], trip, side], ['camera 1.2 %', '12 ms; camera 52 ms', 'host, TCP, you behind a relay']);
  assert.equal(told({ ...said, quality: 'low', thinned: false }).Quality, 'low');
  for (const odd of [{}, { rendition: {}, sent_kbps: [], loss: 'x', round_trip_ms: {}, path: {}, estimate_kbps: true }]) assert.ok(told(odd), 'whatever a device says');
});

test('the overlay has a line for everything, known or not', () => {
  const known = Object.fromEntries(lines(figures({ timestamp: 11_000, framesDecoded: 330, bytesReceived: 1_250_000 }), {
    encoder: 'x264enc', encoder_reason: 'x264enc, since there is no hardware encoder', source: 'YUYV 1280x720 at 30 fps from /dev/video0',
  }));
  assert.equal(known.Picture, '1280 × 720, 30 fps');
  assert.equal(known.Bitrate, '2000 kbit/s');
  assert.equal(known['Round trip'], '12 ms');
  assert.equal(known.Codec, 'H264 42e01f');
  assert.equal(known.Encoder, 'x264enc, since there is no hardware encoder');
  assert.equal(known.Freezes, 'none');
  for (const [label, value] of lines(compare(sample(new Map()), sample(new Map())), undefined)) assert.ok(value && !value.includes('NaN') && !value.includes('undefined'), `${label}: ${value}`);
});
