//! The page: plain files, part of the binary, the same for everybody. What is particular to a device (its cameras, whether a token
//! is needed) the page asks of `/api/cameras` and `/ws`, so nothing here needs a token and nothing here tells anything.
//! `page` prints another, for a fleet behind a broker, of the same parts.

pub mod page;

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzEncoder;

use crate::core::signal::is_name;

const PAGE: &str = "index.html";

/// Scripts, styles and pictures of this device alone; sockets to it alone; no form goes anywhere.
const POLICY: &str =
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

macro_rules! files {
    ($($name:literal: $kind:expr),+ $(,)?) => { &[$(($name, $kind, include_str!(concat!("web/", $name)))),+] };
}

const SCRIPT: &str = "text/javascript; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// Name, content type, content.
const FILES: &[(&str, &str, &str)] = files! {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "favicon.svg": PICTURE,
    "icons.svg": PICTURE,
    "access.js": SCRIPT,
    "api.js": SCRIPT,
    "connection.js": SCRIPT,
    "keys.js": SCRIPT,
    "main.js": SCRIPT,
    "peer.js": SCRIPT,
    "picture.js": SCRIPT,
    "player.js": SCRIPT,
    "sight.js": SCRIPT,
    "signaling.js": SCRIPT,
    "stats.js": SCRIPT,
    "tile.js": SCRIPT,
    "words.js": SCRIPT,
};

/// What only the fleet's page has; it is not served.
const FLEET_FILES: &[(&str, &str, &str)] = files! {
    "fleet.html": "text/html; charset=utf-8",
    "fleet.css": "text/css; charset=utf-8",
    "broker.js": SCRIPT,
    "fleet.js": SCRIPT,
    "fleet_page.js": SCRIPT,
    "mqtt.js": SCRIPT,
    "mqtt_signaling.js": SCRIPT,
};

/// `GET /` and `GET /<camera>` give the page, `GET /<file>` what it is made of.
///
/// The page refers to its files relatively, so it works below any path of a reverse proxy.
pub fn router() -> Router {
    let files = FILES.iter().map(|&(name, kind, body)| (name, File::new(kind, body))).collect();
    Router::new().route("/", get(page)).route("/{name}", get(named)).with_state(Arc::new(files))
}

type Files = Arc<HashMap<&'static str, File>>;

struct File {
    kind: &'static str,
    body: &'static str,
    /// A third of its size: on a slow network the page is what a viewer waits for.
    gzip: Bytes,
    etag: String,
}

impl File {
    fn new(kind: &'static str, body: &'static str) -> Self {
        Self { kind, body, gzip: gzip(body), etag: etag(body) }
    }
}

fn gzip(body: &str) -> Bytes {
    let mut packed = Vec::new();
    GzEncoder::new(body.as_bytes(), Compression::best()).read_to_end(&mut packed).expect("memory does not fail");
    packed.into()
}

async fn page(State(files): State<Files>, headers: HeaderMap) -> Response {
    serve(&files[PAGE], &headers)
}

async fn named(State(files): State<Files>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    match files.get(name.as_str()) {
        Some(file) => serve(file, &headers),
        // Any camera's name, configured or not: which ones there are is for those with a token.
        None if is_name(&name) => serve(&files[PAGE], &headers),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn serve(file: &File, asked: &HeaderMap) -> Response {
    let headers = [
        (CONTENT_TYPE, file.kind),
        (ETAG, file.etag.as_str()),
        // Kept, but asked about each time: after an update no page mixes old and new files.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (VARY, "accept-encoding"),
    ];
    let known =
        asked.get(IF_NONE_MATCH).and_then(|tags| tags.to_str().ok()).is_some_and(|tags| tags.contains(&file.etag));
    if known {
        (StatusCode::NOT_MODIFIED, headers).into_response()
    } else if takes_gzip(asked) {
        (headers, [(CONTENT_ENCODING, "gzip")], file.gzip.clone()).into_response()
    } else {
        (headers, file.body).into_response()
    }
}

/// As RFC 9110, section 12.5.3 has it: named, and not with a weight of nothing.
fn takes_gzip(asked: &HeaderMap) -> bool {
    let codings = asked.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    codings.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let weight = weight.trim().trim_start_matches(['q', 'Q', '=']);
        name.trim().eq_ignore_ascii_case("gzip") && weight.parse().is_ok_and(|weight: f32| weight > 0.0)
    })
}

/// FNV-1a: a tag need only differ when the content does, and stay the same from one start to the next. Weak, as it is the same for
/// the packed content (RFC 9110, section 8.8.1).
fn etag(body: &str) -> String {
    let hash = body
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("W/\"{hash:016x}\"")
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use flate2::read::GzDecoder;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn the_page_is_the_same_for_every_camera_known_or_not() {
        let page = body(get("/").await).await;
        assert!(page.contains("<main id=\"cameras\""));
        assert_eq!(body(get("/front").await).await, page);
        assert_eq!(body(get("/no_such-camera").await).await, page);
    }

    #[tokio::test]
    async fn what_is_neither_file_nor_name_is_not_found() {
        for path in ["/main.js.map", "/..%2fCargo.toml", "/front%20door", "/types.d.ts", "/a/b"] {
            assert_eq!(get(path).await.status(), StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[tokio::test]
    async fn every_file_comes_with_its_type_and_may_load_nothing_from_elsewhere() {
        for (name, kind, _) in FILES {
            let response = get(&format!("/{name}")).await;
            assert_eq!(response.status(), StatusCode::OK, "{name}");
            assert_eq!(response.headers()[CONTENT_TYPE], kind, "{name}");
            assert_eq!(response.headers()[CONTENT_SECURITY_POLICY], POLICY, "{name}");
            assert_eq!(response.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff", "{name}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_known_is_not_sent_again() {
        let first = get("/main.js").await;
        let tag = first.headers()[ETAG].to_str().unwrap();
        let again = ask(Request::get("/main.js")
            .header(IF_NONE_MATCH, format!("{tag}, \"other\""))
            .body(Body::empty())
            .unwrap())
        .await;
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert!(body(again).await.is_empty());
        let other = ask(Request::get("/main.js").header(IF_NONE_MATCH, "\"other\"").body(Body::empty()).unwrap()).await;
        assert_eq!(other.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn whoever_takes_gzip_gets_a_third_of_the_bytes_and_the_same_page() {
        for (name, _, text) in FILES {
            let request = Request::get(format!("/{name}")).header(ACCEPT_ENCODING, "br;q=0.5, GZIP ; q=0.8");
            let response = ask(request.body(Body::empty()).unwrap()).await;
            assert_eq!(response.headers()[CONTENT_ENCODING], "gzip", "{name}");
            assert_eq!(response.headers()[VARY], "accept-encoding", "{name}");
            let mut unpacked = String::new();
            let packed = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            GzDecoder::new(&packed[..]).read_to_string(&mut unpacked).unwrap();
            assert_eq!(&unpacked, text, "{name}");
        }
        for refused in ["", "identity", "gzip;q=0", "gzip; q=0.000, br", "x-gzipped"] {
            let request = Request::get("/main.js").header(ACCEPT_ENCODING, refused).body(Body::empty()).unwrap();
            let response = ask(request).await;
            assert!(!response.headers().contains_key(CONTENT_ENCODING), "{refused}");
            assert!(body(response).await.starts_with("// "), "{refused}");
        }
    }

    #[test]
    fn every_file_of_the_page_is_served_and_nothing_else_is_asked_for() {
        for (name, _, text) in FILES {
            for asked in text
                .split(['"', '\''])
                .map(|asked| asked.trim_start_matches("./").split('#').next().unwrap_or_default())
            {
                let looks_like_a_file =
                    [".js", ".css", ".svg"].iter().any(|end| asked.ends_with(end)) && !asked.contains([' ', '`']);
                assert!(!looks_like_a_file || FILES.iter().any(|(name, ..)| name == &asked), "{name} asks for {asked}");
            }
        }
        let mut there: Vec<_> = std::fs::read_dir("src/web")
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        // For the type checker and for Node's test runner.
        there.retain(|name| name != "types.d.ts" && name != "package.json" && !name.ends_with(".rs"));
        assert_eq!(there.len(), FILES.len() + FLEET_FILES.len(), "files in src/web: {there:?}");
    }

    #[test]
    fn the_whole_page_is_small_and_refers_to_nobody_else() {
        let size = |files: &[(&str, &str, &str)]| files.iter().map(|(.., body)| body.len()).sum::<usize>();
        // 60 KiB until tiles out of sight gave their places back, and cameras could be switched off and be behind a broker; 64 KiB until
        // viewers chose a quality and saw what the device says of it, and sessions outlived their socket and their network.
        assert!(size(FILES) <= 72 * 1024, "the page is {} bytes", size(FILES));
        // What goes over the network of a browser, half a second's worth of 400 kbit/s.
        let packed = FILES.iter().map(|(.., body)| gzip(body).len()).sum::<usize>();
        assert!(packed <= 27 * 1024, "the packed page is {packed} bytes");
        assert!(size(FLEET_FILES) <= 45 * 1024, "the fleet's page adds {} bytes", size(FLEET_FILES));
        for (name, _, text) in FILES.iter().chain(FLEET_FILES) {
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "").contains("://");
            assert!(!elsewhere, "{name} names another host");
        }
    }

    async fn get(path: &str) -> Response {
        ask(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn ask(request: Request<Body>) -> Response {
        router().oneshot(request).await.unwrap()
    }

    async fn body(response: Response) -> String {
        String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap()
    }
}
