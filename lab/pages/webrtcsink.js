// In a page: watches the first producer of webrtcsink's signalling server.
async (url) => {
  const video = Object.assign(document.createElement('video'), { autoplay: true, muted: true, playsInline: true, width: 1280 });
  document.body.append(video);
  const open = () =>
    new Promise((resolve, reject) => {
      const socket = new WebSocket(url);
      socket.onopen = () => resolve(socket);
      socket.onerror = reject;
    });
  const socket = await open();
  const say = (message) => socket.send(JSON.stringify(message));
  const peer = new RTCPeerConnection();
  let sessionId;
  peer.ontrack = ({ receiver, streams }) => {
    receiver.jitterBufferTarget = 0;
    video.srcObject = streams[0];
  };
  peer.onicecandidate = ({ candidate }) => {
    if (candidate?.candidate) say({ type: 'peer', sessionId, ice: { candidate: candidate.candidate, sdpMLineIndex: candidate.sdpMLineIndex } });
  };
  socket.onmessage = async ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === 'welcome') say({ type: 'list' });
    if (message.type === 'list' && message.producers.length) say({ type: 'startSession', peerId: message.producers[0].id });
    if (message.type === 'list' && !message.producers.length) setTimeout(say, 200, { type: 'list' });
    if (message.type === 'sessionStarted') sessionId = message.sessionId;
    if (message.type === 'peer' && message.ice) await peer.addIceCandidate(message.ice);
    if (message.type === 'peer' && message.sdp) {
      await peer.setRemoteDescription(message.sdp);
      await peer.setLocalDescription();
      say({ type: 'peer', sessionId: message.sessionId, sdp: { type: 'answer', sdp: peer.localDescription.sdp } });
    }
  };
}
