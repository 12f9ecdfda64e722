// In a page: watches stream 1 of Janus' streaming plugin over its HTTP API.
async (url) => {
  const video = Object.assign(document.createElement('video'), { autoplay: true, muted: true, playsInline: true, width: 1280 });
  document.body.append(video);
  const name = () => Math.random().toString(36).slice(2);
  const post = async (path, body) => {
    const answer = await fetch(url + path, { method: 'POST', body: JSON.stringify({ transaction: name(), ...body }) });
    return answer.json();
  };
  const { data: session } = await post('', { janus: 'create' });
  const { data: handle } = await post(`/${session.id}`, { janus: 'attach', plugin: 'janus.plugin.streaming' });
  const event = async () => {
    for (;;) {
      const said = await (await fetch(`${url}/${session.id}?maxev=1`)).json();
      if (said.janus === 'event') return said;
    }
  };
  const peer = new RTCPeerConnection();
  peer.ontrack = ({ receiver, streams }) => {
    receiver.jitterBufferTarget = 0;
    video.srcObject = streams[0];
  };
  peer.onicecandidate = ({ candidate }) => post(`/${session.id}/${handle.id}`, { janus: 'trickle', candidate: candidate?.candidate ? candidate : { completed: true } });
  await post(`/${session.id}/${handle.id}`, { janus: 'message', body: { request: 'watch', id: 1 } });
  const { jsep } = await event();
  await peer.setRemoteDescription(jsep);
  await peer.setLocalDescription();
  await post(`/${session.id}/${handle.id}`, { janus: 'message', body: { request: 'start' }, jsep: peer.localDescription });
}
