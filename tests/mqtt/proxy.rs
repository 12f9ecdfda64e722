//! A way to the broker that can turn into a black hole: connections stay, and nothing comes through.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub struct Proxy {
    pub port: u16,
    swallows: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn before(broker_port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (swallows, swallowing) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker_port)).await else { continue };
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                tokio::spawn(pass(near_in, far_out, swallowing.clone()));
                tokio::spawn(pass(far_in, near_out, swallowing.clone()));
            }
        });
        Self { port, swallows, task }
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub fn swallows(&self, yes: bool) {
        self.swallows.send_replace(yes);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What was swallowed never comes again: a connection of which something was lost stays silent, as TCP's would.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallowing: watch::Receiver<bool>) {
    let mut bytes = vec![0; 16 << 10];
    let mut is_lost = false;
    while let Ok(length) = from.read(&mut bytes).await {
        is_lost |= *swallowing.borrow();
        if length == 0 && !is_lost {
            break;
        }
        if length == 0 {
            return std::future::pending().await;
        }
        if !is_lost && to.write_all(&bytes[..length]).await.is_err() {
            break;
        }
    }
}
