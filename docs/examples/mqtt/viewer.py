"""viewer.py - watches a camera through its broker until the first picture, without a browser

usage: MQTT_URL=mqtts://anna@broker.example.org:8883 viewer.py [DEVICE [CAMERA]]

Files named in the environment: MQTT_PASSWORD_FILE, MQTT_CA_FILE (the broker's CA, where it is not a public one),
TOKEN_FILE (from `edgecam token`). Needs paho-mqtt 2 and aiortc.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from aiortc import RTCPeerConnection, RTCSessionDescription
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE_S = 20


def secret(variable):
    """What the file named by an environment variable holds; nothing where none is named."""
    return Path(os.environ[variable]).read_text().strip() if variable in os.environ else None


async def watch(device, camera):
    loop, url = asyncio.get_running_loop(), urlsplit(os.environ["MQTT_URL"])
    me = url.username or f"viewer-{os.getpid()}"
    requests, responses = f"edgecam/{device}/rpc/{me}", f"edgecam/{device}/rsp/{me}"
    ready, answers = loop.create_future(), asyncio.Queue()

    # Paho calls these in a thread of its own.
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_connect = lambda *_: client.subscribe(responses, qos=1)
    client.on_subscribe = lambda *_: loop.call_soon_threadsafe(lambda: ready.done() or ready.set_result(None))
    client.on_message = lambda _, __, message: loop.call_soon_threadsafe(answers.put_nowait, json.loads(message.payload))
    if url.username:
        client.username_pw_set(url.username, secret("MQTT_PASSWORD_FILE"))
    if url.scheme == "mqtts":
        client.tls_set(ca_certs=os.environ.get("MQTT_CA_FILE"))

    def say(**message):
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic, properties.MessageExpiryInterval = responses, 30
        client.publish(requests, json.dumps({"v": 1, "session": "first", **message}), qos=1, properties=properties)

    await loop.run_in_executor(None, client.connect, url.hostname, url.port or 8883)
    client.loop_start()
    await ready

    peer = RTCPeerConnection()
    video = peer.addTransceiver("video", direction="recvonly").receiver
    await peer.setLocalDescription(await peer.createOffer())  # with all candidates in it
    offer = {"type": peer.localDescription.type, "sdp": peer.localDescription.sdp}
    started = time.monotonic()
    token = secret("TOKEN_FILE")
    say(type="offer", id="1", camera=camera, description=offer, **({"token": token} if token else {}))
    try:
        while (answer := await answers.get())["type"] != "answer":
            if answer["type"] == "error":
                sys.exit(f"the camera refused: {answer['message']}")
        print(f"answer after {(time.monotonic() - started) * 1000:.0f} ms")
        await peer.setRemoteDescription(RTCSessionDescription(**answer["description"]))
        picture = await video.track.recv()
        print(f"first picture after {(time.monotonic() - started) * 1000:.0f} ms: {picture.width}x{picture.height}")
    finally:
        say(type="bye")
        client.disconnect()
        client.loop_stop()
        await peer.close()


asyncio.run(asyncio.wait_for(watch(*(sys.argv[1:] + ["frontdoor", "front"][len(sys.argv) - 1 :])), PATIENCE_S))
