//! What every HTTP request passes on its way in: may this page call at all, and what does this token grant.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use tokio::time::timeout;

use super::access::{Denied, permit};
use super::problem::Problem;
use super::token::{Grant, Permission};
use super::{CameraBoard, Links, clock, wall_clock, wire};
use crate::core::signal::{CameraId, RejectReason};

const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
const REQUEST_HEADERS: &str = "Authorization, Content-Type, If-Match";
const RESPONSE_HEADERS: &str = "Location, ETag, Link, Accept-Patch, Accept-Post, Retry-After, WWW-Authenticate";

/// Turns foreign pages away, answers preflights and marks every response for the page that may read it (Fetch standard, CORS).
pub(super) async fn check_page(State(links): State<Arc<Links>>, request: Request, next: Next) -> Response {
    if let Err(denied) = admit_page(&links, request.headers()) {
        return Problem::from(denied).into_response();
    }
    let readable_by = if links.access.needs_token() {
        Some(HeaderValue::from_static("*"))
    } else {
        request.headers().get(header::ORIGIN).cloned()
    };
    let mut response =
        if is_preflight(&request) { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = readable_by {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(REQUEST_HEADERS));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(RESPONSE_HEADERS));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}

/// Checks `Authorization: Bearer` (RFC 6750) and leaves the grant on the request for whoever answers it.
pub(super) async fn check_token(State(links): State<Arc<Links>>, mut request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<ConnectInfo<IpAddr>>().map(|caller| caller.0);
    match admit(&links, bearer(request.headers()), caller) {
        Ok(grant) => {
            request.extensions_mut().insert(grant);
            next.run(request).await
        }
        Err(denied) => Problem::from(denied).into_response(),
    }
}

/// Who may read the metrics: a program on this machine (not one that a proxy speaks for), else whoever may watch.
pub fn may_read_metrics(links: Arc<Links>) -> Arc<dyn Fn(&Parts) -> bool + Send + Sync> {
    Arc::new(move |request| {
        let caller = request.extensions.get::<ConnectInfo<IpAddr>>().map(|caller| caller.0);
        let is_proxied = ["forwarded", "x-forwarded-for"].iter().any(|name| request.headers.contains_key(*name));
        let is_local = !is_proxied && caller.is_some_and(|caller| caller.to_canonical().is_loopback());
        is_local || admit(&links, bearer(&request.headers), caller).is_ok()
    })
}

pub(super) fn admit_page(links: &Links, headers: &HeaderMap) -> Result<(), Denied> {
    let admitted = links.access.admit_page(text(headers, header::ORIGIN), text(headers, header::HOST));
    admitted.inspect_err(|_| links.counters.denied.add(1))
}

pub(super) fn admit(links: &Links, token: Option<&str>, caller: Option<IpAddr>) -> Result<Grant, Denied> {
    // Without an address nobody can be told apart: all such callers count as one.
    let caller = caller.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let admitted = links.access.admit(token, caller, wall_clock(), clock());
    admitted.inspect_err(|denied| {
        links.counters.denied.add(1);
        tracing::debug!(%caller, %denied, "turned away");
    })
}

/// The token of an `Authorization` header; the scheme's name is written in any case (RFC 9110, section 11.1).
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, header::AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The camera of this name, if the caller has this permission for it; only then is it told whether there is one.
pub(super) fn camera<'a>(
    links: &'a Links,
    grant: &Grant,
    permission: Permission,
    name: &str,
) -> Result<&'a CameraBoard, Problem> {
    let id = CameraId::new(name)
        .map_err(|error| Problem::new(StatusCode::NOT_FOUND, "no-such-camera", error.to_string()))?;
    permit(grant, permission, &id).inspect_err(|_| links.counters.denied.add(1))?;
    Ok(links.camera(&id).ok_or(RejectReason::NoSuchCamera(id))?)
}

/// The body: of the wanted type, not too long, and not too slow in coming.
pub(super) async fn body_of(
    links: &Links,
    headers: &HeaderMap,
    wanted: &'static str,
    body: Body,
) -> Result<Bytes, Problem> {
    if !is_type(headers.get(header::CONTENT_TYPE), wanted) {
        let detail = format!("the Content-Type is not {wanted}");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong-type", detail));
    }
    match timeout(links.settings.body_timeout, to_bytes(body, wire::MAX_MESSAGE)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let detail = format!("the body has more than {} bytes, or ended early", wire::MAX_MESSAGE);
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", detail))
        }
        Err(_) => {
            links.counters.connections_cut.add(1);
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "the body did not come in time"))
        }
    }
}

/// Whether a `Content-Type` is this media type, whatever its case and parameters.
pub fn is_type(given: Option<&HeaderValue>, wanted: &str) -> bool {
    let given = given.and_then(|value| value.to_str().ok()).unwrap_or_default();
    given.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted)
}

/// A header that cannot be read as text counts as one nobody can match, not as one that is not there.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}
