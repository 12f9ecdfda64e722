//! WHEP (draft-ietf-wish-whep): `POST /whep/<camera>` with an SDP offer is answered with an SDP answer and the URL of a session,
//! which takes candidates and ICE restarts by PATCH and ends by DELETE.
//!
//! Where the draft and its clients differ, what clients do wins as long as no other client breaks:
//! - A restart is known by its new `ice-ufrag`, not by `If-Match: *`, which MediaMTX's reader sends with every candidate.
//! - A missing `If-Match` is no error, since whep.js of medooze sends none.
//! - `Link` on `OPTIONS` names ICE servers alone, because MediaMTX's reader takes every link for one.
//! - `Location` is an absolute path: Eyevinn's adapter joins only that to the endpoint's host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::{get, post};
use axum::{Router, middleware};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use super::problem::Problem;
use super::sdpfrag::{Fragment, IceCredentials, restarted};
use super::token::{Grant, Permission};
use super::{Links, Outbox, rim, unguessable_name};
use crate::core::figures::Quality;
use crate::core::signal::{
    Address, CameraId, ClientId, LinkId, RejectReason, Reply, Request, Response, SessionName, Signal,
};

const SDP: &str = "application/sdp";
const SDP_FRAGMENT: &str = "application/trickle-ice-sdpfrag";

/// Responses a session may have waiting; its task takes them at once.
const OUTBOX: usize = 16;

pub(super) fn router(links: Arc<Links>) -> Router {
    let whep = Arc::new(Whep { links: Arc::clone(&links), sessions: Mutex::default() });
    Router::new()
        .route("/whep/{camera}", post(offer).get(describe_endpoint).options(ice_servers))
        .route("/whep/{camera}/{session}", get(describe_session).patch(patch).delete(end).options(patch_types))
        .layer(middleware::from_fn_with_state(Arc::clone(&links), rim::check_token))
        .layer(middleware::from_fn_with_state(links, rim::check_page))
        .with_state(whep)
}

type Outcome = Result<HttpResponse, Problem>;

struct Whep {
    links: Arc<Links>,
    sessions: Mutex<HashMap<SessionName, Session>>,
}

/// A session that has a URL.
struct Session {
    camera: CameraId,
    /// The engine holds the other end, and closes the session's task by letting go of it.
    outbox: mpsc::WeakSender<Response>,
    /// The offer in force; a restart changes its credentials.
    offer: String,
    ufrag: String,
    /// Counts the ICE credentials this session had: the entity tag.
    generation: u64,
    candidates: usize,
    /// Waits for the answer to a restart.
    restarting: Option<oneshot::Sender<Reply>>,
}

async fn offer(
    State(whep): State<Arc<Whep>>,
    Extension(grant): Extension<Grant>,
    Path(camera): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Outcome {
    let camera = whep.camera(&grant, &camera)?;
    let quality = quality_in(query.as_deref())?;
    let sdp = whep.text_of(&headers, SDP, body).await?;
    let credentials = check_offer(&sdp)?;
    whep.check_room()?;
    let name = SessionName::new(&unguessable_name()).map_err(|_| internal())?;
    let (outbox, mut responses) = mpsc::channel(OUTBOX);
    let offer = Signal::Offer { camera: camera.clone(), sdp: sdp.clone(), quality };
    whep.submit(&name, None, offer, &outbox).await?;
    // Whatever ends the wait drops `responses`, which tells the engine that nobody is there any more.
    let first = timeout(whep.links.settings.answer_timeout, first_reply(&mut responses)).await;
    let answer = answer_of(first.map_err(|_| Problem::no_answer())?.ok_or(RejectReason::ShuttingDown)?)?;
    let location = format!("/whep/{camera}/{}", name.as_str());
    let session = Session {
        camera,
        outbox: outbox.downgrade(),
        offer: sdp,
        ufrag: credentials.ufrag,
        generation: 1,
        candidates: 0,
        restarting: None,
    };
    whep.keep(name, session, responses);
    let mut response = (StatusCode::CREATED, answer).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(SDP));
    headers.insert(header::LOCATION, header_value(&location)?);
    headers.insert(header::ETAG, header_value(&etag(1))?);
    headers.insert(ACCEPT_PATCH, HeaderValue::from_static(SDP_FRAGMENT));
    whep.add_ice_links(headers);
    Ok(response)
}

/// Trickled candidates, or an ICE restart when the credentials are new.
async fn patch(
    State(whep): State<Arc<Whep>>,
    Extension(grant): Extension<Grant>,
    Path((camera, session)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Outcome {
    let name = whep.session(&grant, &camera, &session)?;
    let text = whep.text_of(&headers, SDP_FRAGMENT, body).await?;
    let fragment = Fragment::parse(&text)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "bad-fragment", error.to_string()))?;
    whep.check_tag(&name, &headers)?;
    let restart = fragment.credentials.clone().filter(|new| whep.ufrag_of(&name).is_some_and(|old| old != new.ufrag));
    let response = match restart {
        None => StatusCode::NO_CONTENT.into_response(),
        Some(credentials) => whep.restart(&name, &credentials).await?,
    };
    whep.add_candidates(&name, fragment).await?;
    Ok(response)
}

async fn end(
    State(whep): State<Arc<Whep>>,
    Extension(grant): Extension<Grant>,
    Path((camera, session)): Path<(String, String)>,
) -> Outcome {
    let name = whep.session(&grant, &camera, &session)?;
    if let Some(outbox) = whep.forget(&name).and_then(|session| session.outbox.upgrade()) {
        whep.submit(&name, None, Signal::Bye, &outbox).await?;
    }
    Ok(StatusCode::OK.into_response())
}

/// For `HEAD`, axum leaves the (empty) body out.
async fn describe_endpoint(
    State(whep): State<Arc<Whep>>,
    Extension(grant): Extension<Grant>,
    Path(camera): Path<String>,
) -> Outcome {
    let camera = whep.camera(&grant, &camera)?;
    let mut response = accepting(ACCEPT_POST, SDP);
    let page = format!(r#"</{camera}>; rel="alternate"; type="text/html""#);
    response.headers_mut().insert(header::LINK, header_value(&page)?);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(SDP));
    Ok(response)
}

async fn ice_servers(
    State(whep): State<Arc<Whep>>,
    Extension(grant): Extension<Grant>,
    Path(camera): Path<String>,
) -> Outcome {
    whep.camera(&grant, &camera)?;
    let mut response = accepting(ACCEPT_POST, SDP);
    whep.add_ice_links(response.headers_mut());
    Ok(response)
}

async fn describe_session(
    State(whep): State<Arc<Whep>>,
    Extension(grant): Extension<Grant>,
    Path((camera, session)): Path<(String, String)>,
) -> Outcome {
    let name = whep.session(&grant, &camera, &session)?;
    let generation = whep.sessions().get(&name).map_or(1, |session| session.generation);
    let mut response = accepting(ACCEPT_PATCH, SDP_FRAGMENT);
    response.headers_mut().insert(header::ETAG, header_value(&etag(generation))?);
    Ok(response)
}

async fn patch_types(
    State(whep): State<Arc<Whep>>,
    Extension(grant): Extension<Grant>,
    Path((camera, session)): Path<(String, String)>,
) -> Outcome {
    whep.session(&grant, &camera, &session)?;
    Ok(accepting(ACCEPT_PATCH, SDP_FRAGMENT))
}

impl Whep {
    fn camera(&self, grant: &Grant, name: &str) -> Result<CameraId, Problem> {
        rim::camera(&self.links, grant, Permission::View, name).map(|board| board.id.clone())
    }

    /// The session of this URL, if it lives.
    fn session(&self, grant: &Grant, camera: &str, name: &str) -> Result<SessionName, Problem> {
        let camera = self.camera(grant, camera)?;
        let name = SessionName::new(name).map_err(|_| RejectReason::NoSuchSession)?;
        let lives = self.sessions().get(&name).is_some_and(|session| session.camera == camera);
        if lives { Ok(name) } else { Err(RejectReason::NoSuchSession.into()) }
    }

    async fn text_of(&self, headers: &HeaderMap, wanted: &'static str, body: Body) -> Result<String, Problem> {
        let bytes = rim::body_of(&self.links, headers, wanted, body).await?;
        String::from_utf8(bytes.into()).map_err(|_| RejectReason::BadOffer("it is not UTF-8 text".into()).into())
    }

    fn check_room(&self) -> Result<(), Problem> {
        let limit = self.links.settings.max_whep_sessions;
        if self.sessions().len() < limit {
            return Ok(());
        }
        Err(RejectReason::Full { limit, retry_after: Duration::from_secs(10) }.into())
    }

    /// A tag that is not the session's means the player has missed a restart; `*` and none match any.
    fn check_tag(&self, name: &SessionName, headers: &HeaderMap) -> Result<(), Problem> {
        let generation = self.sessions().get(name).map(|session| session.generation);
        let current = etag(generation.ok_or(RejectReason::NoSuchSession)?);
        if headers.get_all(header::IF_MATCH).iter().all(|given| matches_tag(given.as_bytes(), &current)) {
            return Ok(());
        }
        Err(Problem::new(StatusCode::PRECONDITION_FAILED, "stale-tag", "the session has had an ICE restart since"))
    }

    fn ufrag_of(&self, name: &SessionName) -> Option<String> {
        self.sessions().get(name).map(|session| session.ufrag.clone())
    }

    /// The engine takes a restart as a whole offer, as a browser would make it on another link.
    async fn restart(&self, name: &SessionName, new: &IceCredentials) -> Outcome {
        let (answered, answer) = oneshot::channel();
        let (outbox, offer) = {
            let mut sessions = self.sessions();
            let session = sessions.get_mut(name).ok_or(RejectReason::NoSuchSession)?;
            if session.restarting.as_ref().is_some_and(|waiting| !waiting.is_closed()) {
                return Err(Problem::new(StatusCode::CONFLICT, "restarting", "another restart is under way"));
            }
            session.restarting = Some(answered);
            (session.outbox.upgrade().ok_or(RejectReason::NoSuchSession)?, restarted(&session.offer, new))
        };
        let restart = Signal::Restart { sdp: offer.clone() };
        self.submit(name, Some("restart".into()), restart, &outbox).await?;
        let answer = match timeout(self.links.settings.answer_timeout, answer).await {
            Ok(Ok(reply)) => answer_of(reply)?,
            Ok(Err(_)) => return Err(RejectReason::NoSuchSession.into()),
            Err(_) => return Err(Problem::no_answer()),
        };
        let generation = {
            let mut sessions = self.sessions();
            let session = sessions.get_mut(name).ok_or(RejectReason::NoSuchSession)?;
            session.ufrag.clone_from(&new.ufrag);
            session.offer = offer;
            session.candidates = 0;
            session.generation += 1;
            session.generation
        };
        let mut response = (StatusCode::OK, Fragment::of_answer(&answer)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(SDP_FRAGMENT));
        response.headers_mut().insert(header::ETAG, header_value(&etag(generation))?);
        Ok(response)
    }

    async fn add_candidates(&self, name: &SessionName, fragment: Fragment) -> Result<(), Problem> {
        let outbox = {
            let mut sessions = self.sessions();
            let session = sessions.get_mut(name).ok_or(RejectReason::NoSuchSession)?;
            let limit = self.links.settings.max_candidates;
            session.candidates = session.candidates.saturating_add(fragment.candidates.len());
            if session.candidates > limit {
                return Err(RejectReason::TooManyCandidates(limit).into());
            }
            session.outbox.upgrade().ok_or(RejectReason::NoSuchSession)?
        };
        let end = fragment.end_of_candidates.then(String::new);
        for line in fragment.candidates.into_iter().chain(end) {
            self.submit(name, None, Signal::Candidate { line }, &outbox).await?;
        }
        Ok(())
    }

    async fn submit(
        &self,
        name: &SessionName,
        id: Option<Arc<str>>,
        signal: Signal,
        outbox: &Outbox,
    ) -> Result<(), RejectReason> {
        let client = ClientId { link: LinkId::Whep, name: name.as_str().into() };
        let from = Address { client, session: name.clone() };
        self.links.submit(Request { from, id, signal }, outbox.clone()).await
    }

    /// Gives the session its URL for as long as the engine keeps it.
    fn keep(self: &Arc<Self>, name: SessionName, session: Session, mut responses: mpsc::Receiver<Response>) {
        self.sessions().insert(name.clone(), session);
        self.count();
        let whep = Arc::clone(self);
        self.links.tasks.spawn(async move {
            while let Some(response) = responses.recv().await {
                match response.reply {
                    Reply::Bye(reason) => {
                        debug!(reason = reason.slug(), "a WHEP session ended");
                        break;
                    }
                    // A player that only speaks cannot be told of the camera; its picture stands until it is back.
                    Reply::Notice(_) => {}
                    reply if response.id.is_some() => whep.pass_on(&name, reply),
                    reply => debug!(?reply, "too late for an HTTP response"),
                }
            }
            whep.forget(&name);
        });
    }

    fn pass_on(&self, name: &SessionName, reply: Reply) {
        let waiting = self.sessions().get_mut(name).and_then(|session| session.restarting.take());
        if let Some(waiting) = waiting {
            let _player_left = waiting.send(reply);
        }
    }

    fn forget(&self, name: &SessionName) -> Option<Session> {
        let session = self.sessions().remove(name);
        self.count();
        session
    }

    fn count(&self) {
        self.links.counters.whep_sessions.set(self.sessions().len() as u64);
    }

    fn add_ice_links(&self, headers: &mut HeaderMap) {
        for server in self.links.offered_servers() {
            for link in server.links() {
                if let Ok(link) = HeaderValue::from_str(&link) {
                    headers.append(header::LINK, link);
                }
            }
        }
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionName, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");
const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");

fn accepting(method: HeaderName, what: &'static str) -> HttpResponse {
    ([(method, what)], StatusCode::OK).into_response()
}

/// `?quality=low`: a player that can only be given a URL says there what it wants. Parameters not known are ignored.
fn quality_in(query: Option<&str>) -> Result<Quality, Problem> {
    let parameters = query.unwrap_or_default().split('&').filter_map(|parameter| parameter.split_once('='));
    let asked = parameters.filter(|&(name, _)| name == "quality").map(|(_, value)| value).next();
    let quality = asked.map_or(Some(Quality::Auto), Quality::named);
    quality.ok_or_else(|| {
        Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad-field",
            "quality is auto, high or low; leave it out for auto",
        )
    })
}

/// As far as a link must look; whether the offer can be answered is found out by the peer.
fn check_offer(sdp: &str) -> Result<IceCredentials, RejectReason> {
    let bad = |why: &str| RejectReason::BadOffer(why.to_owned());
    if sdp.trim().is_empty() {
        return Err(bad("the body is empty; this camera answers offers and makes none"));
    }
    if !sdp.starts_with("v=0") {
        return Err(bad("it does not begin with v=0"));
    }
    if !sdp.contains("\nm=video ") {
        return Err(RejectReason::NoCommonCodec);
    }
    IceCredentials::find(sdp).ok().flatten().ok_or_else(|| bad("it has no proper ice-ufrag and ice-pwd"))
}

/// The answer to an offer; a word about the camera that comes before it can wait.
async fn first_reply(responses: &mut mpsc::Receiver<Response>) -> Option<Reply> {
    loop {
        match responses.recv().await?.reply {
            Reply::Notice(_) => {}
            reply => return Some(reply),
        }
    }
}

fn answer_of(reply: Reply) -> Result<String, Problem> {
    match reply {
        Reply::Answer { sdp } => Ok(sdp),
        Reply::Rejected(reason) => Err(reason.into()),
        Reply::Bye(reason) => {
            let detail = format!("the session ended: {}", reason.slug());
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason.slug(), detail))
        }
        Reply::Notice(_) | Reply::Stats(_) => Err(internal()),
    }
}

fn internal() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "this is a fault of edgecam; please report it")
}

fn header_value(text: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(text).map_err(|_| internal())
}

fn etag(generation: u64) -> String {
    format!("\"{generation}\"")
}

/// Whether an `If-Match` value (RFC 9110, section 13.1.1) admits this tag. Some clients leave the quotes away or put them around `*`.
pub fn matches_tag(given: &[u8], current: &str) -> bool {
    let Ok(given) = str::from_utf8(given) else { return false };
    let current = current.trim_matches('"');
    given.split(',').map(|tag| tag.trim().trim_matches('"')).any(|tag| tag == "*" || tag == current)
}
