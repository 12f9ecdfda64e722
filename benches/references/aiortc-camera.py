"""aiortc as a camera's server: WHEP in front of one H.264 clip, sent without encoding it again.

usage: aiortc-camera.py CLIP PORT

aiortc has no stream that many viewers share: every viewer's sender cuts the same pictures into packets anew.
"""

import asyncio
import fractions
import sys
import uuid

import av
from aiohttp import web
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCRtpSender, RTCSessionDescription

FPS = 30
CLOCK = fractions.Fraction(1, 90_000)


class Clip:
    """Reads the clip for ever, at its own speed, and hands each picture to whoever watches."""

    def __init__(self, path):
        self.path = path
        self.watchers = set()

    async def run(self):
        loop = asyncio.get_running_loop()
        start, number = loop.time(), 0
        while True:
            with av.open(self.path, format="h264", options={"framerate": str(FPS)}) as container:
                for packet in container.demux(video=0):
                    if packet.size == 0:
                        continue
                    data = bytes(packet)
                    await asyncio.sleep(start + number / FPS - loop.time())
                    for watcher in self.watchers:
                        watcher.offer(data, number * 90_000 // FPS)
                    number += 1


class Picture(MediaStreamTrack):
    """One viewer's track of encoded pictures."""

    kind = "video"

    def __init__(self, clip):
        super().__init__()
        self.queue = asyncio.Queue(maxsize=30)
        self.clip = clip
        clip.watchers.add(self)

    def offer(self, data, pts):
        if not self.queue.full():
            self.queue.put_nowait((data, pts))

    async def recv(self):
        data, pts = await self.queue.get()
        packet = av.Packet(data)
        packet.pts, packet.time_base = pts, CLOCK
        return packet

    def stop(self):
        super().stop()
        self.clip.watchers.discard(self)


async def offer(request):
    app = request.app
    peer, track = RTCPeerConnection(), Picture(app["clip"])
    sender = peer.addTrack(track)
    h264 = [codec for codec in RTCRtpSender.getCapabilities("video").codecs if codec.mimeType == "video/H264"]
    for transceiver in peer.getTransceivers():
        if transceiver.sender == sender:
            transceiver.setCodecPreferences(h264)
    await peer.setRemoteDescription(RTCSessionDescription(sdp=await request.text(), type="offer"))
    await peer.setLocalDescription(await peer.createAnswer())
    name = uuid.uuid4().hex
    app["sessions"][name] = (peer, track)
    headers = {"Location": f"/whep/camera/{name}"}
    return web.Response(
        status=201, headers=headers, content_type="application/sdp", text=peer.localDescription.sdp
    )


async def leave(request):
    peer, track = request.app["sessions"].pop(request.match_info["name"])
    track.stop()
    await peer.close()
    return web.Response()


async def main():
    app = web.Application()
    app["clip"], app["sessions"] = Clip(sys.argv[1]), {}
    app.add_routes([web.post("/whep/camera", offer), web.delete("/whep/camera/{name}", leave)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[2])).start()
    await app["clip"].run()


asyncio.run(main())
