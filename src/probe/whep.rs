//! The viewer's side of WHEP (draft-ietf-wish-whep) over plain blocking HTTP.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

/// Where to ask for a picture.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    uri: Uri,
    token: Option<String>,
}

impl fmt::Debug for Endpoint {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("uri", &self.uri).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("{url:?} is not a URL; give one like http://192.168.1.5:8080/front")]
    Malformed {
        url: String,
        #[source]
        cause: Option<ureq::http::uri::InvalidUri>,
    },
    #[error("{url:?} names no camera; add its name, as in http://192.168.1.5:8080/front")]
    NoCamera { url: String },
}

impl Endpoint {
    /// Takes a WHEP endpoint (`http://host:8080/whep/front`), or the page of a camera as a browser shows it
    /// (`http://host:8080/front#token=…`), whose endpoint on the same device it then is.
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        let (address, fragment) = url.split_once('#').unwrap_or((url, ""));
        let malformed = |cause| EndpointError::Malformed { url: address.to_owned(), cause };
        let uri: Uri = address.parse().map_err(|cause| malformed(Some(cause)))?;
        let (Some("http" | "https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(malformed(None));
        };
        let uri = match uri.path().trim_matches('/') {
            "" => return Err(EndpointError::NoCamera { url: address.to_owned() }),
            // Any deeper path is somebody's own endpoint.
            path if path.contains('/') => uri,
            camera => format!("{}://{authority}/whep/{camera}", uri.scheme_str().unwrap_or("http"))
                .parse()
                .map_err(|cause| malformed(Some(cause)))?,
        };
        let token = fragment.split('&').find_map(|part| part.strip_prefix("token=")).map(str::to_owned);
        Ok(Self { uri, token })
    }

    /// The same with this token in place of the URL's own.
    pub fn with_token(self, token: String) -> Self {
        Self { token: Some(token), ..self }
    }

    /// Looks the host up. Blocks.
    pub(super) fn resolve(&self) -> std::io::Result<Vec<IpAddr>> {
        let host = self.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let addresses = (host, self.uri.port_u16().unwrap_or(0)).to_socket_addrs()?;
        Ok(addresses.map(|address: SocketAddr| address.ip()).collect())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WhepError {
    #[error("cannot reach {url}; is edgecam running there, and is the address right?")]
    Unreachable {
        url: String,
        #[source]
        cause: Box<ureq::Error>,
    },
    #[error("{url} answered {status}{}: {words}", retry(retry_after))]
    Refused { url: String, status: StatusCode, retry_after: Option<String>, words: String },
    #[error("{url} answered {status} without {missing}; is it a WHEP endpoint?")]
    NotWhep { url: String, status: StatusCode, missing: &'static str },
}

fn retry(after: &Option<String>) -> String {
    after.as_ref().map(|after| format!(" (try again in {after} s)")).unwrap_or_default()
}

/// Speaks to one endpoint. Every method blocks.
#[derive(Clone, Debug)]
pub(super) struct Whep {
    agent: Agent,
    endpoint: Endpoint,
}

pub(super) struct Answer {
    pub(super) sdp: String,
    /// Deleting it ends the session.
    pub(super) session: Uri,
}

impl Whep {
    pub(super) fn new(endpoint: Endpoint, timeout: Duration) -> Self {
        // A redirect is answered with words rather than followed: the token must not travel to another host.
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        Self { agent: config.new_agent(), endpoint }
    }

    pub(super) fn offer(&self, sdp: &str) -> Result<Answer, WhepError> {
        let url = &self.endpoint.uri;
        let mut request = self.agent.post(url).header(CONTENT_TYPE, "application/sdp");
        if let Some(token) = &self.endpoint.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut response = request
            .send(sdp)
            .map_err(|cause| WhepError::Unreachable { url: url.to_string(), cause: Box::new(cause) })?;
        let status = response.status();
        if status != StatusCode::CREATED {
            return Err(self.refusal(response));
        }
        let not_whep = |missing| WhepError::NotWhep { url: url.to_string(), status, missing };
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let session = location.and_then(|location| resolve(url, location)).ok_or(not_whep("a usable Location"))?;
        let sdp = read_text(&mut response);
        if !sdp.starts_with("v=") {
            return Err(not_whep("an SDP answer"));
        }
        Ok(Answer { sdp, session })
    }

    pub(super) fn leave(&self, session: &Uri) -> Result<(), WhepError> {
        let mut request = self.agent.delete(session);
        // Another origin never sees the token.
        if let Some(token) = &self.endpoint.token
            && session.scheme() == self.endpoint.uri.scheme()
            && session.authority() == self.endpoint.uri.authority()
        {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = request
            .call()
            .map_err(|cause| WhepError::Unreachable { url: session.to_string(), cause: Box::new(cause) })?;
        if response.status().is_success() { Ok(()) } else { Err(self.refusal(response)) }
    }

    fn refusal(&self, mut response: Response<Body>) -> WhepError {
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let words = match (response.status(), read_text(&mut response)) {
            (StatusCode::UNAUTHORIZED, _) if self.endpoint.token.is_none() => {
                "it wants a token; make one with `edgecam token` and give it with --token-file".to_owned()
            }
            (_, words) if words.is_empty() => "no reason given".to_owned(),
            (_, words) => words,
        };
        WhepError::Refused { url: self.endpoint.uri.to_string(), status: response.status(), retry_after, words }
    }
}

/// A body that cannot be read counts as empty: there is nothing better to say about it than the status.
fn read_text(response: &mut Response<Body>) -> String {
    const LIMIT: u64 = 64 * 1024;
    response.body_mut().with_config().limit(LIMIT).read_to_string().unwrap_or_default().trim_start().to_owned()
}

/// `Location` against the URL it came from (RFC 3986, section 5.2, without dot segments).
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return location.parse().ok();
    }
    let directory = match location.starts_with('/') {
        true => "",
        false => base.path().rsplit_once('/').map_or("/", |(directory, _)| directory),
    };
    let separator = if location.starts_with('/') { "" } else { "/" };
    format!("{}://{}{directory}{separator}{location}", base.scheme()?, base.authority()?).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> String {
        Endpoint::parse(url).unwrap().uri.to_string()
    }

    #[test]
    fn a_page_stands_for_its_whep_endpoint() {
        assert_eq!(parsed("http://pi:8080/front"), "http://pi:8080/whep/front");
        assert_eq!(parsed("https://pi/front/"), "https://pi/whep/front");
        assert_eq!(parsed("http://pi:8080/whep/front"), "http://pi:8080/whep/front");
        assert_eq!(parsed("http://pi:8889/garden/whep"), "http://pi:8889/garden/whep");
    }

    #[test]
    fn the_token_in_a_pasted_link_is_used_and_a_given_one_wins() {
        let pasted = Endpoint::parse("http://pi:8080/front#token=abc").unwrap();
        assert_eq!(pasted.token.as_deref(), Some("abc"));
        assert_eq!(pasted.uri, "http://pi:8080/whep/front");
        assert_eq!(pasted.with_token("xyz".to_owned()).token.as_deref(), Some("xyz"));
    }

    #[test]
    fn what_is_no_camera_is_refused_with_an_example() {
        for url in ["", "pi", "pi:8080/front", "ftp://pi/front", "http://pi:8080/", "http://pi:8080", "http://"] {
            let error = Endpoint::parse(url).unwrap_err().to_string();
            assert!(error.contains("http://192.168.1.5:8080/front"), "{url:?}: {error}");
        }
    }

    #[test]
    fn an_error_about_a_url_does_not_repeat_its_token() {
        let error = format!("{:?}", Endpoint::parse("http://pi:8080/#token=secret").unwrap_err());
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn a_session_url_may_be_absolute_or_relative() {
        let base = "http://pi:8080/whep/front".parse().unwrap();
        for (location, resolved) in [
            ("/whep/front/1", "http://pi:8080/whep/front/1"),
            ("front/1", "http://pi:8080/whep/front/1"),
            ("https://other/1", "https://other/1"),
        ] {
            assert_eq!(resolve(&base, location).unwrap().to_string(), resolved);
        }
    }
}
