//! From the file's words to each part's settings: the only place that knows both. Values no part can use stop here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::error::Wrong;
use super::file::{AuthToml, CameraToml, EncoderToml, HttpToml, IceServerToml, IceToml, LimitsToml, LogToml, LowToml};
use super::secret::Secrets;
use crate::camera::{CameraSettings, EncoderSettings, LowSettings, Prefer, Source};
use crate::core::access_unit::Bitrate;
use crate::core::server_url::{ServerUrl, UrlError};
use crate::core::sessions::SessionsSettings;
use crate::core::signal::{CameraId, is_name};
use crate::http::HttpSettings;
use crate::net::MediaSettings;
use crate::net::tcp::TcpSettings;
use crate::signaling::LinkSettings;
use crate::signaling::access::{AccessSettings, Rule};
use crate::signaling::ice_servers::{Credentials, IceServer};
use crate::signaling::token::TokenKey;
use crate::telemetry::{LogFormat, LogSettings};

/// The device's id: as given, or the host name's first label made fit.
pub(super) fn device(id: String, host_name: &str) -> Result<String, Wrong> {
    if id.is_empty() {
        let label = host_name.split('.').next().unwrap_or_default();
        let fit: String =
            label.chars().map(|c| if is_name(c.encode_utf8(&mut [0; 4])) { c } else { '-' }).take(64).collect();
        let fit = fit.trim_matches('-');
        return Ok(if fit.is_empty() { "edgecam".into() } else { fit.into() });
    }
    if is_name(&id) { Ok(id) } else { Err(Wrong::new("id", format!("{id:?} cannot be a name; {NAME_RULE}"))) }
}

/// Where is kept what was switched while running: as given, or where systemd (`StateDirectory=`) or Debian would have it.
pub(super) fn state_dir(folder: String, environment: &BTreeMap<String, String>) -> Result<PathBuf, Wrong> {
    if folder.is_empty() {
        // systemd names several with colons between them; the first is ours.
        let given = environment.get("STATE_DIRECTORY").and_then(|folders| folders.split(':').next());
        return Ok(given.filter(|folder| folder.starts_with('/')).unwrap_or("/var/lib/edgecam").into());
    }
    if folder.starts_with('/') && !folder.contains('\0') {
        return Ok(folder.into());
    }
    Err(Wrong::new("state_dir", format!("{folder:?} is not a whole path; write /var/lib/edgecam or the like")))
}

impl TryFrom<&HttpToml> for HttpSettings {
    type Error = Wrong;

    fn try_from(http: &HttpToml) -> Result<Self, Wrong> {
        let max_connections = whole("max_connections", http.max_connections, 1..=10_000, "")?;
        let max_per_address = whole("max_connections_per_address", http.max_connections_per_address, 1..=10_000, "")?;
        if max_per_address > max_connections {
            let what = format!(
                "{max_per_address} is above max_connections ({max_connections}); lower it or raise max_connections"
            );
            return Err(Wrong::new("max_connections_per_address", what));
        }
        let header_timeout = seconds("header_timeout_s", http.header_timeout_s, 1..=60)?;
        Ok(Self { max_connections, max_per_address, header_timeout, ..Self::default() })
    }
}

/// The address to listen on.
pub(super) fn listen(http: &HttpToml) -> Result<SocketAddr, Wrong> {
    let text = http.listen.as_str();
    let local = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    let address = local.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).or_else(|| text.parse().ok());
    address.ok_or_else(|| {
        let what = format!(
            "{text:?} is not an address and port; write 127.0.0.1:8080 for this machine only, 0.0.0.0:8080 or [::]:8080 for all"
        );
        Wrong::new("listen", what)
    })
}

/// Who may come in; where we listen decides what is needed: beyond loopback a token key, or the owner's word that none is
/// wanted. Reads two sections, so its keys are whole.
pub(super) fn access(
    auth: AuthToml,
    http: HttpToml,
    has_broker: bool,
    listen: SocketAddr,
    device: String,
    secrets: &Secrets,
    warnings: &mut Vec<String>,
) -> Result<AccessSettings, Wrong> {
    let AuthToml { token_key_file, anyone_may_watch } = auth;
    if anyone_may_watch && !token_key_file.is_empty() {
        return Err(Wrong::new("auth.anyone_may_watch", "contradicts auth.token_key_file; remove one of them"));
    }
    if !is_loopback(listen) && token_key_file.is_empty() && !anyone_may_watch {
        let what = format!(
            "{listen} can be reached from other machines, and nothing asks who watches; set auth.token_key_file, \
             or auth.anyone_may_watch = true if that is what you want"
        );
        return Err(Wrong::new("http.listen", what));
    }
    if has_broker && token_key_file.is_empty() && !anyone_may_watch {
        let what = "whoever may speak with the broker can watch, and nothing asks who that is; set auth.token_key_file, \
                    or auth.anyone_may_watch = true if the broker's own access rules are enough for you";
        return Err(Wrong::new("mqtt.url", what));
    }
    if let Some(origin) = http.allowed_origins.iter().find(|origin| !is_origin(origin)) {
        let what = format!("{origin:?} is not an origin; write it like https://panel.example.org, without a path");
        return Err(Wrong::new("http.allowed_origins", what));
    }
    let rule = match token_key_file.as_str() {
        "" => Rule::Open,
        name => Rule::Key(token_key(name, secrets, warnings)?),
    };
    Ok(AccessSettings { rule, device, origins: http.allowed_origins })
}

/// The media port; viewers on this machine are served over loopback when the page is, too.
pub(super) fn media(ice: &IceToml, listen: SocketAddr, cameras: &[CameraToml]) -> Result<MediaSettings, Wrong> {
    if let Some(name) = ice.interfaces.iter().find(|name| !is_interface(name)) {
        let what = format!("{name:?} cannot be a network interface; write names like eth0");
        return Err(Wrong::new("interfaces", what));
    }
    Ok(MediaSettings {
        udp_port: whole("udp_port", ice.udp_port, 0..=65_535, "")?,
        tcp: ice.tcp.then_some(TcpSettings { bitrate: fastest(cameras) }),
        interfaces: ice.interfaces.clone(),
        advertise: ice.advertise.iter().map(|address| advertised(address)).collect::<Result<_, _>>()?,
        loopback: is_loopback(listen),
    })
}

/// What is no bit rate is told with its camera.
fn fastest(cameras: &[CameraToml]) -> Bitrate {
    let kbps = cameras.iter().filter_map(|camera| u32::try_from(camera.encoder.max_kbps).ok());
    Bitrate::from_kbps(kbps.max().unwrap_or_default())
}

pub(super) fn ice_server(
    server: IceServerToml,
    secrets: &Secrets,
    warnings: &mut Vec<String>,
) -> Result<IceServer, Wrong> {
    const SCHEMES: [&str; 4] = ["stun", "stuns", "turn", "turns"];
    let IceServerToml { urls, username, credential_file, secret_file } = server;
    if urls.is_empty() {
        return Err(Wrong::new("urls", "missing; write urls = [\"turn:turn.example.org:3478\"]"));
    }
    let is_known = |url: &str| url.split_once(':').is_some_and(|(scheme, _)| SCHEMES.contains(&scheme));
    if let Some(url) = urls.iter().find(|url| !is_known(url)) {
        return Err(Wrong::new("urls", format!("{url:?} does not begin with stun:, stuns:, turn: or turns:")));
    }
    if let Some(url) = urls.iter().find(|url| ServerUrl::parse(url) == Err(UrlError::Malformed)) {
        let what = format!("{url:?} is no server's URL; write it like turn:turn.example.org:3478?transport=tcp");
        return Err(Wrong::new("urls", what));
    }
    let credentials = match (username.as_str(), credential_file.as_str(), secret_file.as_str()) {
        ("", "", "") if urls.iter().any(|url| url.starts_with("turn")) => {
            let what = "missing; a TURN server wants secret_file, or username and credential_file";
            return Err(Wrong::new("secret_file", what));
        }
        ("", "", "") => Credentials::None,
        ("", "", name) => Credentials::Shared { secret: secrets.read("secret_file", name, warnings)?.into_bytes() },
        ("", _, "") => return Err(Wrong::new("username", "missing; it goes with credential_file")),
        (_, "", "") => return Err(Wrong::new("credential_file", "missing; it goes with username")),
        (_, name, "") => Credentials::Fixed { password: secrets.read("credential_file", name, warnings)?, username },
        _ => return Err(Wrong::new("secret_file", "stands alone; username and credential_file are made from it")),
    };
    Ok(IceServer { urls, credentials })
}

/// The links' limits; one of them is the listener's, so keys are whole.
pub(super) fn links(limits: &LimitsToml, http: &HttpToml) -> Result<LinkSettings, Wrong> {
    let idle_timeout = seconds("limits.websocket_idle_s", limits.websocket_idle_s, 10..=3600)?;
    let messages_per_s = limits.websocket_messages_per_s;
    Ok(LinkSettings {
        max_candidates: whole("limits.candidates", limits.candidates, CANDIDATES, "")?,
        idle_timeout,
        // Two pings may be lost before the socket is.
        ping_interval: idle_timeout / 3,
        messages_per_s: whole("limits.websocket_messages_per_s", messages_per_s, 1..=1000, "")?,
        body_timeout: seconds("http.body_timeout_s", http.body_timeout_s, 1..=60)?,
        max_whep_sessions: whole("limits.whep_sessions", limits.whep_sessions, 1..=10_000, "")?,
        ..LinkSettings::default()
    })
}

const CANDIDATES: RangeInclusive<i64> = 1..=1000;

/// How long a viewer may be silent before it counts as gone.
pub(super) fn lost_after(limits: &LimitsToml) -> Result<Duration, Wrong> {
    seconds("vanished_s", limits.vanished_s, 10..=300)
}

/// What is decided about viewers; without the cameras, which the caller adds.
impl TryFrom<&LimitsToml> for SessionsSettings {
    type Error = Wrong;

    fn try_from(limits: &LimitsToml) -> Result<Self, Wrong> {
        Ok(Self {
            cameras: Vec::new(),
            switched_off: BTreeSet::new(), // not a setting: what the owner switched off is read at the start
            negotiation_timeout: seconds("negotiation_s", limits.negotiation_s, 1..=60)?,
            max_negotiations: whole("negotiations", limits.negotiations, 1..=1000, "")?,
            max_candidates: whole("candidates", limits.candidates, CANDIDATES, "")?,
            keyframe_gap: milliseconds("keyframe_gap_ms", limits.keyframe_gap_ms, 100..=10_000)?,
        })
    }
}

impl TryFrom<LogToml> for LogSettings {
    type Error = Wrong;

    fn try_from(LogToml { level, format }: LogToml) -> Result<Self, Wrong> {
        const FORMATS: [(&str, LogFormat); 4] = [
            ("auto", LogFormat::Auto),
            ("text", LogFormat::Text),
            ("json", LogFormat::Json),
            ("journald", LogFormat::Journald),
        ];
        let format = one_of("format", &format, &FORMATS)?;
        Self::new(&level, format).map_err(|error| Wrong::new("level", error.to_string()))
    }
}

/// A camera, and how many may watch it.
pub(super) fn camera(camera: CameraToml) -> Result<(CameraSettings, usize), Wrong> {
    let max_viewers = whole("max_viewers", camera.max_viewers, 1..=1000, "")?;
    Ok((camera.try_into()?, max_viewers))
}

/// First parts of URLs that are not cameras' pages.
const RESERVED: [&str; 5] = ["api", "healthz", "metrics", "whep", "ws"];

impl TryFrom<CameraToml> for CameraSettings {
    type Error = Wrong;

    fn try_from(camera: CameraToml) -> Result<Self, Wrong> {
        let CameraToml { id, source, width, height, fps, linger_s, max_viewers: _, encoder, low, controls } = camera;
        if id.is_empty() {
            return Err(Wrong::new("id", format!("every camera needs one; {NAME_RULE}")));
        }
        let id = CameraId::new(&id).map_err(|_| Wrong::new("id", format!("{id:?} cannot be a name; {NAME_RULE}")))?;
        if RESERVED.contains(&id.as_str()) {
            return Err(Wrong::new(
                "id",
                format!("{id} is a path of edgecam's own on the page's address; choose another name"),
            ));
        }
        let fps = whole("fps", fps, 1..=120, "pictures a second")?;
        let encoder = EncoderSettings::try_from(encoder).map_err(|wrong| wrong.within("encoder"))?;
        if u64::from(fps) * encoder.keyframe_interval.as_secs() < 2 {
            // The Raspberry Pi's encoder hangs without an error: https://github.com/raspberrypi/linux/issues/4740
            let what =
                "makes every picture a keyframe at 1 picture a second, which some encoders hang on; raise one of them";
            return Err(Wrong::new("encoder.keyframe_interval_s", what));
        }
        if let Some(name) = controls.keys().find(|name| !is_control(name)) {
            let what = "cannot be a control; `edgecam devices` lists their names, like white_balance_temperature";
            return Err(Wrong::new(format!("controls.{name}"), what));
        }
        let (width, height) = (even("width", width, 32..=7680)?, even("height", height, 32..=4320)?);
        Ok(Self {
            id,
            source: read_source(&source)?,
            width,
            height,
            low: low_rendition(&low, (width, height), encoder.max).map_err(|wrong| wrong.within("low"))?,
            fps,
            linger: seconds("linger_s", linger_s, 0..=86_400)?,
            encoder,
            controls,
        })
    }
}

impl TryFrom<EncoderToml> for EncoderSettings {
    type Error = Wrong;

    fn try_from(EncoderToml { prefer, max_kbps, min_kbps, keyframe_interval_s }: EncoderToml) -> Result<Self, Wrong> {
        const CHOICES: [(&str, Prefer); 4] = [
            ("auto", Prefer::Auto),
            ("hardware", Prefer::Hardware),
            ("software", Prefer::Software),
            ("passthrough", Prefer::Passthrough),
        ];
        let (max, min) = rates(max_kbps, min_kbps)?;
        let keyframe_interval = seconds("keyframe_interval_s", keyframe_interval_s, 1..=60)?;
        Ok(Self { prefer: one_of("prefer", &prefer, &CHOICES)?, max, min, keyframe_interval })
    }
}

/// The second, smaller rendition of a camera whose picture is `high` pixels and takes `most` at most; `None`: it is not wanted.
/// Four fifths of that are the most it is given: at nearly the same rate it would be no way out for anybody.
fn low_rendition(low: &LowToml, high: (u32, u32), most: Bitrate) -> Result<Option<LowSettings>, Wrong> {
    let LowToml { enabled, width, height, max_kbps, min_kbps } = *low;
    let side = |key, pixels: i64, high: u32| {
        if pixels == 0 {
            return Ok(None);
        }
        let pixels = even(key, pixels, 32..=7680)?;
        if pixels >= high {
            let what = format!("{pixels} is not below the camera's own {key} ({high}); lower it, or write 0 for half");
            return Err(Wrong::new(key, what));
        }
        Ok(Some(pixels))
    };
    let (width, height) = (side("width", width, high.0)?, side("height", height, high.1)?);
    let (max, min) = rates(max_kbps, min_kbps)?;
    let most = Bitrate::from_kbps(most.kbps() * 4 / 5);
    Ok(enabled.then(|| LowSettings { width, height, max: max.min(most), min: min.min(most) }))
}

/// The most and the least bits a second.
fn rates(max_kbps: i64, min_kbps: i64) -> Result<(Bitrate, Bitrate), Wrong> {
    // What the Raspberry Pi's encoder takes (bcm2835-v4l2-codec.c), and all that others need.
    const KBPS: RangeInclusive<i64> = 25..=25_000;
    let max = Bitrate::from_kbps(whole("max_kbps", max_kbps, KBPS, "kbit/s")?);
    let min = Bitrate::from_kbps(whole("min_kbps", min_kbps, KBPS, "kbit/s")?);
    if min > max {
        let what = format!("{min_kbps} is above max_kbps ({max_kbps}); lower it or raise max_kbps");
        return Err(Wrong::new("min_kbps", what));
    }
    Ok((max, min))
}

const NAME_RULE: &str = "1 to 64 of the characters a-z A-Z 0-9 _ -";

/// An address as viewers see it; port 0 when only the address is given.
fn advertised(text: &str) -> Result<SocketAddr, Wrong> {
    let wrong = |what: String| Err(Wrong::new("advertise", what));
    let address = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 0)));
    match address {
        Ok(address) if address.ip().is_unspecified() => wrong(format!("{text} is no address that viewers can reach")),
        Ok(address) => Ok(address),
        Err(_) => wrong(format!("{text:?} is not an address; write 203.0.113.7 or 203.0.113.7:8189, not a host name")),
    }
}

fn is_loopback(listen: SocketAddr) -> bool {
    listen.ip().to_canonical().is_loopback()
}

fn token_key(name: &str, secrets: &Secrets, warnings: &mut Vec<String>) -> Result<TokenKey, Wrong> {
    let key = secrets.read("auth.token_key_file", name, warnings)?;
    TokenKey::new(key.as_bytes()).map_err(|error| Wrong::new("auth.token_key_file", error.to_string()))
}

fn read_source(text: &str) -> Result<Source, Wrong> {
    let wrong = |what: String| Err(Wrong::new("source", what));
    match text.split_once(':') {
        Some((kind @ ("v4l2" | "clip"), path)) if !path.starts_with('/') => {
            wrong(format!("{path:?} is not a whole path; write {kind}:/…"))
        }
        None if text.starts_with("/dev/") => wrong(format!("write v4l2:{text}")),
        None if text == "libcamera" => wrong("libcamera is not part of this version yet".into()),
        Some(("rtsp" | "rtsps", _)) => wrong("RTSP is not part of this version yet".into()),
        // Not repeated: a URL may hold a password.
        _ => text
            .parse()
            .or_else(|_| wrong("not a source; write auto, test, v4l2:/dev/video0 or clip:/path/to/file.h264".into())),
    }
}

fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ', '*']))
}

/// What Linux takes as an interface's name (net/core/dev.c, `dev_valid_name`).
fn is_interface(text: &str) -> bool {
    (1..16).contains(&text.len()) && !text.contains(['/', ':']) && !text.contains(char::is_whitespace)
}

fn is_control(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn whole<T: TryFrom<i64>>(key: &str, value: i64, range: RangeInclusive<i64>, unit: &str) -> Result<T, Wrong> {
    let within = range.contains(&value).then(|| T::try_from(value).ok()).flatten();
    within.ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        let space = if unit.is_empty() { "" } else { " " };
        Wrong::new(key, format!("{value} is outside {least} to {most}{space}{unit}"))
    })
}

fn even(key: &str, value: i64, range: RangeInclusive<i64>) -> Result<u32, Wrong> {
    let pixels: u32 = whole(key, value, range, "pixels")?;
    if pixels.is_multiple_of(2) {
        return Ok(pixels);
    }
    // Colour is kept for every second pixel only (4:2:0).
    Err(Wrong::new(key, format!("{value} is odd; H.264 video has an even number of pixels, write {}", value - 1)))
}

fn seconds(key: &str, value: i64, range: RangeInclusive<i64>) -> Result<Duration, Wrong> {
    whole(key, value, range, "seconds").map(Duration::from_secs)
}

fn milliseconds(key: &str, value: i64, range: RangeInclusive<i64>) -> Result<Duration, Wrong> {
    whole(key, value, range, "milliseconds").map(Duration::from_millis)
}

fn one_of<T: Copy>(key: &str, word: &str, choices: &[(&str, T)]) -> Result<T, Wrong> {
    let chosen = choices.iter().find(|(name, _)| *name == word).map(|(_, choice)| *choice);
    chosen.ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        Wrong::new(key, format!("{word:?} is not one of {}", names.join(", ")))
    })
}
