#!/bin/sh
# still.sh - takes a still from a camera and writes the JPEG to a file
#
# usage: DEVICE=frontdoor CAMERA=front USERNAME=house still.sh FILE
#
# Host, port, password and certificates come from mosquitto's own files of options, ~/.config/mosquitto_rr and
# ~/.config/mosquitto_sub, one to a line (--host, --port, --username, --pw, --cafile).
set -eu
prefix=${PREFIX:-edgecam}/${DEVICE:-frontdoor}
camera=${CAMERA:-front}
me=${USERNAME:-house}
id=$me-$(date +%s)-$$

# The picture is not retained: whoever comes late misses it. So first a mailbox at the broker, which keeps what comes for a
# minute; then the trigger; then the post.
mailbox() {
    mosquitto_sub --protocol-version mqttv5 --id "$id" --disable-clean-session -x 60 \
        --qos 1 --topic "$prefix/cam/$camera/still" "$@"
}
mailbox -E
answer=$(mosquitto_rr --protocol-version mqttv5 --qos 1 -W 20 \
    --topic "$prefix/cam/$camera/trigger" -e "$prefix/rsp/$me" \
    --property publish correlation-data "$id" --property publish message-expiry-interval 30 \
    --message "{\"v\":1,\"id\":\"$id\",\"action\":\"still\",\"at\":$(date +%s)}")
echo "$answer" >&2
case $answer in
*'"type":"done"'*) mailbox -C 1 -N -W 10 >"$1" ;;
*) exit 1 ;;
esac
