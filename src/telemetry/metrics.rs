//! `GET /metrics`: what `core::counters` counted, as Prometheus text (OpenMetrics 1.0), read at each request.
//!
//! Labels are camera ids and fixed words only, never viewers, so their number is bounded. Rates are left to the reader:
//! a camera's frame rate is `rate(edgecam_camera_pictures_captured_total[1m])`, its bit rate
//! `8 * rate(edgecam_camera_captured_bytes_total[1m])`.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use tokio_util::task::TaskTracker;

use super::{MayRead, WatchedCamera};
use crate::core::camera::Rendition;
use crate::core::counters::{
    CameraCounters, Count, Histogram, LinkCounters, MqttDrop, RelayCounters, RenditionCounters, ViewerCounters,
};
use crate::core::server_url::ServerTransport;
use crate::core::signal::CloseReason;

/// All figures of the daemon.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Registry>);

impl Metrics {
    pub fn new(
        cameras: Vec<WatchedCamera>,
        viewers: Arc<ViewerCounters>,
        links: Arc<LinkCounters>,
        relay: Arc<RelayCounters>,
        tasks: TaskTracker,
    ) -> Self {
        let mut registry = Registry::with_prefix("edgecam");
        registry.register("build", "The running program", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        registry.register_collector(Box::new(Cameras(cameras)));
        registry.register_collector(Box::new(Viewers(viewers)));
        registry.register_collector(Box::new(Links(links)));
        registry.register_collector(Box::new(Relay(relay)));
        registry.register_collector(Box::new(Tasks(tasks)));
        Self(Arc::new(registry))
    }

    /// # Errors
    /// Never in practice: writing into memory.
    fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0)?;
        Ok(text)
    }
}

pub(super) fn router(metrics: Metrics, may_read: MayRead) -> Router {
    Router::new().route("/metrics", get(show)).with_state((metrics, may_read))
}

async fn show(State((metrics, may_read)): State<(Metrics, MayRead)>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    if !may_read(&parts) {
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")]).into_response();
    }
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A counter's name, what it counts, and where it stands.
type Counted<C> = (&'static str, &'static str, fn(&C) -> &Count);

#[derive(Debug)]
struct Cameras(Vec<WatchedCamera>);

impl Cameras {
    const COUNTED: [Counted<CameraCounters>; 14] = [
        ("camera_pictures_captured", "Pictures that came out of the encoder", |c| &c.units_captured),
        ("camera_captured_bytes", "Their bytes", |c| &c.bytes_captured),
        ("camera_keyframes_captured", "Keyframes that came out of the encoder", |c| &c.keyframes_captured),
        ("camera_keyframes_asked", "Keyframes asked of the encoder, after merging", |c| &c.keyframes_asked),
        ("camera_opened", "Times the camera was opened", |c| &c.opened),
        ("camera_failed", "Times the camera failed or stalled", |c| &c.failed),
        ("camera_triggers", "Wakes and sleeps that were carried out", |c| &c.triggers),
        ("camera_stills", "Keyframes given out for stills", |c| &c.stills),
        ("camera_low_pictures_captured", "Pictures that came out of the second encoder", |c| &c.low.units_captured),
        ("camera_low_captured_bytes", "Their bytes", |c| &c.low.bytes_captured),
        ("camera_low_keyframes_captured", "Keyframes that came out of it", |c| &c.low.keyframes_captured),
        ("camera_low_keyframes_asked", "Keyframes asked of it, after merging", |c| &c.low.keyframes_asked),
        ("camera_low_opened", "Times the second encoder was opened", |c| &c.low.opened),
        ("camera_low_failed", "Times it could not be opened, or failed", |c| &c.low.failed),
    ];
    const LEVELS: [Counted<CameraCounters>; 4] = [
        ("camera_viewers", "Sessions that hold a place", |c| &c.viewers),
        ("camera_switched_off", "1 while the camera's owner has switched it off", |c| &c.switched_off),
        ("camera_encoder_kbps", "Bit rate asked of the encoder; 0 before it ran", |c| &c.bitrate_kbps),
        ("camera_low_encoder_kbps", "Bit rate asked of the second encoder; 0 while closed", |c| &c.low.bitrate_kbps),
    ];
    const OF_VIEWERS: [Counted<RenditionCounters>; 4] = [
        ("camera_rendition_viewers", "Viewers who get this rendition", |r| &r.viewers),
        ("camera_estimated_viewers", "Those of them whose network is known", |r| &r.estimated),
        ("camera_least_estimate_kbps", "What the slowest of their networks carries", |r| &r.least_estimate_kbps),
        ("camera_estimates_kbps", "What their networks carry, all together", |r| &r.estimates_kbps),
    ];

    fn renditions(&self) -> impl Iterator<Item = ([(&'static str, &str); 2], &RenditionCounters)> {
        self.0.iter().flat_map(|camera| {
            let labels = |rendition: Rendition| [("camera", camera.id.as_str()), ("rendition", rendition.slug())];
            Rendition::ALL.into_iter().map(labels).zip(&camera.counters.viewers_of)
        })
    }
}

impl Collector for Cameras {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for (name, help, count) in Self::COUNTED {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for camera in &self.0 {
                let counter = ConstCounter::new(count(&camera.counters).get());
                counter.encode(family.encode_family(&[("camera", camera.id.as_str())])?)?;
            }
        }
        for (name, help, count) in Self::LEVELS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for camera in &self.0 {
                let gauge = ConstGauge::new(level(count(&camera.counters)));
                gauge.encode(family.encode_family(&[("camera", camera.id.as_str())])?)?;
            }
        }
        for (name, help, count) in Self::OF_VIEWERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, counters) in self.renditions() {
                ConstGauge::new(level(count(counters))).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "The part of the packets that did not arrive at first, of each viewer about once a second";
        let mut family = encoder.encode_descriptor("camera_viewers_loss_ratio", help, None, MetricType::Histogram)?;
        for (labels, counters) in self.renditions() {
            encode_histogram(&counters.loss, family.encode_family(&labels)?)?;
        }
        let help = "To a viewer and back, of each viewer about once a second";
        let (name, unit) = ("camera_viewers_round_trip", Unit::Seconds);
        let mut family = encoder.encode_descriptor(name, help, Some(&unit), MetricType::Histogram)?;
        for (labels, counters) in self.renditions() {
            encode_histogram(&counters.round_trip, family.encode_family(&labels)?)?;
        }
        let help = "1 for the state the camera is in, 0 for the others";
        let mut family = encoder.encode_descriptor("camera_state", help, None, MetricType::Gauge)?;
        for camera in &self.0 {
            let now = camera.status.borrow().state.slug();
            for state in STATES {
                let labels = [("camera", camera.id.as_str()), ("state", state)];
                ConstGauge::new(i64::from(state == now)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Every [`CameraState::slug`].
const STATES: [&str; 4] = ["idle", "opening", "running", "failed"];

#[derive(Debug)]
struct Viewers(Arc<ViewerCounters>);

impl Viewers {
    const COUNTED: [Counted<ViewerCounters>; 13] = [
        ("sessions_opened", "Sessions that got a place", |v| &v.sessions_opened),
        ("pictures_sent", "Pictures handed to viewers, counted for each viewer", |v| &v.units_sent),
        ("pictures_skipped", "Pictures a slow viewer missed", |v| &v.units_skipped),
        ("packets_sent", "RTP packets sent", |v| &v.packets_sent),
        ("sent_bytes", "Their bytes", |v| &v.bytes_sent),
        ("packets_dropped", "Datagrams the kernel did not take", |v| &v.packets_dropped),
        ("packets_retransmitted", "RTP packets sent again", |v| &v.packets_retransmitted),
        ("retransmissions_refused", "Packets asked for again, but over the budget", |v| &v.retransmissions_refused),
        ("nacks_received", "Packets viewers reported as lost", |v| &v.nacks_received),
        ("keyframe_requests_received", "PLI and FIR received, before merging", |v| &v.keyframe_requests),
        ("media_connections_refused", "TCP connections for media turned away for want of a place", |v| &v.tcp.refused),
        ("media_connections_unknown", "TCP connections for media that named no session", |v| &v.tcp.strangers),
        ("media_connections_dropped_bytes", "Bytes that viewers on TCP did not take in time", |v| &v.tcp.bytes_dropped),
    ];
}

impl Collector for Viewers {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for (name, help, count) in Self::COUNTED {
            let counter = ConstCounter::new(count(&self.0).get());
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let help = "TCP connections for media that hold a place";
        let connections = ConstGauge::new(level(&self.0.tcp.connections));
        connections.encode(encoder.encode_descriptor("media_connections", help, None, MetricType::Gauge)?)?;
        let help = "Sessions that ended, by reason";
        let mut family = encoder.encode_descriptor("sessions_closed", help, None, MetricType::Counter)?;
        for (reason, count) in CloseReason::ALL.iter().zip(&self.0.sessions_closed) {
            ConstCounter::new(count.get()).encode(family.encode_family(&[("reason", reason.slug())])?)?;
        }
        let help = "From the encoder's output to a picture's last packet handed to the kernel, over all its viewers";
        encode_histogram(
            &self.0.send_delay,
            encoder.encode_descriptor("send_delay", help, Some(&Unit::Seconds), MetricType::Histogram)?,
        )
    }
}

#[derive(Debug)]
struct Links(Arc<LinkCounters>);

impl Links {
    const COUNTED: [Counted<LinkCounters>; 12] = [
        ("connections_refused", "Connections turned away for want of a place", |l| &l.connections_refused),
        ("connections_cut", "Connections cut off for being too slow", |l| &l.connections_cut),
        ("websockets_opened", "WebSockets opened", |l| &l.sockets_opened),
        ("websockets_closed", "WebSockets closed", |l| &l.sockets_closed),
        ("messages_received", "WebSocket messages", |l| &l.messages),
        ("messages_refused", "WebSocket messages answered with an error by the link itself", |l| &l.messages_refused),
        ("requests_denied", "Requests without a sufficient token, or from a foreign page", |l| &l.denied),
        ("mqtt_connects", "Connections to the MQTT broker that came up", |l| &l.mqtt.connects),
        ("mqtt_failures", "Connections to the MQTT broker that failed or were lost", |l| &l.mqtt.failures),
        ("mqtt_messages_received", "Messages from the MQTT broker", |l| &l.mqtt.messages_received),
        ("mqtt_messages_sent", "Messages handed to the MQTT broker", |l| &l.mqtt.messages_sent),
        ("mqtt_topics_refused", "Topics the MQTT broker refused", |l| &l.mqtt.topics_refused),
    ];
    const LEVELS: [Counted<LinkCounters>; 3] = [
        ("mqtt_connected", "1 while the MQTT broker can be spoken to", |l| &l.mqtt.connected),
        ("connections", "TCP connections that hold a place, WebSockets among them", |l| &l.connections),
        ("whep_sessions", "WHEP sessions that have a URL", |l| &l.whep_sessions),
    ];
}

impl Collector for Links {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for (name, help, count) in Self::COUNTED {
            let counter = ConstCounter::new(count(&self.0).get());
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, count) in Self::LEVELS {
            let gauge = ConstGauge::new(level(count(&self.0)));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let help = "Messages from and for the MQTT broker that went no further, by reason";
        let mut family = encoder.encode_descriptor("mqtt_messages_dropped", help, None, MetricType::Counter)?;
        for (reason, count) in MqttDrop::ALL.iter().zip(&self.0.mqtt.messages_dropped) {
            ConstCounter::new(count.get()).encode(family.encode_family(&[("reason", reason.slug())])?)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Relay(Arc<RelayCounters>);

impl Relay {
    const COUNTED: [Counted<RelayCounters>; 5] = [
        ("relay_allocations", "Allocations that TURN servers gave the camera", |r| &r.allocations),
        ("relay_allocation_failures", "Tries without an allocation, and allocations lost", |r| &r.allocation_failures),
        ("relay_sent_bytes", "What went to viewers through the relay", |r| &r.bytes_sent),
        ("relay_received_bytes", "What came from viewers through the relay", |r| &r.bytes_received),
        ("relay_packets_dropped", "Packets for viewers that the relay did not take", |r| &r.packets_dropped),
    ];
}

impl Collector for Relay {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for (name, help, count) in Self::COUNTED {
            let counter = ConstCounter::new(count(&self.0).get());
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let help = "STUN servers that answer the camera";
        let gauge = ConstGauge::new(level(&self.0.stun_answering));
        gauge.encode(encoder.encode_descriptor("stun_servers_answering", help, None, MetricType::Gauge)?)?;
        let help = "1 for the way to the TURN server that relays for the camera";
        let mut family = encoder.encode_descriptor("relay_allocated", help, None, MetricType::Gauge)?;
        for (transport, count) in ServerTransport::ALL.iter().zip(&self.0.allocated) {
            ConstGauge::new(level(count)).encode(family.encode_family(&[("transport", transport.slug())])?)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Tasks(TaskTracker);

impl Collector for Tasks {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let gauge = ConstGauge::new(i64::try_from(self.0.len()).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor("tasks", "Tasks that run or wait", None, MetricType::Gauge)?)
    }
}

fn encode_histogram(histogram: &Histogram, mut encoder: MetricEncoder<'_>) -> fmt::Result {
    let (classes, sum) = histogram.classes();
    let count = classes.iter().map(|&(_, count)| count).sum();
    encoder.encode_histogram::<NoLabelSet>(sum, count, &classes, None)
}

fn level(count: &Count) -> i64 {
    i64::try_from(count.get()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::request::Parts;
    use tokio::sync::watch;
    use tower::ServiceExt;

    use super::*;
    use crate::core::access_unit::Bitrate;
    use crate::core::camera::{CameraState, CameraStatus, LowState};
    use crate::core::figures::{Figures, Quality, Seen};
    use crate::core::signal::{CameraId, LinkId};

    #[test]
    fn what_was_counted_is_told_per_camera() {
        let text = figures().render().unwrap();
        for line in [
            "edgecam_camera_pictures_captured_total{camera=\"front\"} 90",
            "edgecam_camera_captured_bytes_total{camera=\"front\"} 1234",
            "edgecam_camera_keyframes_asked_total{camera=\"front\"} 3",
            "edgecam_camera_viewers{camera=\"front\"} 2",
            "edgecam_camera_switched_off{camera=\"front\"} 0",
            "edgecam_camera_state{camera=\"front\",state=\"running\"} 1",
            "edgecam_camera_state{camera=\"front\",state=\"failed\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn how_viewers_fare_is_told_by_rendition_and_never_by_viewer() {
        let text = figures().render().unwrap();
        for line in [
            "edgecam_camera_rendition_viewers{camera=\"front\",rendition=\"high\"} 0",
            "edgecam_camera_rendition_viewers{camera=\"front\",rendition=\"low\"} 1",
            "edgecam_camera_estimated_viewers{camera=\"front\",rendition=\"low\"} 1",
            "edgecam_camera_least_estimate_kbps{camera=\"front\",rendition=\"low\"} 380",
            "edgecam_camera_estimates_kbps{camera=\"front\",rendition=\"low\"} 380",
            "edgecam_camera_viewers_loss_ratio_bucket{le=\"0.02\",camera=\"front\",rendition=\"low\"} 1",
            "edgecam_camera_viewers_loss_ratio_bucket{le=\"0.01\",camera=\"front\",rendition=\"low\"} 0",
            "edgecam_camera_viewers_round_trip_seconds_count{camera=\"front\",rendition=\"low\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn sessions_are_told_by_the_reason_they_ended_for() {
        let text = figures().render().unwrap();
        for line in [
            "edgecam_sessions_opened_total 5",
            "edgecam_sessions_closed_total{reason=\"viewer-left\"} 0",
            "edgecam_sessions_closed_total{reason=\"lost\"} 4",
            "edgecam_sessions_closed_total{reason=\"shutdown\"} 0",
            "edgecam_nacks_received_total 7",
            "edgecam_media_connections 3",
            "edgecam_media_connections_dropped_bytes_total 1200",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn what_the_links_turned_away_is_told() {
        let text = figures().render().unwrap();
        for line in [
            "edgecam_requests_denied_total 6",
            "edgecam_connections 1",
            "edgecam_mqtt_connected 0",
            "edgecam_mqtt_messages_dropped_total{reason=\"retained\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn every_state_a_camera_can_be_in_is_told() {
        let failed = CameraState::BackingOff { error: String::new(), retry_in: Duration::ZERO };
        for state in [CameraState::Idle, CameraState::Opening, CameraState::Running, failed] {
            assert!(STATES.contains(&state.slug()));
        }
    }

    #[tokio::test]
    async fn a_stranger_gets_no_figures() {
        let (status, body) = ask(Arc::new(|_: &Parts| false)).await;
        assert_eq!((status, body.as_str()), (401, ""));
    }

    #[tokio::test]
    async fn whoever_is_let_in_gets_the_whole_text() {
        let (status, body) = ask(Arc::new(|parts: &Parts| parts.uri.path() == "/metrics")).await;
        assert_eq!(status, 200);
        assert!(body.ends_with("# EOF\n"), "{body}");
    }

    async fn ask(may_read: MayRead) -> (u16, String) {
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        let response = router(figures(), may_read).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 65_536).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn figures() -> Metrics {
        let counters = CameraCounters::default();
        counters.units_captured.add(90);
        counters.bytes_captured.add(1234);
        counters.keyframes_asked.add(3);
        counters.viewers.set(2);
        let fares = Figures {
            rendition: Some(Rendition::Low),
            estimate: Some(Bitrate::from_kbps(380)),
            loss: 0.012,
            round_trip: Some(Duration::from_millis(52)),
            ..Figures::unknown(Quality::Auto)
        };
        counters.note(&[Seen { number: 1, link: LinkId::Whep, figures: fares }]);
        let viewers = ViewerCounters::default();
        viewers.sessions_opened.add(5);
        let lost = CloseReason::ALL.iter().position(|reason| *reason == CloseReason::Lost).unwrap();
        viewers.sessions_closed[lost].add(4);
        viewers.nacks_received.add(7);
        viewers.tcp.connections.set(3);
        viewers.tcp.bytes_dropped.add(1200);
        let camera = WatchedCamera {
            id: CameraId::new("front").unwrap(),
            status: watch::channel(CameraStatus { state: CameraState::Running, stream: None, low: LowState::Closed }).1,
            counters: Arc::new(counters),
        };
        let links = LinkCounters::default();
        links.denied.add(6);
        links.mqtt.dropped(MqttDrop::Retained);
        links.mqtt.dropped(MqttDrop::Retained);
        links.connections.set(1);
        Metrics::new(vec![camera], Arc::new(viewers), Arc::new(links), Arc::default(), TaskTracker::new())
    }
}
