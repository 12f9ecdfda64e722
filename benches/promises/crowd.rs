//! The process of viewers: one thread reads all their sockets, a few more speak HTTP.
//!
//! It takes one command a line on its input and answers each with one line of JSON:
//!
//! | command | does, then answers |
//! |---|---|
//! | `join N AT_ONCE` | N more viewers, so many at once; their times to the first picture |
//! | `visit N AT_ONCE` | N viewers come, see one picture and leave; the same |
//! | `mark` | measures from here on |
//! | `report` | what came since the mark |
//! | `leave` | all leave |

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rtc::crypto::SignatureScheme;
use rtc::peer_connection::certificate::{CertificateParams, RTCCertificate};
use serde_json::{Value, json};

use crate::signin::{self, Asked, Door, Session};
use crate::spread::Spread;
use crate::viewer::{Stamp, Tally, Viewer, stamp};

/// Runs until the input ends. Every `thorough_every`th viewer decrypts everything, the others only look at headers
/// once their first picture has come. `host` is where they receive.
pub(crate) fn run(door: Door, host: IpAddr, thorough_every: usize) -> Result<()> {
    Crowd::new(door, host, thorough_every)?.run()
}

/// A viewer that has no picture after this long failed.
const PATIENCE: Duration = Duration::from_secs(15);

const HTTP_THREADS: usize = 8;

/// The key of the bell in epoll's data; viewers have lower ones.
const BELL: u64 = u64::MAX;

struct Crowd {
    door: Door,
    host: IpAddr,
    thorough_every: usize,
    certificate: RTCCertificate,
    epoll: Epoll,
    bell: Arc<EventFd>,
    commands: Receiver<String>,
    input_ended: bool,
    errands: SyncSender<Errand>,
    returns: Receiver<Return>,
    viewers: BTreeMap<u64, Member>,
    next_key: u64,
    deadlines: BTreeSet<(Instant, u64)>,
    spread: Spread,
    marked: Marked,
    task: Option<Task>,
}

struct Member {
    viewer: Viewer,
    session: Option<Session>,
    asked_at: Stamp,
    answered_at: Stamp,
    give_up_at: Instant,
    counted: bool,
    stays: bool,
    listed_deadline: Option<Instant>,
}

#[derive(Default)]
struct Marked {
    at: Stamp,
    tallies: BTreeMap<u64, Tally>,
}

/// The command being carried out.
struct Task {
    stays: bool,
    to_start: usize,
    at_once: usize,
    /// Started and without a picture yet, or leaving again.
    under_way: usize,
    outcome: Outcome,
}

/// Milliseconds from the question.
#[derive(Default)]
struct Outcome {
    answered: Vec<f64>,
    connected: Vec<f64>,
    first_picture: Vec<f64>,
    failures: BTreeMap<String, usize>,
}

enum Errand {
    Offer { key: u64, sdp: String },
    Watch { key: u64 },
    Start { key: u64, session: Session, sdp: String },
    Leave { key: Option<u64>, session: Session },
}

enum Return {
    Asked { key: u64, asked: Result<Asked> },
    Started { key: u64, started: Result<()> },
    Left { key: Option<u64>, left: Result<()> },
}

impl Crowd {
    fn new(door: Door, host: IpAddr, thorough_every: usize) -> Result<Self> {
        let crypto = rtc::crypto::default_provider()?;
        let params = CertificateParams::default();
        let certificate = RTCCertificate::generate(crypto.crypto(), SignatureScheme::EcdsaP256Sha256, params)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        epoll.add(&*bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        let commands = read_commands(Arc::clone(&bell));
        let (errands, returns) = run_errands(&door, &bell);
        Ok(Self {
            door,
            host,
            thorough_every,
            certificate,
            epoll,
            bell,
            commands,
            input_ended: false,
            errands,
            returns,
            viewers: BTreeMap::new(),
            next_key: 0,
            deadlines: BTreeSet::new(),
            spread: Spread::default(),
            marked: Marked::default(),
            task: None,
        })
    }

    fn run(mut self) -> Result<()> {
        let mut ready = vec![EpollEvent::empty(); 256];
        while !(self.input_ended && self.task.is_none()) {
            let count = match self.epoll.wait(&mut ready, self.wait_time()) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &ready[..count] {
                match event.data() {
                    BELL => {
                        let _ = self.bell.read();
                    }
                    key => self.attend(key, |viewer, spread| viewer.receive(spread)),
                }
            }
            self.handle_deadlines();
            self.handle_returns()?;
            self.handle_commands()?;
            self.go_on()?;
        }
        Ok(())
    }

    fn wait_time(&self) -> EpollTimeout {
        let next = self.deadlines.first().map(|&(at, _)| at.saturating_duration_since(Instant::now()));
        let wait = next.unwrap_or(Duration::from_millis(100)).min(Duration::from_millis(100));
        // Rounded up: epoll counts whole milliseconds, and waking early means spinning.
        EpollTimeout::from(wait.as_micros().div_ceil(1000) as u16)
    }

    /// Lets one viewer do something, and sees to what follows from it.
    fn attend(&mut self, key: u64, act: impl FnOnce(&mut Viewer, &mut Spread)) {
        let Some(member) = self.viewers.get_mut(&key) else { return };
        act(&mut member.viewer, &mut self.spread);
        let wanted = match (member.viewer.deadline, member.counted) {
            (at, true) => at,
            (at, false) => Some(at.map_or(member.give_up_at, |at| at.min(member.give_up_at))),
        };
        if wanted != member.listed_deadline {
            if let Some(listed) = member.listed_deadline.take() {
                self.deadlines.remove(&(listed, key));
            }
            if let Some(at) = wanted {
                self.deadlines.insert((at, key));
                member.listed_deadline = Some(at);
            }
        }
        self.judge(key);
    }

    /// Notes a first picture, or that none will come.
    fn judge(&mut self, key: u64) {
        let Some(member) = self.viewers.get_mut(&key).filter(|member| !member.counted) else { return };
        let Some(task) = &mut self.task else { return };
        let ms = |at: Stamp| at.saturating_sub(member.asked_at) as f64 / 1e6;
        if let Some(at) = member.viewer.first_keyframe_at.filter(|_| member.asked_at > 0) {
            member.counted = true;
            task.outcome.first_picture.push(ms(at));
            task.outcome.answered.push(ms(member.answered_at));
            task.outcome.connected.push(ms(member.viewer.connected_at.unwrap_or(at)));
            if member.stays {
                task.under_way -= 1;
            } else {
                self.dismiss(key);
            }
        } else if member.viewer.failed || Instant::now() >= member.give_up_at {
            let what = match (member.session.is_some(), member.viewer.connected_at.is_some()) {
                (false, _) => "no answer",
                (true, false) => "not connected",
                (true, true) => "no picture",
            };
            self.fail(key, what.to_owned());
        }
    }

    fn fail(&mut self, key: u64, what: String) {
        if let Some(task) = &mut self.task {
            *task.outcome.failures.entry(what).or_default() += 1;
        }
        self.dismiss(key);
    }

    /// A viewer leaves; the task waits until the server knows.
    fn dismiss(&mut self, key: u64) {
        let Some(mut member) = self.viewers.remove(&key) else { return };
        member.viewer.close();
        if let Some(at) = member.listed_deadline {
            self.deadlines.remove(&(at, key));
        }
        let _ = self.epoll.delete(member.viewer.socket());
        match (member.session, &mut self.task) {
            (Some(session), _) => {
                let _ = self.errands.send(Errand::Leave { key: Some(key), session });
            }
            (None, Some(task)) => task.under_way -= 1,
            (None, None) => {}
        }
    }

    fn handle_deadlines(&mut self) {
        let now = Instant::now();
        while let Some(&(at, key)) = self.deadlines.first() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(member) = self.viewers.get_mut(&key) {
                member.listed_deadline = None;
            }
            self.attend(key, |viewer, _| viewer.handle_timeout());
        }
    }

    fn handle_returns(&mut self) -> Result<()> {
        loop {
            match self.returns.try_recv() {
                Ok(Return::Asked { key, asked: Ok(asked) }) => self.handle_asked(key, asked),
                Ok(Return::Asked { key, asked: Err(error) } | Return::Started { key, started: Err(error) }) => {
                    self.fail(key, format!("{error:#}"));
                }
                Ok(Return::Started { started: Ok(()), .. }) => {}
                Ok(Return::Left { key, left }) => {
                    if let (Some(_), Some(task)) = (key, &mut self.task) {
                        task.under_way -= 1;
                        if let Err(error) = left {
                            *task.outcome.failures.entry(format!("leaving: {error:#}")).or_default() += 1;
                        }
                    }
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => bail!("the HTTP threads are gone"),
            }
        }
    }

    fn handle_asked(&mut self, key: u64, asked: Asked) {
        let Some(member) = self.viewers.get_mut(&key) else {
            let _ = self.errands.send(Errand::Leave { key: None, session: asked.session });
            return;
        };
        member.asked_at = asked.at;
        member.answered_at = stamp();
        member.session = Some(asked.session.clone());
        let applied = match self.door {
            Door::Whep(_) => member.viewer.take_answer(asked.sdp),
            Door::Janus(_) => member.viewer.answer(asked.sdp).map(|sdp| {
                let _ = self.errands.send(Errand::Start { key, session: asked.session, sdp });
            }),
        };
        match applied {
            Ok(()) => self.attend(key, |_, _| {}),
            Err(error) => self.fail(key, format!("{error:#}")),
        }
    }

    fn handle_commands(&mut self) -> Result<()> {
        while self.task.is_none() && !self.input_ended {
            let line = match self.commands.try_recv() {
                Ok(line) => line,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.input_ended = true;
                    self.leave();
                    break;
                }
            };
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [what @ ("join" | "visit"), count, at_once] => {
                    self.task = Some(Task {
                        stays: what == "join",
                        to_start: count.parse().context("how many?")?,
                        at_once: at_once.parse().context("how many at once?")?,
                        under_way: 0,
                        outcome: Outcome::default(),
                    });
                }
                ["leave"] => self.leave(),
                ["mark"] => {
                    self.mark();
                    reply(&json!({}))?;
                }
                ["report"] => reply(&self.report())?,
                _ => bail!("unknown command: {line}"),
            }
        }
        Ok(())
    }

    fn leave(&mut self) {
        let keys: Vec<u64> = self.viewers.keys().copied().collect();
        self.task =
            Some(Task { stays: false, to_start: 0, at_once: 0, under_way: keys.len(), outcome: Outcome::default() });
        keys.into_iter().for_each(|key| self.dismiss(key));
    }

    /// Starts the next viewers of the task, or answers for it.
    fn go_on(&mut self) -> Result<()> {
        let Some(task) = &mut self.task else { return Ok(()) };
        let mut start = task.at_once.saturating_sub(task.under_way).min(task.to_start);
        let stays = task.stays;
        task.to_start -= start;
        task.under_way += start;
        if start == 0
            && task.under_way == 0
            && let Some(task) = self.task.take()
        {
            return if self.input_ended { Ok(()) } else { reply(&task.outcome.as_json(self.viewers.len())) };
        }
        while start > 0 {
            start -= 1;
            self.start(stays)?;
        }
        Ok(())
    }

    fn start(&mut self, stays: bool) -> Result<()> {
        let key = self.next_key;
        self.next_key += 1;
        let thorough = self.viewers.len().is_multiple_of(self.thorough_every);
        let mut viewer = Viewer::new(&self.certificate, self.host, thorough)?;
        self.epoll.add(viewer.socket(), EpollEvent::new(EpollFlags::EPOLLIN, key))?;
        let errand = match self.door {
            Door::Whep(_) => Errand::Offer { key, sdp: viewer.offer()? },
            Door::Janus(_) => Errand::Watch { key },
        };
        let member = Member {
            viewer,
            session: None,
            asked_at: 0,
            answered_at: 0,
            give_up_at: Instant::now() + PATIENCE,
            counted: false,
            stays,
            listed_deadline: None,
        };
        self.viewers.insert(key, member);
        let _ = self.errands.send(errand);
        self.attend(key, |_, _| {});
        Ok(())
    }

    fn mark(&mut self) {
        self.spread.mark();
        let tallies = self.viewers.iter().map(|(&key, member)| (key, member.viewer.tally())).collect();
        self.marked = Marked { at: stamp(), tallies };
    }

    fn report(&mut self) -> Value {
        let seconds = (stamp() - self.marked.at) as f64 / 1e9;
        let mut total = Tally::default();
        for (key, member) in &self.viewers {
            let before = self.marked.tallies.get(key).copied().unwrap_or_default();
            let now = member.viewer.tally();
            total.packets += now.packets - before.packets;
            total.lost += now.lost.saturating_sub(before.lost);
        }
        let delays = self.spread.take();
        let of_viewers = |n: u64| n as f64 / seconds / self.viewers.len().max(1) as f64;
        json!({
            "viewers": self.viewers.len(),
            "seconds": seconds,
            "packets_per_second": of_viewers(total.packets),
            "pictures_per_second": delays.len() as f64 / seconds / self.viewers.len().max(1) as f64,
            "lost": total.lost,
            "spread_ms": { "p50": quantile(&delays, 0.5), "p99": quantile(&delays, 0.99), "max": quantile(&delays, 1.0) },
        })
    }
}

impl Outcome {
    fn as_json(&self, viewers: usize) -> Value {
        json!({
            "viewers": viewers,
            "answered_ms": self.answered,
            "connected_ms": self.connected,
            "first_picture_ms": self.first_picture,
            "failures": self.failures,
        })
    }
}

/// Of ascending microseconds, in milliseconds.
fn quantile(sorted: &[u32], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    Some(f64::from(sorted[(last as f64 * q).round() as usize]) / 1000.0)
}

fn reply(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

fn read_commands(bell: Arc<EventFd>) -> Receiver<String> {
    let (give, commands) = sync_channel(16);
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if give.send(line).is_err() {
                break;
            }
            let _ = bell.write(1);
        }
        drop(give);
        let _ = bell.write(1);
    });
    commands
}

fn run_errands(door: &Door, bell: &Arc<EventFd>) -> (SyncSender<Errand>, Receiver<Return>) {
    // Deep enough that the thread that reads the sockets never waits for HTTP, however many viewers leave at once.
    const DEPTH: usize = 4096;
    let (errands, todo) = sync_channel(DEPTH);
    let (give, returns) = sync_channel(DEPTH);
    let todo = Arc::new(Mutex::new(todo));
    let agent = signin::agent();
    for _ in 0..HTTP_THREADS {
        let (todo, give, bell) = (Arc::clone(&todo), give.clone(), Arc::clone(bell));
        let (agent, door) = (agent.clone(), door.clone());
        thread::spawn(move || {
            loop {
                let errand = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(errand) = errand else { break };
                if give.send(run_errand(&agent, &door, errand)).is_err() {
                    break;
                }
                let _ = bell.write(1);
            }
        });
    }
    (errands, returns)
}

fn run_errand(agent: &ureq::Agent, door: &Door, errand: Errand) -> Return {
    match (errand, door) {
        (Errand::Offer { key, sdp }, Door::Whep(url)) => {
            Return::Asked { key, asked: signin::whep_offer(agent, url, &sdp) }
        }
        (Errand::Offer { key, .. } | Errand::Watch { key }, Door::Janus(url)) => {
            Return::Asked { key, asked: signin::janus_watch(agent, url) }
        }
        (Errand::Watch { key }, Door::Whep(url)) => Return::Asked { key, asked: signin::whep_offer(agent, url, "") },
        (Errand::Start { key, session, sdp }, _) => {
            Return::Started { key, started: signin::janus_start(agent, &session, &sdp) }
        }
        (Errand::Leave { key, session }, door) => Return::Left { key, left: signin::leave(agent, door, &session) },
    }
}
