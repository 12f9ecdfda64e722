#!/bin/sh
# wake.sh - opens a camera ahead of its viewers, as a door bell would, and prints the device's answer
#
# usage: DEVICE=frontdoor CAMERA=front USERNAME=bell wake.sh [SECONDS]
#
# Host, port, password and certificates come from mosquitto's own file of options, ~/.config/mosquitto_rr, one to a line
# (--host, --port, --username, --pw, --cafile), where no list of processes shows them.
set -eu
prefix=${PREFIX:-edgecam}/${DEVICE:-frontdoor}
camera=${CAMERA:-front}
me=${USERNAME:-bell}
id=$me-$(date +%s)

# MQTT 5's request and response: the device answers on the response topic, with the same correlation data.
answer=$(mosquitto_rr --protocol-version mqttv5 --qos 1 -W 10 \
    --topic "$prefix/cam/$camera/trigger" -e "$prefix/rsp/$me" \
    --property publish correlation-data "$id" --property publish message-expiry-interval 30 \
    --message "{\"v\":1,\"id\":\"$id\",\"action\":\"wake\",\"ttl_s\":${1:-60},\"reason\":\"door bell\",\"at\":$(date +%s)}")
echo "$answer"
case $answer in
*'"type":"done"'*) ;;
*) exit 1 ;;
esac
