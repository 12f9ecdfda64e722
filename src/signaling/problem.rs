//! What an HTTP client is told when something is not granted: a status, and RFC 9457 problem details.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::access::Denied;
use super::still::StillError;
use super::token::TokenError;
use crate::core::signal::RejectReason;

/// A refusal, on its way to an HTTP client.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after: Option<Duration>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None }
    }

    pub(super) fn no_answer() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "no-answer", "the device did not answer in time; try again")
    }
}

/// Statuses by the WHEP draft. One choice needs its reason: an offer that cannot be read is 422, not 400, because Eyevinn's
/// adapter takes 400 for "this server wants to offer", sends an empty offer after it, and buries the true error.
impl From<RejectReason> for Problem {
    fn from(reason: RejectReason) -> Self {
        let status = match reason {
            RejectReason::NoSuchCamera(_) | RejectReason::NoSuchSession => StatusCode::NOT_FOUND,
            RejectReason::BadOffer(_) | RejectReason::BadCandidate(_) => StatusCode::UNPROCESSABLE_ENTITY,
            RejectReason::NoCommonCodec => StatusCode::NOT_ACCEPTABLE,
            RejectReason::TooManyCandidates(_) => StatusCode::TOO_MANY_REQUESTS,
            RejectReason::Disabled => StatusCode::FORBIDDEN,
            RejectReason::Full { .. }
            | RejectReason::Busy { .. }
            | RejectReason::CameraLost(_)
            | RejectReason::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self { status, code: reason.slug(), detail: reason.to_string(), retry_after: reason.retry_after() }
    }
}

impl From<StillError> for Problem {
    fn from(error: StillError) -> Self {
        match error {
            StillError::Rejected(reason) => reason.into(),
            StillError::NotMade(why) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "no-still", why),
            StillError::Late => Self::no_answer(),
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let status = match denied {
            Denied::Token(TokenError::ClockNotSet) => StatusCode::SERVICE_UNAVAILABLE,
            Denied::TokenNeeded | Denied::Token(_) => StatusCode::UNAUTHORIZED,
            Denied::NotAllowed | Denied::ForeignPage => StatusCode::FORBIDDEN,
            Denied::TooManyTries { .. } => StatusCode::TOO_MANY_REQUESTS,
        };
        Self { status, code: denied.slug(), detail: denied.to_string(), retry_after: denied.retry_after() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let details = Details {
            // The type is named by `code`; RFC 9457 lets a type without a page be "about:blank".
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("error"),
            status: self.status.as_u16(),
            detail: self.detail,
            code: self.code,
        };
        let mut response = (self.status, Json(details)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = if self.code == "token-needed" { "Bearer" } else { r#"Bearer error="invalid_token""# };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_millis().div_ceil(1000).max(1) as u64));
        }
        response
    }
}

#[derive(Serialize)]
struct Details {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    code: &'static str,
}
